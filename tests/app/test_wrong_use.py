"""Names that are not there, people who may not, and things done twice: each is refused, and nothing changes."""

import socket

import pytest
from tests.app.projects import LABEL

from keepwell.app.cli.exits import EXITS
from keepwell.app.cli.main import COMMANDS, build_parser
from keepwell.app.up import Supervisor
from keepwell.core.errors import KINDS, Conflict, Unavailable
from keepwell.core.records.lifecycle import Activation, Approval
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import TrafficPlan
from keepwell.lifecycle.activation import ensure_endpoint

ME = ("--as", "me")
COLLEAGUE = ("--as", "colleague")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("release", "tumour/9", *ME), 3, r"no version tumour/9\..*Did you mean 'tumour/1'\?"),
        (("release", "tumor/1", *ME), 3, r"no version tumor/1\..*Did you mean 'tumour/1'\?"),
        (("release", "tumour", *ME), 2, r"'tumour' names no version.*MODEL/NUMBER"),
        (("release", "tumour/one", *ME), 2, r"'tumour/one' names no version"),
        (("release", "tumour/99999999999999999999", *ME), 3, r"no version tumour/9+"),
        (("release", LABEL, *COLLEAGUE), 5, r"colleague may not release.*author"),
        (("approve", "tumour/2", "--reason", "x", *COLLEAGUE), 3, r"no version tumour/2"),
        (("approve", LABEL, "--reason", "x", *ME), 5, r"me may not approve.*approver"),
        (("approve", LABEL, "--reason", "x", "--as", "nobody"), 5, r"no user 'nobody'.*\[users\]"),
        (("approve", LABEL, "--reason", " ", *COLLEAGUE), 2, r"needs a reason"),
        (("approve", LABEL, *COLLEAGUE), 2, r"--reason.*keepwell approve --help"),
        (("activate", "tumour/2", *ME), 3, r"no version tumour/2"),
        (("activate", LABEL, "--strategy", "canery", *ME), 3, r"no strategy 'canery'.*Did you mean 'canary'\?"),
        (("activate", LABEL, *COLLEAGUE), 5, r"colleague may not activate"),
        (("rollout", "status", "rollout-1"), 3, r"no rollout 'rollout-1'"),
        (("rollback", "tumor", "--reason", "x", "--yes", *COLLEAGUE), 3, r"Nothing is deployed at 'tumor'"),
        (("rollback", "tumour", "--reason", "x", "--yes", *COLLEAGUE), 3, r"Nothing is deployed at 'tumour'"),
        (("evidence", "show", "beef"), 3, r"no evidence 'beef'.*keepwell evidence list"),
        (("evidence", "sow"), 2, r"There is no 'sow'.*Did you mean 'show'\?"),
        (("trian",), 2, r"There is no 'trian'.*Did you mean 'train'\?"),
        (("token", "create", "colleage", *ME), 3, r"no user 'colleage'.*Did you mean 'colleague'\?"),
        (("token", "revoke", "00000000", *ME), 3, r"no token '00000000'"),
        (("audit", "list", "--last", "x"), 2, r"--last.*'x'"),
    ],
)  # fmt: skip
def test_a_wrong_name_or_person_is_refused_with_a_way_out(released, arguments, status, says):
    before = released.fingerprint()
    released.fails(*arguments, status=status, says=says)
    assert released.fingerprint() == before


def test_without_json_an_error_leaves_standard_output_empty(released):
    ended = released("release", "tumor/1", *ME)
    assert (ended.status, ended.out) == (3, "")
    assert ended.err.startswith("keepwell release: ")


def test_the_author_cannot_approve_even_with_the_role(released):
    released.edit(
        'roles = ["author", "operator"]', 'roles = ["author", "approver"]', "keepwell.toml"
    )
    released.fails(
        "approve", LABEL, "--reason", "mine", *ME, status=5, says=r"me is the author of tumour/1"
    )
    assert released.state().store.count(Approval) == 0


def test_approving_twice_says_nothing_new(released):
    first = released("approve", LABEL, "--reason", "good", "--json", *COLLEAGUE)
    before = released.fingerprint()
    again = released("approve", LABEL, "--reason", "good", "--json", *COLLEAGUE)
    assert (first.status, again.status) == (0, 0)
    assert first.json["id"] == again.json["id"]
    assert released.fingerprint() == before


@pytest.mark.parametrize("state", ["registered", "refused", "retired"])
def test_what_is_not_released_is_not_activated(released, state):
    set_state(released.state(), state)
    before = released.fingerprint()
    released.fails(
        "activate",
        LABEL,
        *ME,
        status=5,
        says=f"tumour/1 is {state}, not released.*keepwell release tumour/1",
    )
    released.fails("activate", LABEL, "--dry-run", *ME, status=5, says=f"tumour/1 is {state}")
    assert released.fingerprint() == before


def set_state(state, name):
    import msgspec

    version = state.store.get(ModelVersion, "tumour", 1)
    with state.store.transaction(actor="test") as transaction:
        transaction.replace(
            msgspec.structs.replace(version, state=name, revision=version.revision + 1)
        )


def test_a_served_version_is_not_released_again(released):
    set_state(released.state(), "active")
    released.fails("release", LABEL, *ME, status=5, says=r"tumour/1 is active.*Train a new version")


def test_an_activation_under_way_is_not_started_again(released):
    assert (
        "waits at 'activation by approval' for 1 of 1 approvals"
        in released("activate", LABEL, *ME).out
    )
    before = released.fingerprint()
    for more in ((), ("--dry-run",)):
        released.fails(
            "activate",
            LABEL,
            *more,
            *ME,
            status=4,
            says=r"An activation of tumour/1 is waiting already",
        )
    assert released.fingerprint() == before
    assert released.state().store.count(Activation) == 1


def test_a_rollout_is_not_started_beside_another(released):
    state = released.state()
    ensure_endpoint(state.context, "tumour", actor="me")
    version = state.store.get(ModelVersion, "tumour", 1)

    def start(name, strategy):
        return state.rollouts.start(
            id=name, endpoint="tumour", version=version, strategy=strategy, actor="me"
        )

    assert start("first", "basic").state == "promoted"
    assert start("first", "basic").state == "promoted"  # the same one again is the same one
    second = start("second", "canary")
    assert second.state == "running"
    with pytest.raises(Conflict, match=r"The rollout second is running.*keepwell rollback"):
        start("third", "basic")
    released.fails(
        "rollout",
        "start",
        LABEL,
        "--dry-run",
        "--as",
        "me",
        status=4,
        says="The rollout second is running",
    )


def test_rollback_with_nothing_before_leaves_the_plan(released):
    state = released.state()
    ensure_endpoint(state.context, "tumour", actor="me")
    version = state.store.get(ModelVersion, "tumour", 1)
    state.rollouts.start(
        id="first", endpoint="tumour", version=version, strategy="basic", actor="me"
    )
    for more in (("--yes",), ("--dry-run",)):
        released.fails(
            "rollback",
            "tumour",
            "--reason",
            "x",
            *more,
            *COLLEAGUE,
            status=3,
            says=r"No version answered 'tumour' before.*another version",
        )
    assert released.state().store.count(TrafficPlan) == 1


def test_init_in_a_folder_with_a_project_changes_no_file(fresh):
    before = {path.name: path.read_bytes() for path in fresh.folder.iterdir()}
    fresh.fails("init", str(fresh.folder), status=4, says="There is a project already")
    assert {path.name: path.read_bytes() for path in fresh.folder.iterdir()} == before
    fresh.fails("init", str(fresh.folder / "9lives"), status=2, says="cannot name a Python module")
    (fresh.folder / "file").write_text("")
    fresh.fails(
        "init",
        str(fresh.folder / "file" / "x"),
        status=7,
        says="cannot be written: Not a directory",
    )


def test_up_twice_on_one_project_is_refused(fresh):
    run = fresh.folder / ".keepwell" / "run"
    run.mkdir(parents=True)
    import fcntl

    with (run / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh.fails("up", "--for", "1", status=4, says="This project is up already")
    assert not (run / "gateway.json").exists()


@pytest.mark.services
@pytest.mark.parametrize("name", ["port", "gateway_port"])
def test_a_port_that_is_taken_is_named_and_nothing_stays_up(fresh, name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        path = fresh.folder / "keepwell.toml"
        path.write_text(path.read_text().replace(f"\n{name} = 0", f"\n{name} = {number}"))
        supervisor = Supervisor(fresh.state(), say=lambda _: None)
        with (
            pytest.raises(Unavailable, match=rf":{number} cannot be bound: .*under \[server\]"),
            supervisor,
        ):
            pass
        assert supervisor.pids() == {}


def test_every_error_has_its_own_exit_status_and_help_says_what_each_means():
    statuses = {kind.code: kind.exit_status for kind in KINDS.values()}
    assert len(set(statuses.values())) == len(statuses)
    assert set(statuses.values()) < set(EXITS)
    said = " ".join(build_parser().format_help().split())
    for status, meaning in EXITS.items():
        assert f"{status} {meaning}" in said


def test_every_command_has_help_and_a_module(capsys):
    import importlib

    for name, sentence in COMMANDS:
        assert importlib.import_module(f"keepwell.app.cli.{name}").run
        with pytest.raises(SystemExit, match="0"):
            build_parser().parse_args([name, "--help"])
        assert sentence[1:].split("'")[0] in " ".join(capsys.readouterr().out.split())


def test_what_nobody_foresaw_is_a_sentence_with_its_line_and_a_trace_on_demand(fresh, monkeypatch):
    def broken(given):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("keepwell.app.cli.status.run", broken)
    ended = fresh.fails(
        "status",
        status=1,
        says=r"test_wrong_use\.py:\d+: .*ZeroDivisionError.*KEEPWELL_TRACEBACK=1",
    )
    assert "Traceback" not in ended.err
    monkeypatch.setenv("KEEPWELL_TRACEBACK", "1")
    assert "Traceback" in fresh("status").err
