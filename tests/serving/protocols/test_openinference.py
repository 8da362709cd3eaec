"""The Open Inference Protocol over REST: Triton's own client, and requests as the specification writes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from tests.serving.gateways import Gateway, request
from tests.serving.test_answers import bodies
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from keepwell import __version__
from keepwell.serving.protocols.openinference import LENGTH
from keepwell.serving.protocols.tensors import NUMPY


@pytest.fixture(scope="module")
def client(speaking: Gateway) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(f"127.0.0.1:{speaking.port}", concurrency=2)
    yield made
    made.close()


def whole(values: Any, datatype: str = "FP64", *, binary: bool = True) -> list[Any]:
    """All columns as one tensor."""
    matrix = np.asarray(values)
    made = triton.InferInput("rows", list(matrix.shape), datatype)
    made.set_data_from_numpy(matrix, binary_data=binary)
    return [made]


def columns(
    given: dict[str, tuple[str, Any]], *, binary: bool = True, shape: tuple[int, ...] = (-1,)
) -> list[Any]:
    """A tensor a column."""
    made = []
    for name, (datatype, values) in given.items():
        array = np.asarray(values).reshape(shape)
        made.append(triton.InferInput(name, list(array.shape), datatype))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


def ask(
    gateway: Gateway,
    method: str,
    path: str,
    body: Any = b"",
) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    status, answer = gateway.application.request(method, path, content or None)
    return status, msgspec.json.decode(answer)


def infer(gateway: Gateway, body: Any, endpoint: str = "e") -> tuple[int, Any]:
    return ask(gateway, "POST", f"/v2/models/{endpoint}/infer", body)


def by_name(answer: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one["data"] for one in answer["outputs"]}


def logged(gateway: Gateway, ids: list[str]) -> list[Any]:
    found = {p.id: p for p in gateway.records()[0] if not p.mirror}
    return [found[one] for one in ids]


def test_tritons_client_reads_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("e")
    assert client.is_model_ready("two", "2")
    assert not client.is_model_ready("two", "9")
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("nowhere")
    server = client.get_server_metadata()
    assert (server["name"], server["version"]) == ("keepwell", __version__)
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("two", "1")
    assert model["versions"] == ["1", "2"]
    assert model["inputs"] == [
        {"name": "x", "datatype": "FP64", "shape": [-1]},
        {"name": "flag", "datatype": "BOOL", "shape": [-1]},
        {"name": "dep delay", "datatype": "FP64", "shape": [-1]},
        {"name": "at", "datatype": "BYTES", "shape": [-1]},
    ]
    assert [one["name"] for one in model["outputs"]] == ["prediction", "id", "version", "arm"]
    kinds = client.get_model_metadata("kinds")
    assert kinds["outputs"][0] == {"name": "prediction", "datatype": "FP64", "shape": [-1, 3]}
    for name, version in (("nowhere", ""), ("two", "9"), ("none", "")):
        with pytest.raises(InferenceServerException):
            client.get_model_metadata(name, version)


# Triton's client sends FP16 as binary bytes alone; its JSON form is in the specification's request below.
@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(one, binary) for one in NUMPY for binary in (True, False) if binary or one != "FP16"],
)
def test_a_matrix_of_any_datatype_is_answered_and_logged(client, speaking, datatype, binary):
    matrix = np.array([[1, 1, 0], [0, 0, 1]]).astype(triton_to_np_dtype(datatype))
    name = f"{datatype}-{binary}"
    answer = client.infer(
        "e", whole(matrix, datatype, binary=binary), request_id="r1",
        parameters={"ids": [f"{name}-a", f"{name}-b"], "unit": ["ann", 7]},
    )  # fmt: skip
    assert answer.as_numpy("prediction").tolist() == [11.0, 10.0]
    assert answer.as_numpy("id").tolist() == [f"{name}-a".encode(), f"{name}-b".encode()]
    assert answer.as_numpy("version").tolist() == [1, 1]
    assert answer.as_numpy("arm").tolist() == [b"v1", b"v1"]
    response = answer.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("e", "1", "r1")
    assert response["parameters"] == {"plan": 1}
    first, second = logged(speaking, [f"{name}-a", f"{name}-b"])
    assert first.features == (1.0, 1.0, 0.0)
    assert second.features == (0.0, 0.0, 1.0)
    assert (first.unit, second.unit) == ("ann", "7")
    assert (first.output, first.status, first.version) == (11.0, "ok", 1)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_tensor_a_column_is_answered_and_logged(client, speaking, binary, shape):
    name = f"columns-{binary}-{len(shape)}"
    given = {
        "word": ("BYTES", np.array(["räv", ""], dtype=object)),
        "number": ("INT32", np.array([4, -2], dtype=np.int32)),
        "flag": ("BOOL", np.array([True, False])),
        "user": ("BYTES", np.array(["bo", "cy"], dtype=object)),
    }
    answer = client.infer(
        "words", columns(given, binary=binary, shape=shape),
        parameters={"ids": [f"{name}-a", f"{name}-b"]},
    )  # fmt: skip
    assert answer.as_numpy("prediction").tolist() == [7.0, -2.0]
    first, second = logged(speaking, [f"{name}-a", f"{name}-b"])
    assert (first.features, first.unit) == (("räv", 4.0, True), "bo")
    assert (second.features, second.unit) == (("", -2.0, False), "cy")


def test_nan_in_a_tensor_and_null_in_json_are_missing_values(client, speaking):
    answer = client.infer("e", whole([[np.nan, 1.0, np.nan]]), parameters={"ids": ["gap-1"]})
    assert answer.as_numpy("prediction").tolist() == [110.0]
    status, other = infer(
        speaking,
        {
            "inputs": [{"name": "all", "shape": [1, 3], "datatype": "INT64", "data": [None, 1, None]}],
            "parameters": {"ids": ["gap-2"]},
        },
    )  # fmt: skip
    assert (status, by_name(other)["prediction"]) == (200, [110.0])
    assert [p.features for p in logged(speaking, ["gap-1", "gap-2"])] == [(None, 1.0, None)] * 2


def test_plain_rows_and_tensors_put_the_same_in_the_log(client, speaking):
    rows = [{"x": 1.5, "flag": True, "dep delay": None, "user": "ann"}]
    assert speaking.post({"rows": rows, "ids": ["same-rows"]})[0] == 200
    client.infer("e", whole([[1.5, 1.0, np.nan]]), parameters={"ids": ["same-whole"], "unit": ["ann"]})  # fmt: skip
    given = {
        "x": ("FP64", np.array([1.5])),
        "flag": ("BOOL", np.array([True])),
        "dep delay": ("FP32", np.array([np.nan], dtype=np.float32)),
        "user": ("BYTES", np.array(["ann"], dtype=object)),
    }
    client.infer("e", columns(given), parameters={"ids": ["same-columns"]})
    plain, *others = logged(speaking, ["same-rows", "same-whole", "same-columns"])
    for other in others:
        assert other.features == plain.features
        assert (other.unit, other.arm, other.propensity, other.plan, other.artefact) == (
            plain.unit, plain.arm, plain.propensity, plain.plan, plain.artefact
        )  # fmt: skip


def test_only_the_outputs_that_are_asked_for_come_back_in_their_form(client):
    wanted = [
        triton.InferRequestedOutput("version", binary_data=False),
        triton.InferRequestedOutput("prediction", binary_data=True),
    ]
    answer = client.infer("e", whole([[1.0, 0.0, 0.0]]), outputs=wanted)
    lines = answer.get_response()["outputs"]
    assert [one["name"] for one in lines] == ["version", "prediction"]
    assert "data" in lines[0]
    assert lines[1]["parameters"] == {"binary_data_size": 8}
    assert answer.as_numpy("prediction").tolist() == [11.0]
    with pytest.raises(
        InferenceServerException, match=r"no output 'predictions'.*Did you mean 'prediction'"
    ):
        client.infer("e", whole([[1.0, 0.0, 0.0]]), outputs=[triton.InferRequestedOutput("predictions")])  # fmt: skip


def test_classes_come_back_as_a_matrix(client):
    answer = client.infer("kinds", whole([[0.5], [1.0]]))
    assert answer.as_numpy("prediction").tolist() == [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]


def test_a_name_with_a_space_is_found(client):
    assert client.is_model_ready("with space")
    assert client.infer("with space", whole([[1.0, 0.0, 0.0]])).as_numpy("prediction") == [11.0]


def test_a_request_as_the_specification_writes_it_is_answered(speaking):
    body = {
        "id": "42",
        "parameters": {"priority": 3, "anything": {"else": [1]}, "timeout": None},
        "inputs": [
            {"name": "x", "shape": [2], "datatype": "FP16", "data": [1, 2.5]},
            {"name": "flag", "shape": [2, 1], "datatype": "BOOL", "data": [[True], [False]]},
            {"name": "dep delay", "shape": [2], "datatype": "UINT8", "data": [0, 255], "parameters": {"content_type": "np"}},
        ],
        "outputs": [{"name": "prediction"}],
    }  # fmt: skip
    status, answer = infer(speaking, body)
    assert status == 200
    assert answer["id"] == "42"
    assert answer["outputs"] == [
        {"name": "prediction", "datatype": "FP64", "shape": [2], "data": [11.0, 12.5]}
    ]
    status, answer = infer(speaking, {**body, "id": None, "outputs": None, "parameters": None})
    assert status == 200
    assert "id" not in answer
    assert len(set(by_name(answer)["id"])) == 2, "the gateway makes ids where none are given"


def test_times_and_units_come_as_tensors_or_as_parameters(client, speaking):
    rows = whole([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    at = columns({"at": ("INT64", np.array([1_700_000_000_000_000, 1_700_000_000_000_001]))})
    client.infer("two", [*rows, *at], parameters={"ids": ["t1", "t2"], "unit": '["u1", "u2"]'})
    client.infer(
        "two", rows, parameters={"ids": ["t3", "t4"], "unit": ["u1", "u2"], "time": ["2024-05-01", 5]}
    )  # fmt: skip
    one, two, three, four = logged(speaking, ["t1", "t2", "t3", "t4"])
    assert (one.time, two.time, four.time) == (1_700_000_000_000_000, 1_700_000_000_000_001, 5)
    assert three.time == 1_714_521_600_000_000
    assert (one.arm, two.arm) == (three.arm, four.arm), "a unit meets one arm however it asks"
    with pytest.raises(InferenceServerException, match="Row 0 has no 'at'"):
        client.infer("two", rows)
    with pytest.raises(InferenceServerException, match="an input of this request"):
        client.infer("two", [*rows, *at], parameters={"time": [1, 2]})


def test_rows_that_different_versions_answered_say_so_row_by_row(client):
    rows = whole([[1.0, 1.0, 0.0]] * 50)
    units = [f"u{k}" for k in range(50)]
    answer = client.infer("two", rows, parameters={"unit": units, "time": [0] * 50})
    assert "model_version" not in answer.get_response()
    versions = answer.as_numpy("version").tolist()
    assert set(versions) == {1, 2}
    assert answer.as_numpy("prediction").tolist() == [11.0 if v == 1 else 21.0 for v in versions]


def test_a_pinned_version_is_a_decision_only_where_the_plan_would_have_chosen_it(client, speaking):
    rows = whole([[1.0, 1.0, 0.0]])
    sole = client.infer("e", rows, model_version="1", parameters={"ids": ["pin-sole"]})
    assert "probe" not in sole.get_response()["parameters"]
    assert logged(speaking, ["pin-sole"])[0].propensity == 1.0
    probe = client.infer("two", rows, model_version="2", parameters={"ids": ["pin-probe"]})
    assert probe.get_response()["parameters"]["probe"] is True
    assert probe.as_numpy("prediction").tolist() == [21.0]
    assert (probe.as_numpy("version").tolist(), probe.as_numpy("id").tolist()) == ([2], [b""])
    mirror = client.infer("mirrored", rows, model_version="3", parameters={"ids": ["pin-mirror"]})
    assert mirror.as_numpy("prediction").tolist() == [2.0]
    with pytest.raises(InferenceServerException, match="not loaded") as caught:
        client.infer("two", rows, model_version="9")
    assert caught.value.status() == "404"
    assert not {p.id for p in speaking.records()[0]} & {"pin-probe", "pin-mirror"}


def test_the_fallback_answers_and_says_its_version(client):
    answer = client.infer("safe", whole([[-3.0, 1.0, 0.0]]))
    assert answer.get_response()["model_version"] == "1"
    assert answer.as_numpy("prediction").tolist() == [-6.0]


def test_the_repository_says_what_is_served_and_load_changes_nothing(client):
    index = {(one["name"], one["version"]): one for one in client.get_model_repository_index()}
    assert index["two", "2"]["state"] == "READY"
    assert index["mirrored", "3"]["state"] == "READY"
    assert index["none", ""] == {
        "name": "none", "version": "", "state": "UNAVAILABLE", "reason": "m/1: its evidence is gone",
    }  # fmt: skip
    client.load_model("e")
    for name, said in (("none", "its evidence is gone"), ("nowhere", "no model")):
        with pytest.raises(InferenceServerException, match=said):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="come from its release"):
        client.load_model("e", config='{"backend": "python"}')
    with pytest.raises(InferenceServerException, match="traffic plan"):
        client.unload_model("e")
    with pytest.raises(InferenceServerException, match="no model"):
        client.unload_model("nowhere")
    assert client.is_model_ready("e")
    assert not client.is_model_ready("none")


def test_only_ready_models_are_listed_where_the_caller_asks_so(speaking):
    assert "none" not in {one["name"] for one in ask(speaking, "POST", "/v2/repository/index", {"ready": True})[1]}  # fmt: skip


def test_statistics_count_rows_calls_and_failures_over_all_workers(client, speaking):
    def line() -> dict[str, Any]:
        found: dict[str, Any] = client.get_inference_statistics("failing", "3")["model_stats"][0]
        return found

    speaking.wait_for_counters()
    before = line()
    good = whole([[1.0, 1.0, 0.0]] * 5)
    for _ in range(6):
        client.infer("failing", good)
    with pytest.raises(InferenceServerException, match="negative rows"):
        client.infer("failing", whole([[-1.0, 1.0, 0.0]]))
    speaking.wait_for_counters()
    now = line()
    assert now["inference_count"] - before["inference_count"] == 30
    assert now["execution_count"] - before["execution_count"] == 6
    assert now["inference_stats"]["fail"]["count"] > before["inference_stats"]["fail"]["count"]
    assert now["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert abs(now["last_inference"] / 1000 - time.time()) < 60
    every = client.get_inference_statistics()["model_stats"]
    assert {(one["name"], one["version"]) for one in every} >= {("two", "1"), ("two", "2")}
    with pytest.raises(InferenceServerException, match="no model"):
        client.get_inference_statistics("nowhere")


X = {"name": "all", "shape": [1, 3], "datatype": "FP64", "data": [1.0, 1.0, 0.0]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"{}", "inputs"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": [{**X, "datatype": "FP128"}]}, "FP128"),
        ({"inputs": [{**X, "shape": []}]}, "0 dimensions"),
        ({"inputs": [{**X, "shape": [1, 1, 3]}]}, "3 dimensions"),
        ({"inputs": [{**X, "shape": [-1, 3]}]}, "negative"),
        ({"inputs": [{**X, "shape": [0, 3]}]}, "empty"),
        ({"inputs": [{**X, "shape": [2, 3]}]}, "3 values; its shape [2, 3] has 6"),
        ({"inputs": [{**X, "shape": [10**30, 3]}]}, "more than 10,000 rows"),
        ({"inputs": [{**X, "shape": [1, 10**30]}]}, "10000"),
        ({"inputs": [{**X, "shape": [10_001, 3]}]}, "more than 10,000 rows"),
        ({"inputs": [{**X, "shape": [1.5]}]}, "shape"),
        ({"inputs": [{**X, "shape": [1, 2], "data": [1.0, 1.0]}]}, "no input 'all'"),
        ({"inputs": [{**X, "data": ["a", 1, 1]}]}, "not FP64"),
        ({"inputs": [{**X, "data": [[[1, 1, 0]]]}]}, "not FP64"),
        ({"inputs": [{**X, "data": [[1], [1, 0]]}]}, "not its shape"),
        ({"inputs": [{**X, "data": {}}]}, "not FP64"),
        ({"inputs": [{k: v for k, v in X.items() if k != "data"}]}, "no data"),
        ({"inputs": [{**X, "datatype": "INT8", "data": [300, 1, 1]}]}, "not INT8"),
        ({"inputs": [{**X, "datatype": "UINT64", "data": [-1, 1, 1]}]}, "not UINT64"),
        ({"inputs": [{**X, "datatype": "FP32", "data": [1e300, 1, 1]}]}, "infinite 'x'"),
        ({"inputs": [{**X, "datatype": "FP16", "data": [0, 0, 1e9]}]}, "infinite 'dep delay'"),
        ({"inputs": [{**X, "datatype": "BYTES", "data": ["a", "b", "c"]}]}, "BYTES, which not all columns are"),
        ({"inputs": [X, X]}, "no input 'all'|others are sent|all columns"),
        ({"inputs": [X, {**X, "name": "x", "shape": [1], "data": [1]}]}, "others are sent besides"),
        ({"inputs": [{**X, "name": "x", "shape": [1], "data": [1]}]}, "'flag' is missing, and 1 more"),
        ({"inputs": [X], "parameters": {"ids": ["a", "b"]}}, "2 values in the parameter 'ids' for 1 rows"),
        ({"inputs": [X], "parameters": {"ids": [1]}}, "cannot be in 'ids'"),
        ({"inputs": [X], "parameters": {"ids": "[1"}}, "no JSON list"),
        ({"inputs": [X], "parameters": {"unit": [[]]}}, "cannot be in 'unit'"),
        ({"inputs": [X], "parameters": {"time": [1]}}, "the endpoint has no time"),
        ({"inputs": [X], "parameters": []}, "parameters"),
        ({"inputs": [X], "outputs": [{"name": "prediction"}] * 2}, "twice"),
        ({"inputs": [X], "outputs": [{"name": "prediction", "parameters": {"classification": 2}}]}, "classification"),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 24}}]}, "0 are left behind the header"),
        (b'{"inputs":' + b"[" * 100_000, "nested|not JSON|Expected"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_its_place(speaking, body, said):
    status, answer = infer(speaking, body)
    assert status == 400
    assert any(part in answer["error"] for part in said.split("|")), answer["error"]


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        ("0", "24", "Inference-Header-Content-Length is '0'"),
        ("-1", "24", "is '-1'"),
        ("9" * 30, "24", "is '999"),
        ("99999", "24", "'99999'"),
        ("soon", "24", "'soon'"),
        ("", "23", "23 bytes; FP64 of shape [1, 3] has 24"),
        ("", "25", "25 binary bytes; 24 are left"),
        ("", "-1", "says that it has -1"),
        ("", str(2**70), "24 are left"),
        ("", '"24"', "24 are left"),
        ("", "true", "24 are left"),
    ],
)
def test_binary_bytes_that_do_not_fit_their_header_are_refused(speaking, header, size, said):
    head = (
        '{"inputs":[{"name":"all","shape":[1,3],"datatype":"FP64",'
        f'"parameters":{{"binary_data_size":{size}}}}}]}}'
    ).encode()
    extra = f"{LENGTH.decode()}: {header or len(head)}\r\nconnection: close\r\n"
    answer = speaking.raw(request(head + bytes(24), path="/v2/models/e/infer", extra=extra))
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert said in msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["error"]


def test_binary_bytes_that_no_input_claims_are_refused(speaking):
    head = msgspec.json.encode({"inputs": [X]})
    extra = f"{LENGTH.decode()}: {len(head)}\r\nconnection: close\r\n"
    answer = speaking.raw(request(head + b"1", path="/v2/models/e/infer", extra=extra))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"1 binary bytes belong to no input" in answer


def test_other_refusals_have_their_status(client, speaking):
    assert infer(speaking, {"inputs": [X]}, "nowhere")[0] == 404
    assert infer(speaking, {"inputs": [X]}, "none")[0] == 503
    assert infer(speaking, {"inputs": [{**X, "data": [-1, 0, 0]}]}, "failing")[0] == 503
    assert ask(speaking, "GET", "/v2/models/e/infer")[0] == 405
    assert ask(speaking, "POST", "/v2/models/e/ready")[0] == 405
    assert ask(speaking, "GET", "/v2/nothing")[0] == 404
    assert ask(speaking, "GET", "/v2/models/e/config")[0] == 404
    assert ask(speaking, "GET", "/v2/models/two/versions/9/ready") == (503, {"name": "two", "ready": False})  # fmt: skip
    with pytest.raises(InferenceServerException, match="encoded as 'gzip'"):
        client.infer("e", whole([[1.0, 0.0, 0.0]]), request_compression_algorithm="gzip")


def test_protocols_of_one_connection_are_answered_in_their_order(speaking):
    rows = msgspec.json.encode({"rows": [{"x": 1, "flag": True, "dep delay": 0}]})
    tensor = msgspec.json.encode({"inputs": [X], "outputs": [{"name": "prediction"}]})
    split = msgspec.json.encode({"instances": [[1, True, 0]]})
    sent = b"".join(
        [
            request(rows),
            request(tensor, path="/v2/models/e/infer"),
            request(split, path="/v1/endpoints/e/invocations"),
            request(b"", method="GET", path="/v2"),
            request(b"{", path="/v2/models/e/infer"),
            request(b"{", path="/v1/endpoints/e/invocations"),
            request(rows),
        ]
    )
    answer = speaking.raw(sent, half_close=True)
    read = [msgspec.json.decode(one) for one in bodies(answer)]
    assert [sorted(one) for one in (read[0], read[6])] == [["predictions"]] * 2
    assert by_name(read[1]) == {"prediction": [11.0]}
    assert read[2]["predictions"] == [11.0]
    assert read[3]["name"] == "keepwell"
    assert sorted(read[4]) == ["error"]
    assert read[5]["error_code"] == "BAD_REQUEST"
