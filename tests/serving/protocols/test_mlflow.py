"""MLflow's scoring protocol: MLflow's own client, and requests as its documentation writes them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.serving.gateways import Gateway, request

from keepwell import __version__

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("KEEPWELL_MLFLOW_PYTHON", ROOT / ".venv-mlflow/bin/python"))


def post(
    gateway: Gateway,
    body: Any,
    kind: str = "application/json",
    path: str = "/invocations",
    extra: str = "",
) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    header = (f"content-type: {kind}\r\n" if kind else "") + f"connection: close\r\n{extra}"
    answer = gateway.raw(request(content, path=path, extra=header))
    return int(answer[9:12]), msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])


def test_mlflows_own_client_scores_frames_arrays_and_csv(
    single: Gateway, speaking: Gateway, tmp_path: Path
):
    assert PYTHON.exists(), f"{PYTHON} is missing; run `make setup-mlflow`"
    done = subprocess.run(
        [
            PYTHON, Path(__file__).with_name("mlflow_session.py"),
            str(single.port), str(speaking.port), tmp_path / "found.json",
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_PYTHON_REFRESH": "quiet"},
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    both = [11.0, 110.0]
    assert found["version"] == __version__
    assert found["frame"] == both
    assert found["array"] == found["columns"][1]["predictions"] == [11.0, 12.0]
    assert found["with units"] == both
    for form in ("csv", "csv with index", "split", "records", "instances", "named"):
        assert found[form][0] == 200, found[form]
        assert found[form][1]["predictions"] == both, form
        assert len(set(found[form][1]["ids"])) == 2
        assert found[form][1]["versions"] == [1, 1]
    assert "error code 400" in found["missing"]
    assert "The column 'x' is missing" in found["missing"]
    assert "error code 404" in found["which"]
    assert "/v1/endpoints/NAME/invocations" in found["which"]
    assert found["words"] == found["words as csv"] == [4.0, 102.0]
    assert found["classes"] == [[0.5, 0.25, 0.25]]
    # Columns that no signature names: ignored as by MLflow's own server, which warns in its log where we tell the caller.
    ours, real = found["ours"], found["real"]
    strict = {
        "a field"
    }  # a misspelled 'params' would lose its ids unnoticed: refused here, ignored there
    for name in ours:
        if name not in strict:
            assert ours[name][:2] == real[name][:2] or ours[name][0] == real[name][0] == 400, name
    assert (ours["a field"][0], real["a field"][0]) == (400, 200)
    assert {name for name, (status, *_) in real.items() if status == 400} == {"twice a known one"}
    assert ours["records"] == [200, [11.0], ["more", "besides"]]
    assert (ours["another order"][1], ours["twice"][2]) == ([15.0], ["m"])
    assert found["frame ignored"] == ["besides"]
    assert found["units ignored"] == ["besides"], "the unit is no column of the model, and is used"
    logged = {p.id: p for p in single.records()[0]}
    assert logged["mlflow-a"].features == (1.0, True, 5.0)
    assert logged["mlflow-b"].features == (None, False, None)
    assert logged["mlflow-c"].unit == "ann"


@pytest.mark.parametrize(
    ("body", "predictions"),
    [
        ({"instances": [{"x": 1, "flag": True, "dep delay": None}]}, [11.0]),
        ({"instances": [[1, True, None], [None, None, 2]]}, [11.0, 110.0]),
        ({"inputs": {"x": [1, 2], "flag": [True, False], "dep delay": [[1], [2]]}}, [11.0, 12.0]),
        ({"inputs": {"x": 1, "flag": 0, "dep delay": 0}}, [11.0]),
        ({"inputs": [[1, 0, 0]], "params": None}, [11.0]),
        ({"dataframe_split": {"data": [[1, 0, 0]]}}, [11.0]),
        ({"dataframe_split": {"index": [9], "columns": ["flag", "dep delay", "x"], "data": [[0, 0, 1]]}}, [11.0]),
        ({"dataframe_records": [{"x": 1, "flag": 0, "dep delay": 0}, {"x": 2, "flag": 1, "dep delay": 0, "more": 1}]}, [11.0, 12.0]),
    ],
)  # fmt: skip
def test_each_form_of_the_documentation_is_scored(single, body, predictions):
    status, answer = post(single, body)
    assert (status, answer["predictions"]) == (200, predictions)
    status, answer = post(single, body, kind="")
    assert (status, answer["predictions"]) == (200, predictions), "JSON is what is meant otherwise"


def test_one_column_takes_a_plain_list(speaking):
    status, answer = post(speaking, {"instances": [0.5, 1]}, path="/v1/endpoints/kinds/invocations")
    assert (status, answer["predictions"][1]) == (200, [1.0, 0.0, 0.0])


def test_times_come_as_a_column(speaking):
    body = (
        b"x,flag,dep delay,at,user\n1,true,,2024-05-01T06:00:00Z,ann\n1,0,,1700000000000000,ann\n"
    )
    status, answer = post(speaking, body, "text/csv", "/v1/endpoints/two/invocations")
    assert status == 200
    found = {p.id: p for p in speaking.records()[0]}
    assert [found[one].time for one in answer["ids"]] == [1_714_543_200_000_000, 1_700_000_000_000_000]  # fmt: skip
    assert found[answer["ids"][0]].unit == "ann"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"instances":[[NaN,0,0]', "not JSON"),
        (b'{"instances":[[NaN,Infinity,0]]}', "Infinity"),
        (b'{"instances":[[1e999,0,0]]}', "not JSON|out of range"),
        ([1], "object"),
        ({}, "none of the forms"),
        ({"columns": ["x"], "data": [[1]]}, "unknown field `columns`"),
        ({"instances": [[1, 0, 0]], "inputs": [[1, 0, 0]]}, "instances and inputs"),
        ({"instances": []}, "no rows"),
        ({"instances": [1]}, "no list of 3 values"),
        ({"instances": [[1, 0]]}, "no list of 3 values"),
        ({"instances": [[1, 0, 0], {"x": 1}]}, "Row 1"),
        ({"instances": [["one", 0, 0]]}, "row 0, column 'x'"),
        ({"instances": [[0, 0, 0], [0, 0, [1]]]}, "row 1, column 'dep delay'"),
        ({"instances": [[0, 0, 0]] * 10_001}, "more than 10,000"),
        ({"inputs": {"x": [1, 2], "flag": [1], "dep delay": [1, 2]}}, "others have 2"),
        ({"inputs": {}}, "no rows"),
        ({"dataframe_split": {"columns": ["x", "flag"], "data": [[1, 1]]}}, "'dep delay' is missing"),
        ({"dataframe_split": {"columns": ["x", "flag", "dep delay"], "data": [[1, 1]]}}, "2 values for 3 columns"),
        ({"dataframe_split": {"columns": ["x", "x", "flag", "dep delay"], "data": [[1, 1, 1, 1]]}}, "twice"),
        ({"dataframe_split": {"columns": ["x"]}}, "data"),
        ({"dataframe_records": [[1, 0, 0]]}, "dataframe_records"),
        ({"instances": [[1, 0, 0]], "params": {"ids": ["a", "b"]}}, "2 ids for 1 rows"),
        ({"instances": [[1, 0, 0]], "params": {"ids": [1]}}, "no list of texts"),
        (b'{"instances":' + b"[" * 100_000, "nested|not JSON|Expected"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_as_mlflow_refuses_it(single, body, said):
    status, answer = post(single, body)
    assert status == 400
    assert answer["error_code"] == "BAD_REQUEST"
    assert any(part in answer["message"] for part in said.split("|")), answer["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no rows"),
        (b"x,flag,dep delay\n", "no rows"),
        (b"x,flag\n1,1\n", "'dep delay' is missing"),
        (b"x,x,flag,dep delay\n1,1,1,1\n", "twice"),
        (b"x,flag,dep delay\n1,1\n", "Line 2 has 2 values for 3 columns"),
        (b"x,flag,dep delay\none,1,1\n", "Row 0 has the 'x' 'one'"),
        (b"x,flag,dep delay\n1_0,1,1\n", "Row 0 has the 'x' '1_0'"),
        (b"x,flag,dep delay\n1,1,inf\n", "infinite 'dep delay'"),
        (b'x,flag,dep delay\n"1,1,1\n', "not CSV"),
        (b"x,flag,dep delay\n" + b"1,1,1\n" * 10_001, "more than 10,000"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x,flag,dep delay\n1,1,\x00\n", "Row 0 has the 'dep delay'|not CSV"),
    ],
)
def test_bad_csv_is_refused_with_its_line(single, body, said):
    status, answer = post(single, body, "text/csv")
    assert status == 400
    assert any(part in answer["message"] for part in said.split("|")), answer["message"]


def test_other_refusals_have_their_status(single, speaking):
    good = {"instances": [[1, 0, 0]]}
    assert post(single, good, "application/vnd.apache.parquet")[0] == 415
    assert post(single, good, "application/json; charset=latin-1")[0] == 415
    assert post(single, good, extra="content-encoding: gzip\r\n")[0] == 415
    assert post(single, good, path="/v1/endpoints/onyl/invocations") == (
        404,
        {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "There is no endpoint 'onyl'. Did you mean 'only'?"},
    )  # fmt: skip
    status, answer = post(speaking, good, path="/v1/endpoints/none/invocations")
    assert (status, answer["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    negative = {"instances": [[-1, 0, 0]]}
    status, answer = post(speaking, negative, path="/v1/endpoints/failing/invocations")
    assert (status, "negative rows" in answer["message"]) == (503, True)
    assert single.application.request("GET", "/invocations")[0] == 405
    assert single.application.request("POST", "/ping", b"x")[0] == 404


def test_health_answers_both_names(single):
    assert single.application.request("GET", "/ping") == (200, b"\n")
    assert single.application.request("GET", "/health") == (200, b"\n")
