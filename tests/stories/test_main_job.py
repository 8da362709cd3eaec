"""The whole way on real flights: from raw data to a released, served, watched model."""

import json
import sqlite3

import pytest
from tests.stories.projects import keepwell, state_of

from keepwell.core.records.evidence import Evidence
from keepwell.core.records.lifecycle import ACTIVATION_STEPS, RELEASE_STEPS
from keepwell.core.records.models import ModelVersion

pytestmark = [
    pytest.mark.slow,
    pytest.mark.services,
    pytest.mark.timeout(500),
]


def test_a_released_version_has_seven_passed_steps_and_a_candidate_is_refused_on_its_merits(told):
    summary = told[1]
    passed = [
        s["step"]
        for s in summary["release"]
        if s["version"] == 1 and s["verdict"] in {"pass", "waived"}
    ]
    assert passed == list(RELEASE_STEPS)
    refused = {r["version"]: r for r in summary["refused"]}
    assert refused[3]["step"] == "candidate release"
    assert "calibration error" in refused[3]["reason"]


def test_the_activation_has_seven_passed_steps_by_two_people_who_are_not_the_author(told):
    summary = told[1]
    assert [s["step"] for s in summary["activation"] if s["verdict"] == "pass"] == list(
        ACTIVATION_STEPS
    )
    assert {a["by"] for a in summary["approvals"] if a["scope"] == "version"} == {"ben", "carol"}


def test_no_request_fails_and_every_acknowledged_prediction_is_in_the_log(told):
    summary = told[1]
    assert summary["requests"]["served"] > 28_000
    assert summary["requests"]["failed"] == 0
    assert summary["predictions"]["equal"]


def test_the_ledger_says_what_was_earned_with_an_interval(told):
    ledger = told[1]["ledger"]
    assert ledger["low"] < ledger["value"] < ledger["high"]
    assert ledger["unit"] == "USD"
    assert ledger["labelled"] > 25_000


def test_evidence_and_audit_of_the_job_verify(told):
    assert "all hold" in keepwell("evidence", "verify", folder=told[0]).stdout
    assert "unbroken" in keepwell("audit", "verify", folder=told[0]).stdout


def flip(path):
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("what", ["artefact", "envelope"])
def test_one_changed_byte_of_an_artefact_or_of_evidence_is_found(copy_of_told, what):
    state = state_of(copy_of_told)
    if what == "artefact":
        manifest = json.loads(
            state.blobs.get(state.store.get(ModelVersion, "flight-delay", 1).artefact)
        )
        digest = manifest["files"]["model.onnx"]
    else:
        digest = state.store.find(Evidence)[0].envelope
    flip(state.blobs.path(digest))
    state.store.close()
    ended = keepwell("evidence", "verify", folder=copy_of_told, check=False)
    assert ended.returncode == 1
    assert digest in ended.stdout


def test_one_changed_letter_of_an_audit_row_or_of_a_record_is_found(copy_of_told):
    database = copy_of_told / ".keepwell" / "keepwell.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE audit SET actor = 'mallory' WHERE seq = 7")
    connection.close()
    ended = keepwell("audit", "verify", folder=copy_of_told, check=False)
    assert ended.returncode == 1
    assert "entry 7" in ended.stdout
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE model_versions SET author = 'mallory' WHERE version = 1")
    connection.close()
    ended = keepwell("audit", "verify", "--json", folder=copy_of_told, check=False)
    assert any("model_versions" in problem for problem in json.loads(ended.stdout)["problems"])


def test_the_demo_run_again_on_its_finished_state_comes_to_the_same_end(copy_of_told):
    before = json.loads((copy_of_told / "summary.json").read_text())
    keepwell("demo", ".", "--exit", "--summary", "again.json", folder=copy_of_told, timeout=400)
    again = json.loads((copy_of_told / "again.json").read_text())
    del before["seconds"], again["seconds"]
    assert again == before
