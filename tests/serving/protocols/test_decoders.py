"""Whatever comes by a protocol, its decoder reads it or says what is wrong; what it reads fits the desk and the log."""

from __future__ import annotations

import math
import struct
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.serving.gateways import arm, endpoint, linear, native, request
from tests.serving.models import Lengths
from tests.serving.protocols.conftest import WORDS
from tests.serving.test_fuzz import talk

from keepwell.core.errors import InvalidInput, NotFound
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.codec import MAX_ROWS, Decoded
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loader, Serving
from keepwell.serving.editions import Edition, Shelf
from keepwell.serving.log.segments import SegmentWriter
from keepwell.serving.protocols.grpc import GrpcInference, InferRequest, message_of
from keepwell.serving.protocols.mlflow import Invocations
from keepwell.serving.protocols.openinference import LENGTH, OpenInference
from keepwell.serving.protocols.tensors import DATATYPES, NUMPY
from keepwell.serving.telemetry.meters import Meters, Work


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    shelf = Shelf(folder / "editions")
    made = Desk(
        SegmentWriter(folder / "log", name="w"),
        worker="w",
        meters=Meters(folder / "meters", worker="w"),
    )
    plain = arm(1, linear(shelf, 1.0))
    words = arm(2, native(shelf, Lengths(), WORDS, [["a", 1.0, True]]))
    edition = Edition(
        number=1,
        endpoints=(
            endpoint(arms=[plain], log="group"),
            endpoint("timed", arms=[plain], log="group", time="at"),
            endpoint("words", arms=[words], log="group", unit="word", time="at"),
        ),
    )
    made.endpoints = Loader(shelf).load(edition)
    made.edition = 1
    return made


def checked(serving: Serving, read: Any) -> Decoded | None:
    """Run a decoder; see that it refuses in its own words or gives rows that fit."""
    try:
        decoded: Decoded = read()
    except (InvalidInput, NotFound):
        return None
    assert serving.codec is not None
    assert decoded.matrix is not None
    n = len(decoded)
    assert 0 < n <= MAX_ROWS
    assert decoded.matrix.shape == (n, len(serving.codec.names))
    if decoded.features is None:
        assert not np.isinf(decoded.matrix).any()
    else:
        assert len(decoded.features) == n
        for row in decoded.features:
            assert all(not isinstance(v, float) or math.isfinite(v) for v in row)
    assert len(decoded.ids) in {0, n}
    assert len(decoded.units) in {0, n}
    if serving.edition.time and not decoded.probe:
        assert len(decoded.times) == n
    # What was accepted must also fit the log.
    msgspec.msgpack.encode((decoded.features, decoded.ids, decoded.units, decoded.times))
    return decoded


endpoints = st.sampled_from(["e", "timed", "words"])
dims = st.one_of(
    st.integers(-2, 5), st.sampled_from([0, 1, 3, -1, 10_001, 2**31, 2**63, 2**64, 10**30])
)
shapes = st.one_of(st.sampled_from([[2, 3], [1, 3], [2], [2, 1], [3]]), st.lists(dims, max_size=4))
names = st.sampled_from(["x", "flag", "dep delay", "user", "at", "all", "word", "number", "", "ü"])
numbers = st.one_of(
    st.floats(), st.integers(-(2**70), 2**70), st.sampled_from([0, -0.0, 1e308, 5e-324])
)
values = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=4))
datas = st.one_of(
    values, st.lists(values, max_size=7), st.lists(st.lists(values, max_size=4), max_size=3),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
)  # fmt: skip
parameters = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["ids", "unit", "time", "binary_data_output", "other"]), datas, max_size=3),
    st.just({"unit": ["a", "b"], "time": ["2024-01-01", 0]}),
)  # fmt: skip
raws = st.one_of(
    st.binary(max_size=60),
    st.just(bytes(24)),
    st.just(struct.pack("<6d", 1, math.nan, math.inf, -1, 0, 5e-324)),
    st.just(struct.pack("<6d", *range(6))),
    st.just(b"\x03\x00\x00\x00abc\x00\x00\x00\x00"),
    st.just(b"\xff\xff\xff\xffabc"),
    st.just(b"\x01\x00\x00\x00\xff\x01\x00\x00"),
)
datatypes = st.one_of(st.sampled_from(DATATYPES), st.sampled_from(["", "FP8", "BF16", "bytes"]))
versions = st.sampled_from(["", "1", "2", "-1", "01", "¹", "9" * 400])


def json_of(value: Any) -> bytes:
    """JSON of values that JSON has, the others as null."""
    return msgspec.json.encode(value)


@st.composite
def rest_requests(draw: st.DrawFn) -> tuple[bytes, dict[bytes, bytes]]:
    lines: list[dict[str, Any]] = []
    behind = b""
    for _ in range(draw(st.integers(0, 4))):
        line: dict[str, Any] = {
            "name": draw(names), "datatype": draw(datatypes), "shape": draw(shapes),
        }  # fmt: skip
        if draw(st.booleans()):
            raw = draw(raws)
            behind += raw
            size = draw(st.one_of(st.just(len(raw)), st.sampled_from([-1, 0, 2**40, None, "8", True])))  # fmt: skip
            line["parameters"] = {"binary_data_size": size}
        else:
            line["data"] = draw(datas)
        lines.append(line)
    body: dict[str, Any] = {"inputs": lines, "parameters": draw(parameters)}
    if draw(st.booleans()):
        body["outputs"] = [{"name": draw(st.sampled_from(["prediction", "id", "score"]))}]
    head = json_of(body)
    length = draw(st.one_of(st.just(len(head)), st.integers(-1, len(head) + 80)))
    headers = {LENGTH: str(length).encode()} if behind or draw(st.booleans()) else {}
    return head + behind, headers


@settings(deadline=None, max_examples=600)
@given(endpoints, rest_requests(), versions)
def test_whatever_tensors_come_over_rest(desk, name, sent, version):
    serving = desk.endpoints[name]
    body, headers = sent
    checked(serving, lambda: OpenInference(version).decode(serving, body, headers))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80), st.one_of(st.none(), st.binary(max_size=12)))
@example(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":' + b"[" * 5000, None)
@example(b'{"inputs":' + b'{"a":' * 5000, b"100")
def test_whatever_bytes_come_over_rest(desk, body, length):
    serving = desk.endpoints["e"]
    headers = {} if length is None else {LENGTH: length}
    checked(serving, lambda: OpenInference("").decode(serving, body, headers))


@st.composite
def grpc_requests(draw: st.DrawFn) -> Any:
    made = InferRequest(model_name="e", model_version=draw(versions))
    for _ in range(draw(st.integers(0, 4))):
        shape = [d for d in draw(shapes) if -(2**63) <= d < 2**63]
        one = made.inputs.add(name=draw(names), datatype=draw(datatypes), shape=shape)
        kind = draw(st.sampled_from(["none", "fp64", "fp32", "int", "bool", "bytes", "uint64"]))
        size = draw(st.integers(0, 7))
        if kind in {"fp64", "fp32"}:
            floats = st.floats(width=64 if kind == "fp64" else 32)
            given_floats = draw(st.lists(floats, min_size=size, max_size=size))
            getattr(one.contents, f"{kind}_contents").extend(given_floats)
        elif kind == "int":
            one.contents.int_contents.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=size, max_size=size)))  # fmt: skip
        elif kind == "uint64":
            one.contents.uint64_contents.extend([2**64 - 1] * size)
        elif kind == "bool":
            one.contents.bool_contents.extend([True] * size)
        elif kind == "bytes":
            one.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=4), max_size=size)))
    for _ in range(draw(st.sampled_from([0, 0, len(made.inputs), 1]))):
        made.raw_input_contents.append(draw(raws))
    for key in ("ids", "unit", "time", "other"):
        if draw(st.booleans()):
            parameter = made.parameters[key]
            match draw(st.integers(0, 4)):
                case 0:
                    parameter.string_param = draw(st.sampled_from(["a", "[", '["a","b"]', "[1,2]", "[" * 5000]))  # fmt: skip
                case 1:
                    parameter.int64_param = draw(st.integers(-(2**63), 2**63 - 1))
                case 2:
                    parameter.double_param = draw(st.floats())
                case 3:
                    parameter.bool_param = True
    return made


@settings(deadline=None, max_examples=600)
@given(endpoints, grpc_requests())
def test_whatever_messages_come_over_grpc(desk, name, message):
    serving = desk.endpoints[name]
    checked(serving, lambda: GrpcInference(message).decode(serving, b"", {}))


@settings(deadline=None, max_examples=600)
@given(
    endpoints,
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            json_of,
            st.dictionaries(
                st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params", "x"]),
                st.one_of(
                    datas,
                    st.fixed_dictionaries({"data": datas}, optional={"columns": st.lists(names, max_size=4)}),
                    st.dictionaries(names, datas, max_size=5),
                    st.lists(st.dictionaries(names, values, max_size=5), max_size=3),
                    st.just({"x": [1, 2], "flag": [1, 0], "dep delay": [None, 2.5], "at": [0, 1]}),
                    st.just([{"x": 1, "flag": True, "dep delay": None, "at": "2024-01-01"}]),
                    st.just([{"word": "a", "number": 1, "flag": True, "at": 10**15}]),
                ),
                min_size=1, max_size=2,
            ),
        ),
        st.sampled_from([b'{"instances":[[NaN,1,2]]}', b'{"instances":[[NaN,-Infinity,2]]}', b'{"a":NaN' + b"[" * 5000]),
    ),
)  # fmt: skip
def test_whatever_json_comes_to_be_scored(desk, name, body):
    serving = desk.endpoints[name]
    checked(serving, lambda: Invocations().decode(serving, body, {}))


cells = st.one_of(
    st.sampled_from(["", "NaN", "inf", "-inf", "1", "1e999", "true", "2024-01-01", '"', '"a,b"', "\x00"]),
    st.text(max_size=3),
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    endpoints,
    st.sampled_from(["x,flag,dep delay", "x,flag,dep delay,at,user", "word,number,flag,at", "", '"', "\ufeffx,flag,dep delay"]),
    st.lists(st.lists(cells, max_size=5), max_size=3),
)  # fmt: skip
def test_whatever_csv_comes_to_be_scored(desk, name, head, lines):
    serving = desk.endpoints[name]
    text = "\n".join([head, *(",".join(line) for line in lines)])
    body = text.encode("utf-8", "surrogatepass")
    checked(
        serving, lambda: Invocations().decode(serving, body, {b"content-type": b"text/csv"})
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(NUMPY)),
    st.integers(1, 5),
    st.data(),
)
def test_a_matrix_is_read_as_it_was_written(desk, datatype, n, data):
    kind = np.dtype(NUMPY[datatype])
    raw = data.draw(st.binary(min_size=n * 3 * kind.itemsize, max_size=n * 3 * kind.itemsize))
    with np.errstate(invalid="ignore"):
        matrix = np.frombuffer(raw, dtype=kind).reshape(n, 3).astype(np.float64)
    if datatype == "BOOL":
        matrix = (matrix != 0).astype(np.float64)
    serving = desk.endpoints["e"]
    head = json_of(
        {"inputs": [{"name": "all", "datatype": datatype, "shape": [n, 3], "parameters": {"binary_data_size": len(raw)}}]}
    )  # fmt: skip
    headers = {LENGTH: str(len(head)).encode()}
    read = checked(serving, lambda: OpenInference("").decode(serving, head + raw, headers))
    if np.isinf(matrix).any():
        assert read is None
        return
    assert read is not None
    assert read.matrix is not None
    assert np.array_equal(read.matrix, matrix, equal_nan=True)
    assert read.features is None, "a matrix of numbers is logged as it is"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=4), st.integers(-4, 4), st.binary(max_size=3))  # fmt: skip
def test_bytes_are_read_whole_or_refused(desk, texts, cut, more):
    raw = b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in texts)
    sent = (raw[:cut] if cut < 0 else raw) + (more if cut > 0 else b"")
    n = len(texts)
    serving = desk.endpoints["words"]
    lines: list[dict[str, Any]] = [
        {"name": "word", "datatype": "BYTES", "shape": [n], "parameters": {"binary_data_size": len(sent)}},
        {"name": "number", "datatype": "INT8", "shape": [n], "data": [1] * n},
        {"name": "flag", "datatype": "BOOL", "shape": [n], "data": [True] * n},
    ]  # fmt: skip
    head = json_of({"inputs": lines, "parameters": {"time": [0] * n}})
    headers = {LENGTH: str(len(head)).encode()}
    read = checked(serving, lambda: OpenInference("").decode(serving, head + sent, headers))
    assert (read is not None) == (sent == raw)
    if read is not None:
        assert [row[0] for row in read.features or []] == texts


def test_requests_of_one_tick_share_a_model_call_whatever_protocol_they_came_by(desk):
    message = InferRequest(model_name="e")
    message.inputs.add(name="all", datatype="FP32", shape=[2, 3])
    message.raw_input_contents.append(np.array([[3, 1, 0], [4, 1, 0]], dtype="<f4").tobytes())
    tensor = b'{"inputs":[{"name":"all","shape":[1,3],"datatype":"FP64","data":[2,1,null]}]}'
    now = time.perf_counter()
    asks = [
        Ask(endpoint="e", body=b'{"row":{"x":1,"flag":true,"dep delay":null}}', began=now),
        Ask(endpoint="e", body=tensor, began=now, protocol=OpenInference("")),
        Ask(endpoint="e", body=b"", began=now, protocol=GrpcInference(message)),
        Ask(endpoint="e", body=b'{"instances":[[5,null,0]]}', began=now, protocol=Invocations()),
        Ask(endpoint="e", body=b'{"instances":[[5]]}', began=now, protocol=Invocations()),
    ]
    before = desk.meters.work().get(("e", 1), Work())
    desk.answer(asks)
    after = desk.meters.work()["e", 1]
    assert [ask.status for ask in asks] == [200, 200, 200, 200, 400]
    assert (after.calls - before.calls, after.rows - before.rows) == (1, 5)
    assert msgspec.json.decode(asks[0].answer)["predictions"][0]["prediction"] == 2.0
    assert msgspec.json.decode(asks[1].answer)["outputs"][0]["data"] == [3.0]
    answer = message_of("ModelInferResponse").FromString(asks[2].answer)
    assert np.frombuffer(answer.raw_output_contents[0]).tolist() == [4.0, 5.0]
    assert msgspec.json.decode(asks[3].answer)["predictions"] == [6.0]


paths = st.sampled_from(
    [
        "/v2", "/v2/", "/v2/models", "/v2/models/", "/v2/models/e", "/v2/models/%zz/ready", "/v2/models/e/versions",
        "/v2/models/e/versions/1/infer", "/v2/models/words/infer", "/v2/models/e/stats", "/v2/models/stats",
        "/v2/repository/index", "/v2/repository/models/e/load", "/v2/repository/models/e/unload", "/v2x",
        "/invocations", "/v1/endpoints/e/invocations", "/v1/endpoints//invocations", "/ping", "/version",
    ]
)  # fmt: skip
heads = st.sampled_from(
    ["", "content-type: text/csv\r\n", "content-type: ;;=\r\n", "content-encoding: br\r\n", "inference-header-content-length: 7\r\n"]
)  # fmt: skip
contents = st.one_of(
    st.binary(max_size=60),
    st.just(b'{"inputs":[{"name":"a","shape":[1,3],"datatype":"FP64","data":[1,2,3]}]}'),
    st.just(b'{"instances":[[1,2,3]]}'),
    st.just(b'{"parameters":{"a":1},"ready":3}'),
)


@settings(deadline=None, max_examples=250)
@given(
    st.lists(
        st.builds(
            lambda body, path, method, extra: request(body, path=path, method=method, extra=extra),
            contents, paths, st.sampled_from(["GET", "POST", "HEAD", "DELETE"]), heads,
        ),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_whatever_is_asked_of_the_protocols_the_connection_answers(desk, parts):
    wire, problems = talk(desk, parts)
    assert problems == []
    assert wire.written.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in wire.written
