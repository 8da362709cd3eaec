"""The server answers bad input with MLflow's errors and stays up; what stands on a version protects it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import Arm, Endpoint, TrafficPlan
from keepwell.core.standing import what_stands_on

if TYPE_CHECKING:
    from tests.tracking.conftest import Running

API = "/api/2.0/mlflow/"
FILES = "/api/2.0/mlflow-artifacts/artifacts/"
# Made once: each new client reads the world's certificates for a tenth of a second. It keeps no connection, because
# each test has a server of its own.
CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


def post(server: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = CLIENT.post(server.url + API + path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def registered(server: Running) -> tuple[str, str]:
    """Upload a model, register it twice, and give its run and where its files lie."""
    experiment = post(server, "experiments/create", {"name": "e"})["experiment_id"]
    run = post(server, "runs/create", {"experiment_id": experiment, "user_id": "amy"})["run"][
        "info"
    ]
    place = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    for name in ("model/MLmodel", "model/data/weights.bin"):
        assert CLIENT.put(f"{server.url}{FILES}{place}/{name}", content=name.encode()).is_success
    post(server, "registered-models/create", {"name": "late"})
    source = f"runs:/{run['run_id']}/model"
    for _ in range(2):
        post(server, "model-versions/create", {"name": "late", "source": source})
    return run["run_id"], place


def refused(server: Running, method: str, path: str, body: dict[str, Any]) -> str:
    answer = CLIENT.request(method, server.url + path, json=body)
    assert answer.status_code == 409, answer.text
    assert answer.json()["error_code"] == "RESOURCE_CONFLICT"
    message: str = answer.json()["message"]
    return message


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("runs/log-metric", b"{", 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b"[]", 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b"\xff\xfe", 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b"[" * 100_000, 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b'{"key": "a", "value": "many"}', 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b'{"key": "a", "value": 1}', 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b'{"run_id": "no", "key": "a", "value": 1}', 404, "RESOURCE_DOES_NOT_EXIST"),
        ("runs/log-metric", b'{"run_id": "no", "key": "a", "timestamp": 99999999999999999999}', 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-metric", b'{"run_id": "no", "key": "", "value": 1}', 400, "INVALID_PARAMETER_VALUE"),
        ("runs/log-batch", b"x" * 1_000_001, 400, "INVALID_PARAMETER_VALUE"),
        ("runs/create", b'{"experiment_id": "404"}', 404, "RESOURCE_DOES_NOT_EXIST"),
        ("runs/create", b'{"experiment_id": "\'; --"}', 404, "RESOURCE_DOES_NOT_EXIST"),
        ("runs/search", b'{"experiment_ids": ["1"], "filter": "a ="}', 400, "INVALID_PARAMETER_VALUE"),
        ("runs/search", b'{"experiment_ids": ["1"], "page_token": "x"}', 400, "INVALID_PARAMETER_VALUE"),
        ("runs/search", b'{"experiment_ids": ["1"], "max_results": 0}', 400, "INVALID_PARAMETER_VALUE"),
        ("experiments/create", b"{}", 400, "INVALID_PARAMETER_VALUE"),
        ("experiments/create", b'{"name": "a\\u0000b"}', 400, "INVALID_PARAMETER_VALUE"),
        ("model-versions/create", b'{"name": "m", "source": "s3://x/y"}', 400, "INVALID_PARAMETER_VALUE"),
        ("nothing/here", b"{}", 404, "ENDPOINT_NOT_FOUND"),
    ],
)  # fmt: skip
def test_bad_input_gets_mlflows_error_and_the_server_stays_up(
    server: Running, path: str, body: bytes, status: int, code: str
) -> None:
    answer = CLIENT.post(server.url + API + path, content=body)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    assert answer.json()["message"]
    assert CLIENT.get(server.url + "/health").text == "OK"


@pytest.mark.parametrize("path", ["%2e%2e/%2e%2e/etc/passwd", "a/%2e%2e/b", "a%5cb", "a//b"])
def test_no_artifact_path_leaves_its_place(server: Running, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        answer = CLIENT.request(method, f"{server.url}{FILES}{path}")
        assert answer.status_code == 400, answer.text
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"


def test_an_upload_over_the_limit_is_refused_also_when_its_length_is_not_told(
    server: Running,
) -> None:
    def parts() -> Any:
        for _ in range(6):
            yield b"x" * 1_000_000

    for content in (b"x" * 6_000_000, parts()):
        answer = CLIENT.put(f"{server.url}{FILES}1/r/artifacts/big", content=content)
        assert answer.status_code == 400
    assert server.tracking.get_file("1/r/artifacts/big") is None


def test_a_large_upload_streams_through_and_comes_back_equal(server: Running) -> None:
    content = bytes(range(256)) * 16_000
    url = f"{server.url}{FILES}1/r/artifacts/large.bin"
    assert CLIENT.put(url, content=content).is_success
    assert CLIENT.get(url).content == content


def test_a_version_behind_an_alias_stays_until_the_alias_moves(server: Running) -> None:
    registered(server)
    one = {"name": "late", "version": "1"}
    post(server, "registered-models/alias", {**one, "alias": "champion"})
    path = API + "model-versions/delete"
    assert "champion" in refused(server, "DELETE", path, one)
    assert "champion" in refused(
        server, "DELETE", API + "registered-models/delete", {"name": "late"}
    )
    post(server, "registered-models/alias", {"name": "late", "version": "2", "alias": "champion"})
    assert CLIENT.request("DELETE", server.url + path, json=one).is_success
    assert server.store.get(ModelVersion, "late", 1) is None


def test_a_version_in_the_newest_traffic_plan_stays_and_so_do_its_runs_files(
    server: Running,
) -> None:
    run, place = registered(server)
    version = server.store.get(ModelVersion, "late", 1)
    assert version is not None
    assert version.author == "amy"
    assert version.run == run
    arm = Arm(name="champion", model="late", version=1, artefact=version.artefact, weight=10_000)
    plan = TrafficPlan(
        endpoint="e", revision=1, arms=(arm,), salt="s", reason="r", by="b", created=1
    )
    with server.store.transaction(actor="test") as work:
        work.add(Endpoint(name="e", model="late", label_delay=0, created=1))
        work.add(plan)
    assert "traffic plan 1" in refused(
        server, "DELETE", API + "model-versions/delete", {"name": "late", "version": "1"}
    )
    assert "traffic plan 1" in refused(server, "DELETE", f"{FILES}{place}/model", {})
    other = msgspec.structs.replace(arm, version=2)
    with server.store.transaction(actor="test") as work:
        work.add(msgspec.structs.replace(plan, revision=2, arms=(other,)))
    assert what_stands_on(version, server.store) == []
    assert CLIENT.delete(f"{server.url}{FILES}{place}/model/MLmodel").status_code == 409
    post(server, "runs/delete", {"run_id": run})


@pytest.mark.parametrize("state", ["active", "registered"])
def test_an_active_version_stays_and_a_registered_one_may_go(server: Running, state: str) -> None:
    registered(server)
    with server.store.transaction(actor="test") as work:
        version = work.get(ModelVersion, "late", 1)
        assert version is not None
        work.replace(msgspec.structs.replace(version, state=state, revision=version.revision + 1))
    answer = CLIENT.request(
        "DELETE",
        server.url + API + "model-versions/delete",
        json={"name": "late", "version": "1"},
    )
    assert answer.status_code == (409 if state == "active" else 200)


def test_a_registered_version_keeps_its_files_when_the_runs_files_change(server: Running) -> None:
    _, place = registered(server)
    assert CLIENT.put(f"{server.url}{FILES}{place}/model/MLmodel", content=b"changed").is_success
    uri = CLIENT.get(
        server.url + API + "model-versions/get-download-uri",
        params={"name": "late", "version": "1"},
    ).json()["artifact_uri"]
    own = uri.removeprefix("mlflow-artifacts:/")
    assert CLIENT.get(f"{server.url}{FILES}{own}/MLmodel").content == b"model/MLmodel"
    listed = CLIENT.get(f"{server.url}{FILES[:-1]}", params={"path": own}).json()["files"]
    assert [one["path"] for one in listed] == ["MLmodel", "data"]
    assert CLIENT.put(f"{server.url}{FILES}{own}/MLmodel", content=b"x").status_code == 409


def test_numbers_may_be_texts_as_protos_json_writes_them(server: Running) -> None:
    experiment = post(server, "experiments/create", {"name": "e"})["experiment_id"]
    run = post(server, "runs/create", {"experiment_id": experiment, "start_time": "1700000000000"})
    identity = run["run"]["info"]["run_id"]
    body = {
        "run_id": identity,
        "key": "a",
        "value": "NaN",
        "timestamp": "1700000000001",
        "step": "7",
    }
    post(server, "runs/log-metric", body)
    found = CLIENT.get(server.url + API + "runs/get", params={"run_id": identity}).json()
    assert found["run"]["data"]["metrics"] == [
        {"key": "a", "value": "NaN", "timestamp": 1_700_000_000_001, "step": 7}
    ]
