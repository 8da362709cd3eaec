"""The Open Inference Protocol over gRPC: Triton's own client, and calls that only a broken one would make."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from tests.serving import gateways
from tests.serving.gateways import Gateway
from tests.stories.projects import keepwell, wait_until, with_free_ports
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from keepwell.core.errors import Unavailable
from keepwell.core.settings import ServerSettings
from keepwell.serving import protocols
from keepwell.serving.gateway import _grpc_socket
from keepwell.serving.protocols.grpc import SERVICE, InferRequest, message_of
from keepwell.serving.protocols.tensors import NUMPY
from keepwell.serving.sockets import reserve


@pytest.fixture(scope="module")
def client(speaking: Gateway) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(speaking.grpc)
    yield made
    made.close()


@pytest.fixture(scope="module")
def stub(speaking: Gateway) -> Iterator[Any]:
    with grpc.insecure_channel(speaking.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def whole(values: Any, datatype: str = "FP64") -> list[Any]:
    matrix = np.asarray(values)
    made = triton.InferInput("rows", list(matrix.shape), datatype)
    made.set_data_from_numpy(matrix)
    return [made]


def column(name: str, datatype: str, values: list[Any], dtype: Any) -> Any:
    made = triton.InferInput(name, [len(values)], datatype)
    return made.set_data_from_numpy(np.array(values, dtype=dtype))


def logged(gateway: Gateway, identity: str) -> Any:
    (found,) = [p for p in gateway.records()[0] if p.id == identity and not p.mirror]
    return found


def asked(name: str = "e", **fields: Any) -> Any:
    """A request with contents instead of raw bytes, which Triton's client never sends."""
    made = service_pb2.ModelInferRequest(model_name=name, **fields)
    one = made.inputs.add(name="rows", datatype="FP64", shape=[1, 3])
    one.contents.fp64_contents.extend([1.0, 1.0, 0.0])
    return made


def test_our_messages_have_the_names_numbers_and_types_of_tritons():
    def fields(given: Any) -> dict[str, Any]:
        return {
            f.name: (f.number, f.type, f.type_name, f.label) for f in given.field
        }  # fmt: skip

    theirs = descriptor_pb2.FileDescriptorProto.FromString(service_pb2.DESCRIPTOR.serialized_pb)
    known = {one.name: one for one in theirs.message_type}
    ours = descriptor_pb2.FileDescriptorProto()
    InferRequest.DESCRIPTOR.file.CopyToProto(ours)
    assert len(ours.message_type) > 20
    for one in ours.message_type:
        assert fields(one).items() <= fields(known[one.name]).items(), one.name
        nested = {n.name: fields(n) for n in known[one.name].nested_type}
        for inner in one.nested_type:
            assert fields(inner) == nested[inner.name]
    methods = {m.name: (m.input_type, m.output_type) for m in ours.service[0].method}
    assert methods.items() <= {m.name: (m.input_type, m.output_type) for m in theirs.service[0].method}.items()  # fmt: skip


def test_the_proto_file_and_its_compiled_form_say_the_same():
    text = files(protocols).joinpath("inference.proto").read_text()
    ours = descriptor_pb2.FileDescriptorProto()
    InferRequest.DESCRIPTOR.file.CopyToProto(ours)
    compiled: list[tuple[str, int]] = []
    waiting = list(ours.message_type)
    while waiting:
        one = waiting.pop()
        if not one.options.map_entry:
            compiled += [(f.name, f.number) for f in one.field]
            waiting += one.nested_type
    written = re.findall(
        r"^\s*(?:message \w+ \{ )?[\w<>, .]+ (\w+) = (\d+);", text, flags=re.MULTILINE
    )
    assert len(written) > 80
    assert sorted((name, int(number)) for name, number in written) == sorted(compiled)


def test_tritons_client_reads_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("e", "1")
    assert not client.is_model_ready("two", "9")
    assert not client.is_model_ready("none")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.is_model_ready("nowhere")
    assert client.get_server_metadata().name == "keepwell"
    model = client.get_model_metadata("words")
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [
        ("word", "BYTES", [-1]), ("number", "INT64", [-1]), ("flag", "BOOL", [-1]),
    ]  # fmt: skip
    assert list(model.versions) == ["1"]
    assert [one.name for one in model.outputs] == ["prediction", "id", "version", "arm"]


@pytest.mark.parametrize("datatype", NUMPY)
def test_a_matrix_of_any_datatype_is_answered_and_logged(client, speaking, datatype):
    matrix = np.array([[1, 1, 0]]).astype(triton_to_np_dtype(datatype))
    name = f"grpc-{datatype}"
    answer = client.infer(
        "e", whole(matrix, datatype), request_id="r1", parameters={"ids": name, "unit": "ann"}
    )
    assert answer.as_numpy("prediction").tolist() == [11.0]
    assert answer.as_numpy("id").tolist() == [name.encode()]
    assert answer.as_numpy("version").tolist() == [1]
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("e", "1", "r1")
    assert response.parameters["plan"].int64_param == 1
    record = logged(speaking, name)
    assert (record.features, record.unit, record.output) == ((1.0, 1.0, 0.0), "ann", 11.0)


def test_a_tensor_a_column_and_lists_in_parameters(client, speaking):
    inputs = [
        column("word", "BYTES", ["räv", ""], object),
        column("number", "INT16", [4, -2], np.int16),
        column("flag", "BOOL", [True, False], bool),
        column("user", "BYTES", ["bo", "cy"], object),
    ]
    answer = client.infer("words", inputs, parameters={"ids": '["grpc-a", "grpc-b"]'})
    assert answer.as_numpy("prediction").tolist() == [7.0, -2.0]
    record = logged(speaking, "grpc-a")
    assert (record.features, record.unit) == (("räv", 4.0, True), "bo")


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, True, False]),
        ("INT8", "int_contents", [1, 1, 0]),
        ("INT32", "int_contents", [1, 1, 0]),
        ("INT64", "int64_contents", [1, 1, 0]),
        ("UINT16", "uint_contents", [1, 1, 0]),
        ("UINT64", "uint64_contents", [1, 1, 0]),
        ("FP32", "fp32_contents", [1.0, 1.0, 0.0]),
        ("FP64", "fp64_contents", [1.0, 1.0, 0.0]),
    ],
)
def test_contents_are_answered_with_contents(stub, datatype, field, values):
    request = service_pb2.ModelInferRequest(model_name="e", id="7")
    one = request.inputs.add(name="rows", datatype=datatype, shape=[1, 3])
    getattr(one.contents, field).extend(values)
    answer = stub.ModelInfer(request)
    assert answer.id == "7"
    outputs = {one.name: one for one in answer.outputs}
    assert list(outputs["prediction"].contents.fp64_contents) == [11.0]
    assert list(outputs["version"].contents.int64_contents) == [1]
    assert list(outputs["arm"].contents.bytes_contents) == [b"v1"]
    assert not answer.raw_output_contents


def test_contents_of_bytes_and_requested_outputs(stub):
    request = service_pb2.ModelInferRequest(model_name="words")
    for name, datatype, field, value in (
        ("word", "BYTES", "bytes_contents", b"abcd"),
        ("number", "FP32", "fp32_contents", 2.0),
        ("flag", "UINT8", "uint_contents", 1),
    ):
        one = request.inputs.add(name=name, datatype=datatype, shape=[1])
        getattr(one.contents, field).append(value)
    request.outputs.add(name="prediction")
    answer = stub.ModelInfer(request)
    assert [one.name for one in answer.outputs] == ["prediction"]
    assert list(answer.outputs[0].contents.fp64_contents) == [6.0]


def test_a_pinned_version_outside_the_plan_is_probed_and_not_logged(client, speaking):
    rows = whole([[1.0, 1.0, 0.0]])
    answer = client.infer("two", rows, model_version="2", parameters={"ids": "grpc-probe"})
    assert answer.get_response().parameters["probe"].bool_param is True
    assert answer.as_numpy("prediction").tolist() == [21.0]
    assert "grpc-probe" not in {p.id for p in speaking.records()[0]}
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.infer("two", rows, model_version="9")


def test_the_repository_and_statistics(client, speaking):
    index = {
        (one.name, one.version): one.state for one in client.get_model_repository_index().models
    }
    assert index["two", "2"] == "READY"
    assert index["none", ""] == "UNAVAILABLE"
    client.load_model("e")
    for call, said in (
        (lambda: client.load_model("none"), "FAILED_PRECONDITION.*evidence is gone"),
        (lambda: client.load_model("nowhere"), "NOT_FOUND"),
        (lambda: client.load_model("e", config="{}"), "INVALID_ARGUMENT.*come from its release"),
        (lambda: client.unload_model("e"), "FAILED_PRECONDITION.*traffic plan"),
    ):
        with pytest.raises(InferenceServerException, match=said):
            call()
    client.infer("e", whole([[1.0, 1.0, 0.0]]))
    speaking.wait_for_counters()
    line = client.get_inference_statistics("e").model_stats[0]
    assert line.inference_count
    assert line.execution_count <= line.inference_count
    assert line.inference_stats.compute_infer.ns > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.ClearField("inputs"), "no inputs"),
        (lambda r: r.inputs[0].shape.append(1), "3 dimensions"),
        (lambda r: r.inputs[0].ClearField("shape"), "0 dimensions"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "negative"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 0), "empty"),
        (lambda r: r.inputs[0].shape.__setitem__(1, 2**62), "3 values"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "more than 10,000 rows"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "no contents"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP32"), "0 values"),
        (lambda r: setattr(r.inputs[0], "datatype", "TEXT"), "datatype 'TEXT'"),
        (lambda r: r.inputs[0].contents.fp64_contents.append(1), "4 values"),
        (lambda r: r.inputs[0].contents.fp64_contents.__setitem__(0, float("inf")), "infinite 'x'"),
        (lambda r: r.raw_input_contents.append(bytes(24)), "both contents and raw"),
        (lambda r: r.raw_input_contents.extend([b"", b""]), "2 raw_input_contents for 1 inputs"),
        (lambda r: r.outputs.add(name="score"), "no output 'score'"),
        (lambda r: r.parameters["ids"].CopyFrom(service_pb2.InferParameter(int64_param=3)), "cannot be in 'ids'"),
        (lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(service_pb2.InferParameter(string_param="r")), "shared memory"),
    ],
)  # fmt: skip
def test_bad_input_is_an_invalid_argument_with_its_place(stub, change, said):
    request = asked()
    change(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in caught.value.details()


def test_other_refusals_have_their_code(stub):
    assert list(stub.ModelInfer(asked()).outputs)
    for request, code in (
        (asked("nowhere"), grpc.StatusCode.NOT_FOUND),
        (asked("none"), grpc.StatusCode.UNAVAILABLE),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        assert caught.value.code() is code
    failing = asked("failing")
    failing.inputs[0].contents.fp64_contents[0] = -1.0
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(failing)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "negative rows" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelConfig(service_pb2.ModelConfigRequest(name="e"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryIndex"])
def test_bytes_that_are_no_message_are_an_invalid_argument(speaking, method):
    with grpc.insecure_channel(speaking.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"no {method}Request" in caught.value.details()


def test_a_message_that_is_too_large_is_refused_and_the_next_is_answered(speaking):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(speaking.grpc, options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(
                service_pb2.ModelInferRequest(
                    model_name="e", raw_input_contents=[bytes(17 * 1024 * 1024)]
                )
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list(stub.ModelInfer(asked()).outputs)


def test_calls_under_way_at_once_are_answered_each_with_its_own(stub):
    def request(k: int) -> Any:
        made = asked(id=f"call-{k}")
        made.inputs[0].contents.fp64_contents[0] = float(k)
        return made

    futures = [(k, stub.ModelInfer.future(request(k))) for k in range(200)]
    for k, future in futures:
        answer = future.result(timeout=60)
        assert answer.id == f"call-{k}"
        assert list(answer.outputs[0].contents.fp64_contents) == [k + 10.0]


def test_a_worker_that_dies_or_is_swapped_leaves_the_port_answered(tmp_path):
    with gateways.running(tmp_path, workers=2, grpc=True) as gateway:
        gateway.publish(
            gateways.endpoint(arms=[gateways.arm(1, gateways.linear(gateway.shelf, 10.0))])
        )
        client = triton.InferenceServerClient(gateway.grpc)
        assert client.infer("e", whole([[1.0, 1.0, 0.0]])).as_numpy("prediction") == [11.0]
        gateway.pool.swap()
        gateway.wait()
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = client.infer("e", whole([[1.0, 1.0, 0.0]]))
                break
            except InferenceServerException as error:
                if error.status() != "StatusCode.UNAVAILABLE" or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        assert answer.as_numpy("prediction") == [11.0]
        os.kill(gateway.pool.pids()[0], signal.SIGKILL)
        gateway.wait()
        with grpc.insecure_channel(gateway.grpc) as channel:
            made = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert made.ServerLive(service_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=60).live  # fmt: skip
        client.close()


def test_a_grpc_port_that_another_gateway_has_is_not_shared_unnoticed(speaking):
    with pytest.raises(Unavailable, match="Another program holds the port"):
        reserve("127.0.0.1", int(speaking.grpc.rsplit(":", 1)[1]))


def test_the_setting_opens_the_port_of_a_projects_gateway(tmp_path):
    folder = tmp_path / "project"
    keepwell("init", str(folder), folder=tmp_path)
    with_free_ports(folder)
    with (folder / "keepwell.toml").open("a") as file:
        file.write("grpc_port = 0\n")
    command = [sys.executable, "-m", "keepwell.app.processes", "gateway", folder, str(os.getpid())]
    process = subprocess.Popen(command)
    try:
        place = folder / ".keepwell" / "run" / "grpc.json"
        wait_until(place.exists)
        said = json.loads(place.read_text())
        with grpc.insecure_channel(said["url"].removeprefix("grpc://")) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            asked = service_pb2.ServerLiveRequest()
            assert stub.ServerLive(asked, wait_for_ready=True, timeout=60).live
    finally:
        process.terminate()
        process.wait(60)


def test_without_the_setting_no_port_is_opened():
    assert ServerSettings().grpc_port is None
    assert _grpc_socket("127.0.0.1", None) is None


def test_without_its_package_the_port_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("keepwell.serving.gateway.find_spec", lambda _: None)
    with pytest.raises(Unavailable, match=r"pip install 'keepwell\[grpc\]'"):
        _grpc_socket("127.0.0.1", 0)


def test_messages_of_the_same_names_may_be_loaded_beside_ours():
    assert (
        message_of("ModelInferRequest").DESCRIPTOR is not service_pb2.ModelInferRequest.DESCRIPTOR
    )
    assert message_of("ModelInferRequest").FromString(asked(id="9").SerializeToString()).id == "9"
