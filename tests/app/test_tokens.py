"""Tokens: shown once, kept as a hash, asked for by the command line and by the API."""

import asyncio
import json
import threading
import urllib.request
from contextlib import contextmanager
from urllib.error import HTTPError

import pytest
import uvicorn
from tests.app.projects import LABEL

from keepwell.app.api.server import application
from keepwell.core.errors import Refused
from keepwell.core.records.lifecycle import Approval, Token
from keepwell.lifecycle.tokens import create_token, hash_token, user_of
from keepwell.serving.sockets import bind

APPROVE = ("approve", LABEL, "--reason", "good")


def make(commands, user, *more, token=""):
    ended = commands("token", "create", user, "--as", user, "--json", *more, token=token)
    assert ended.status == 0, ended
    return ended.json["token"]


def test_a_token_is_shown_once_and_only_its_hash_is_kept(released):
    ended = released("token", "create", "colleague", "--label", "laptop", "--as", "colleague")
    (text,) = ended.out.split()
    assert text.startswith("kw_")
    assert text not in ended.err
    state = released.state()
    (row,) = state.store.find(Token)
    assert row.hash == hash_token(text)
    assert (row.user, row.label) == ("colleague", "laptop")
    assert row.expires is not None
    listed = released("users")
    assert "laptop" in listed.out
    shown = [
        listed.out,
        released("users", "--json").out,
        released("audit", "list", "--json").out,
        released("status", "--json").out,
    ]
    secret = text.rsplit("_", 1)[1]
    for said in shown:
        assert secret not in said
        assert row.hash not in said
    for path in (released.folder / ".keepwell").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes()
    added = [e for e in state.store.audit() if e.subject == f"tokens/{row.id}"]
    assert [(e.actor, e.action) for e in added] == [("colleague", "add")]


def test_a_user_with_a_token_must_give_it(released):
    text = make(released, "colleague")
    released.fails(
        *APPROVE,
        "--as",
        "colleague",
        status=5,
        says="colleague must prove who they are.*KEEPWELL_TOKEN",
    )
    other = make(released, "me")
    released.fails(
        *APPROVE, "--as", "colleague", status=5, says="is me's, not colleague's", token=other
    )
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    released.fails(
        *APPROVE, "--as", "colleague", status=5, says="The token is unknown", token=wrong
    )
    for nonsense in ("x", "kw_", "kw_00000000_" + "a" * 43, text + " ", text.upper()):
        released.fails(*APPROVE, status=5, says="The token is unknown", token=nonsense)
    assert released.state().store.count(Approval) == 0
    assert released(*APPROVE, token=text).status == 0  # and --as is not needed
    assert released.state().store.find(Approval)[0].by == "colleague"


def test_a_user_without_a_token_is_taken_on_trust_on_this_machine(released):
    make(released, "me")
    assert released(*APPROVE, "--as", "colleague").status == 0


def test_the_token_is_taken_out_of_the_environment_before_anybody_elses_code_runs(released):
    text = make(released, "colleague")
    released.edit(
        "import numpy as np",
        "import os\nassert 'KEEPWELL_TOKEN' not in os.environ\nimport numpy as np",
    )
    released("status", token=text)
    assert released("status", token=text).status == 0


def test_an_expired_or_revoked_token_opens_nothing_and_does_not_open_the_door_either(released):
    short = make(released, "colleague", "--expires", "0.0000001")
    released.fails(*APPROVE, status=5, says="The token .* has expired", token=short)
    released.fails(*APPROVE, "--as", "colleague", status=5, says="must prove who they are")
    released.edit('roles = ["author", "operator"]', 'roles = ["author", "admin"]', "keepwell.toml")
    text = released("token", "create", "colleague", "--as", "me", "--json").json["token"]
    number = text.split("_")[1]
    assert released("token", "revoke", number, "--reason", "lost laptop", token=text).status == 0
    released.fails(*APPROVE, status=5, says=f"The token {number} was revoked", token=text)
    released.fails(*APPROVE, "--as", "colleague", status=5, says="must prove who they are")
    entries = [e for e in released.state().store.audit() if e.subject == f"tokens/{number}"]
    assert [(e.actor, e.action) for e in entries] == [("me", "add"), ("colleague", "replace")]
    assert entries[-1].reason == "lost laptop"
    before = released.fingerprint()
    assert released("token", "revoke", number, "--as", "me").status == 0  # again: nothing new
    assert released.fingerprint() == before


def test_only_a_user_or_an_admin_changes_a_users_tokens(released):
    number = make(released, "colleague").split("_")[1]
    released.fails(
        "token",
        "create",
        "colleague",
        "--as",
        "me",
        status=5,
        says="me may not change the tokens of colleague.*admin",
    )
    released.fails("token", "revoke", number, "--as", "me", status=5, says="me may not change")
    for days in ("-1", "1e9", "nan"):
        released.fails(
            "token", "create", "me", "--as", "me", "--expires", days, status=2, says="days"
        )


def test_a_user_who_is_no_longer_declared_may_do_nothing(released):
    text = make(released, "colleague")
    released.edit('[users.colleague]\nroles = ["approver"]\n', "", "keepwell.toml")
    released.fails(
        *APPROVE, status=5, says="colleague may not approve: their roles are none", token=text
    )
    assert "colleague" not in released("users", "--json").out


def test_a_changed_row_of_a_token_is_found_by_the_audit(released):
    text = make(released, "colleague")
    import sqlite3

    with sqlite3.connect(released.folder / ".keepwell" / "keepwell.db") as connection:
        connection.execute("UPDATE tokens SET hash = ?", (hash_token("kw_mine"),))
    connection.close()
    released.fails(*APPROVE, status=5, says="The token is unknown", token=text)
    assert "tokens/" in released("audit", "verify").out


def test_two_tokens_of_one_user_hold_side_by_side(released):
    state = released.state()
    texts = [
        create_token("me", by="me", days=0, label=name, store=state.store, clock=state.clock)[0]
        for name in ("a", "b")
    ]
    now = state.clock.now()
    assert [user_of(text, store=state.store, now=now) for text in texts] == ["me", "me"]
    with pytest.raises(Refused):
        user_of(texts[0][:-1], store=state.store, now=now)


@contextmanager
def served(state):
    """The control API of a project, on a free port."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(application(state), log_level="warning", access_log=False, lifespan="off")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()


def post(url, body, headers):
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers=headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.services
def test_the_control_and_the_tracking_api_ask_for_tokens(released):
    text = make(released, "colleague")
    body = {"model": "tumour", "version": 1, "reason": "good"}
    with served(released.state()) as url:
        approvals = f"{url}/api/v1/approvals"
        for headers, says in (
            ({}, "Nobody is named"),
            ({"X-Keepwell-User": "colleague"}, "must prove who they are"),
            ({"Authorization": "Bearer " + text[:-2] + "xx"}, "The token is unknown"),
            ({"Authorization": "Basic Y29sbGVhZ3Vl"}, "way of authorization is unknown"),
            ({"X-Keepwell-User": "me"}, "me may not approve"),
        ):
            status, said = post(approvals, body, headers)
            assert (status, says in said) == (403, True), said
            assert text not in said
        status, said = post(approvals, body, {"Authorization": f"Bearer {text}"})
        assert status == 201
        assert json.loads(said)["by"] == "colleague"
        create = f"{url}/api/2.0/mlflow/experiments/create"
        assert post(create, {"name": "mine"}, {"Authorization": f"Bearer {text}"})[0] == 200
        assert post(create, {"name": "other"}, {})[0] == 200
        status, said = post(create, {"name": "third"}, {"Authorization": "Bearer kw_x"})
        assert (status, "The token is unknown" in said) == (409, True)
