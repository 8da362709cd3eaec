"""Hostile requests of every protocol, made by mutation of good ones, sent over real sockets to a real worker."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
from tests.serving.gateways import Gateway, arm, endpoint, linear, native, request, running
from tests.serving.models import FailingOnNegative, Lengths, Three
from tests.serving.storms import Broken, Wire, memory_of

from keepwell.core.errors import KeepwellError
from keepwell.core.records.data import Column
from keepwell.core.records.models import Signature
from keepwell.serving.protocols.grpc import InferRequest, message_of

CLEAR = frozenset({200, 400, 404, 405, 408, 409, 413, 415, 422, 431, 503, 504})
"""Every status that a request may have; 500 is none of them."""
CLEAR_CODES = frozenset({"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"})  # fmt: skip
MEMORY_MB = 120.0
"""A worker may hold so much more than before: bodies of a few MB come, and what was freed is kept for later."""
WORDS = Signature(
    inputs=(
        Column(name="word", dtype="string", nullable=True),
        Column(name="number", dtype="int64", nullable=True),
        Column(name="flag", dtype="bool", nullable=True),
    ),
    task="regression",
)
KINDS = Signature(
    inputs=(Column(name="p", dtype="float64"),), task="multiclass", classes=("a", "b", "c")
)
PLAIN = {"x": 1.5, "flag": True, "dep delay": None}
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")


def _matrix(n: int) -> dict[str, Any]:
    return {"inputs": [{"name": "all", "datatype": "FP64", "shape": [n, 3], "data": [1.0] * 3 * n}], "id": "q", "parameters": {"unit": ["u"] * n}}  # fmt: skip


def _binary() -> tuple[bytes, str]:
    raw = struct.pack("<6f", *range(6))
    head = msgspec.json.encode(
        {"inputs": [{"name": "all", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}], "outputs": [{"name": "prediction", "parameters": {"binary_data": True}}]}
    )  # fmt: skip
    return head + raw, f"inference-header-content-length: {len(head)}\r\n"


def _columns() -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["a", None]},
            {"name": "number", "datatype": "INT64", "shape": [2, 1], "data": [[1], [2]]},
            {"name": "flag", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        ]
    }


def seeds() -> list[tuple[str, bytes, str]]:
    """Give good requests: path, body and further header lines."""
    json_type = "content-type: application/json\r\n"
    frame = {"columns": ["x", "flag", "dep delay", "user"], "data": [[1.0, True, None, "u"]] * 2}
    bodies: list[tuple[str, Any, str]] = [
        ("/v1/endpoints/e/predict", {"rows": [PLAIN | {"user": "ann"}, PLAIN], "ids": ["a", "b"]}, ""),
        ("/v1/endpoints/e/predict", {"row": PLAIN, "id": "one"}, "x-deadline-ms: 5000\r\n"),
        ("/v1/endpoints/two/predict", {"rows": [PLAIN | {"user": 7, "at": "2024-05-01T06:00:00Z"}]}, ""),
        ("/v1/endpoints/two/predict", {"rows": [PLAIN | {"at": 1_700_000_000_000_000}], "probe": 2}, ""),
        ("/v1/endpoints/failing/predict", {"rows": [PLAIN, PLAIN]}, ""),
        ("/v1/endpoints/words/predict", {"rows": [{"word": "ab", "number": 3, "flag": None}]}, ""),
        ("/v1/endpoints/kinds/predict", {"rows": [{"p": 0.5}]}, ""),
        ("/v1/outcomes", {"outcomes": [{"id": "a", "endpoint": "e", "value": 1.0, "time": "2024-01-01"}]}, ""),
        ("/v2/models/e/infer", _matrix(2), ""),
        ("/v2/models/e/versions/1/infer", _matrix(1), ""),
        ("/v2/models/two/infer", _matrix(1) | {"parameters": {"time": [1_700_000_000_000_000], "ids": ["x"]}}, ""),
        ("/v2/models/words/infer", _columns(), ""),
        ("/v2/repository/index", {"ready": True}, ""),
        ("/v2/repository/models/e/load", {"parameters": {"config": "{}"}}, ""),
        ("/v1/endpoints/e/invocations", {"dataframe_split": frame, "params": {"ids": ["a", "b"]}}, json_type),
        ("/v1/endpoints/e/invocations", {"dataframe_records": [PLAIN, PLAIN]}, json_type),
        ("/v1/endpoints/e/invocations", {"instances": [[1.0, True, None]]}, json_type),
        ("/v1/endpoints/words/invocations", {"inputs": {"word": ["a"], "number": [1], "flag": [True]}}, json_type),
    ]  # fmt: skip
    made = [(path, msgspec.json.encode(body), extra) for path, body, extra in bodies]
    made.append(("/v2/models/e/infer", *_binary()))
    csv = b"x,flag,dep delay,user\n1.5,True,,ann\nNaN,false,3,\n"
    made.append(("/v1/endpoints/e/invocations", csv, "content-type: text/csv\r\n"))
    return made


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, 1e308, -1e-308, 5e-324, "", "\0", "x" * 5000,
    "\u202e\U0001f600", "NaN", "[]", "[1,", "2024-13-45", "9999-12-31T23:59:59+99:99", [], {}, [[]], [None], {"": None}, [1, "a", None],
    {"x": {"x": {"x": 1}}}, "binary_data_size", "FP16", "BYTES", [0], [-1], [2**40, 2**40], [10_000, 10_000], "__class__", "%s%n", "../../etc/passwd",
]  # fmt: skip
TEXTS = [
    b"1e999", b"-Infinity", b"NaN", b'"\\ud800"', b'"\\ud800\\ud800"', b"\xff\xfe", b"\xed\xa0\x80", b"[" * 3000, b'{"a":' * 3000, b"[" * 100_000, b"1" * 5000,
    b"0x10", b"'", b"/*", b"\x00", b"\\u0000", b'"rows":', b'{"rows":[', b"null", b",,", b"1_000", b"1" * 400 + b".5", b"\r\n\r\n", b" " * 3000,
]  # fmt: skip
LINES = [
    "content-length: 0", "content-length: 99999999999999999999", "content-length: 17000000", "content-length: -5", "content-length: 1e3", "transfer-encoding: chunked",
    "transfer-encoding: gzip, chunked", "expect: 100-continue", "expect: nothing", "connection: close", "connection: upgrade\r\nupgrade: h2c", "content-encoding: gzip",
    "content-type: text/csv; charset=utf-16", "content-type: multipart/form-data", "inference-header-content-length: 3", "inference-header-content-length: 99999999999",
    "inference-header-content-length: \u00b2", "x-deadline-ms: 0", "x-deadline-ms: nan", "x-deadline-ms: 1e-9", "x-deadline-ms: inf", "request-timeout: -1", "authorization: Bearer x",
    "x: " + "a" * 70_000, "\r\nGET / HTTP/1.1", "host:", ": nothing", "a" * 3000 + ": b", "te\u00e9: x", "cookie: \x00", "x-\x7f: 1", "if-match: *", "range: bytes=0-",
]  # fmt: skip
PATHS = [
    "/", "*", "//", "/v1/endpoints//predict", "/v1/endpoints/%00/predict", "/v1/endpoints/..%2f/predict", "/v2/models/%ff/infer", "/v2/models/e/versions/99/infer",
    "/v2/models/e/versions/" + "9" * 5000 + "/infer", "/v2/models/" + "a" * 9000, "/v1/endpoints/none/predict", "/invocations", "/v2/models/e/stats", "/metrics?x=" + "y" * 500,
    "http://elsewhere/live", "/v2/repository/models/e/unload", "/v1/endpoints/e/predict?x=\u00e9", "/live#x", "/v2/health/ready/", "/version",
]  # fmt: skip
METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PRI", "post", "B\u00c4D", ""]  # fmt: skip


def mutated_json(chance: random.Random, body: bytes) -> bytes:
    """Replace, drop or repeat values somewhere inside a JSON body."""
    try:
        tree = json.loads(body)
    except ValueError:
        return mutated_bytes(chance, body)
    for _ in range(chance.choice((1, 1, 2, 4))):
        places: list[tuple[Any, Any]] = []
        todo = [tree]
        while todo:
            node = todo.pop()
            inside = node.items() if isinstance(node, dict) else enumerate(node)
            for key, value in inside:
                places.append((node, key))
                if isinstance(value, dict | list):
                    todo.append(value)
        if not places:
            break
        node, key = chance.choice(places)
        what = chance.randrange(6)
        if what == 0 and isinstance(node, dict):
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[str(chance.choice(ODD))[:100]] = node[key]
        elif what == 2 and isinstance(node, list):
            node += [node[key]] * chance.choice((1, 3, 400))
        elif what == 3:
            node[key] = [node[key]]
        else:
            node[key] = copy.deepcopy(chance.choice(ODD))
    try:
        # Python alone writes numbers of any length; msgspec would refuse to send them.
        return json.dumps(tree, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    except ValueError:
        return body


def mutated_bytes(chance: random.Random, body: bytes) -> bytes:
    """Flip, cut, repeat and splice bytes."""
    made = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(made) + 1)
        what = chance.randrange(6)
        if what == 0 and place < len(made):
            made[place] = chance.randrange(256)
        elif what == 1:
            del made[place : place + chance.choice((1, 2, 10, 50))]
        elif what == 2:
            made[place:place] = chance.choice(TEXTS)
        elif what == 3:
            made[place:place] = made[place : place + chance.choice((1, 5, 60))] * chance.choice(
                (1, 2, 30)
            )
        elif what == 4 and place < len(made):
            made[place] ^= 1 << chance.randrange(8)
        else:
            made[place:place] = bytes(
                chance.randrange(256) for _ in range(chance.choice((1, 4, 9)))
            )
    return bytes(made)  # fmt: skip


def chunked(chance: random.Random, body: bytes) -> bytes:
    """Write a body in chunks, some of them wrong."""
    made = b""
    place = 0
    while place < len(body):
        size = chance.choice((1, 3, 17, 400))
        part = body[place : place + size]
        said = len(part) if chance.random() < 0.97 else chance.choice((0, 5, 2**31, 2**70))
        made += b"%x%s\r\n%s\r\n" % (said, chance.choice((b"", b"", b";a=b")), part)
        place += size
    return made + chance.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\n", b""))


class Fuzzer:
    """Sends hostile requests and judges the answers."""

    def __init__(self, gateway: Gateway, seed: int) -> None:
        self.gateway = gateway
        self.statuses: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.good = 0
        self.sent = 0
        self._chance = random.Random(seed)
        self._seeds = seeds()
        self._wire = Wire(gateway.port)
        self._channel = grpc.insecure_channel(gateway.grpc)
        self._raws = self._messages()
        self._calls: dict[str, Any] = {}

    def one(self) -> None:
        """Send one hostile request."""
        chance = self._chance
        what = chance.random()
        self.sent += 1
        if what < 0.1:
            self._grpc()
            return
        path, body, extra = chance.choice(self._seeds)
        method = "POST"
        if what < 0.5:
            body = mutated_json(chance, body)
        elif what < 0.75:
            body = mutated_bytes(chance, body)
        if what < 0.75 and chance.random() < 0.9:
            self._judge_framed(request(body, path=path, extra=extra))
            return
        if chance.random() < 0.3:
            path = chance.choice(PATHS)
        if chance.random() < 0.2:
            method = chance.choice(METHODS)
        for _ in range(chance.choice((0, 1, 1, 3))):
            extra += chance.choice(LINES) + "\r\n"
        head = f"{method} {path} HTTP/1.{chance.choice('1110')}\r\nhost: x\r\n{extra}"
        if chance.random() < 0.2:
            sent = f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunked(chance, body)
        else:
            sent = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        if chance.random() < 0.5:
            sent = mutated_bytes(chance, sent)
        if chance.random() < 0.3:
            sent = request(b"", method="GET", path="/live") + sent + sent
        self._judge_raw(sent)

    def _note(self, status: int, body: bytes, sent: bytes, *, head: bool = False) -> None:
        self.statuses[str(status)] += 1
        problem = ""
        if status not in CLEAR:
            problem = f"status {status}"
        elif status >= 400 and not head:
            try:
                said = msgspec.json.decode(body)
                told = said.get("error") or said.get("message") if isinstance(said, dict) else ""
                problem = "" if told else "an error without a message"
            except msgspec.DecodeError as error:
                problem = f"an error that is no JSON ({error})"
            if status == 503 and body == b"\n":
                problem = ""  # MLflow's /ping
        if problem:
            self.wrong.append(f"{problem}: {body[:300]!r} to {sent[:400]!r}")

    def _judge_framed(self, sent: bytes) -> None:
        """The frame is whole, so exactly one answer must come."""
        try:
            ((status, body),) = self._wire.ask([sent])
        except Broken as error:
            self.statuses["broken"] += 1
            self.wrong.append(f"{error}: no answer to {sent[:400]!r}")
            return
        self._note(status, body, sent)

    def _judge_raw(self, sent: bytes) -> None:
        """Whatever comes back must be whole answers, and the end of the connection."""
        try:
            said = self.gateway.raw(sent, half_close=True)
        except OSError:
            self.statuses["reset"] += 1  # it was refused before all of it was sent
            return
        if not said:
            self.statuses["closed"] += 1
        while said:
            head, between, rest = said.partition(b"\r\n\r\n")
            if not between or not re.match(rb"HTTP/1\.1 \d{3} ", head):
                self.wrong.append(f"no whole answer: {said[:200]!r} to {sent[:400]!r}")
                return
            status = int(head[9:12])
            if status == 100:
                said = rest
                continue
            length = int(_LENGTH.search(head)[1])  # type: ignore[index]
            bare = b"HEAD " in sent and (not rest or rest.startswith(b"HTTP/1.1 "))
            length = 0 if bare else length
            self._note(status, rest[:length], sent, head=bare)
            said = rest[length:]

    def _messages(self) -> list[tuple[str, bytes]]:
        made = InferRequest(model_name="e", id="1")
        made.parameters["unit"].string_param = '["u","v"]'
        tensor = made.inputs.add(name="all", datatype="FP32", shape=[2, 3])
        raws = [("ModelInfer", b"")]
        tensor.contents.fp32_contents.extend([1.0] * 6)
        raws.append(("ModelInfer", made.SerializeToString()))
        tensor.ClearField("contents")
        made.raw_input_contents.append(struct.pack("<6f", *range(6)))
        raws.append(("ModelInfer", made.SerializeToString()))
        words = InferRequest(model_name="words")
        words.inputs.add(name="word", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
            b"a"
        )
        words.inputs.add(name="number", datatype="INT64", shape=[1]).contents.int64_contents.append(
            1
        )
        words.inputs.add(name="flag", datatype="BOOL", shape=[1]).contents.bool_contents.append(
            True
        )
        raws.append(("ModelInfer", words.SerializeToString()))
        for name, fields in (("ModelReady", {"name": "e"}), ("ModelMetadata", {"name": "e", "version": "1"}), ("ModelStatistics", {"name": "e"}), ("RepositoryIndex", {"ready": True}), ("RepositoryModelLoad", {"model_name": "e"}), ("RepositoryModelUnload", {"model_name": "e"})):  # fmt: skip
            raws.append((name, message_of(f"{name}Request")(**fields).SerializeToString()))
        return raws

    def _grpc(self) -> None:
        name, body = self._chance.choice(self._raws)
        sent = mutated_bytes(self._chance, body)
        call = self._calls.get(name)
        if call is None:
            path = f"/inference.GRPCInferenceService/{name}"
            call = self._calls[name] = self._channel.unary_unary(path)
        try:
            call(sent, timeout=60)
            code, told = "OK", "fine"
        except grpc.RpcError as error:
            code, told = error.code().name, error.details()
        self.statuses[f"grpc {code}"] += 1
        if code not in CLEAR_CODES or not told:
            self.wrong.append(f"gRPC {code} ({told}) to {name} {sent[:300]!r}")

    def check(self) -> None:
        """A good request must have its answer whatever came before."""
        identity = f"good-{self.good}"
        status, answer = self.gateway.post({"rows": [PLAIN], "ids": [identity]})
        if status != 200 or answer["predictions"][0]["prediction"] != 11.5:
            self.wrong.append(f"a good request has {status}: {answer}")
        self.good += 1

    def close(self) -> None:
        self._wire.close()
        self._channel.close()


def storm_of_requests(
    folder: Path, *, count: int, seed: int, say: Callable[[str], object]
) -> dict[str, Any]:
    """Send hostile requests to one worker: right statuses, clear messages, the same process, bounded memory."""
    with running(folder, workers=1, grpc=True) as gateway:
        shelf = gateway.shelf
        plain, other = linear(shelf, 10.0), linear(shelf, 20.0)
        gateway.publish(
            endpoint("e", arms=[arm(1, plain)], log="group"),
            endpoint("two", arms=[arm(1, plain, 5000), arm(2, other, 5000)], time="at", log="group"),
            endpoint("failing", arms=[arm(3, native(shelf, FailingOnNegative()))], log="group"),
            endpoint("words", arms=[arm(1, native(shelf, Lengths(), WORDS, [["abc", 1.0, True]]))], log="group"),
            endpoint("kinds", arms=[arm(5, native(shelf, Three(), KINDS, [[0.5]]))], unit="", log="group"),
            endpoint("none", arms=[], refused="m/1: its evidence is gone"),
        )  # fmt: skip
        (worker,) = gateway.pool.pids()
        fuzzer = Fuzzer(gateway, seed)
        began = time.monotonic()
        memory = [memory_of(worker)]
        try:
            while fuzzer.sent < count:
                fuzzer.one()
                if fuzzer.sent == min(2000, count // 10):
                    memory = [memory_of(worker)]  # what is loaded on demand is loaded by now
                if fuzzer.sent % 50 == 0:
                    fuzzer.check()
                if fuzzer.sent % max(count // 20, 1) == 0:
                    memory.append(memory_of(worker))
                    say(
                        f"  {fuzzer.sent:,} requests, {len(fuzzer.wrong)} wrong, {memory[-1]:.1f} MB"
                    )
        except (KeepwellError, OSError) as error:
            fuzzer.wrong.append(f"after {fuzzer.sent}: {error}")
        finally:
            fuzzer.close()
        predictions, _, torn = gateway.records()
        logged = {p.id for p in predictions}
        grown = max(memory) - memory[0]
        if grown > MEMORY_MB:
            fuzzer.wrong.append(f"memory grew by {grown:.0f} MB")
        return {
            "requests": fuzzer.sent,
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            "answers": dict(sorted(fuzzer.statuses.items())),
            "good_between": fuzzer.good,
            "missing": sum(f"good-{n}" not in logged for n in range(fuzzer.good)),
            "wrong": fuzzer.wrong[:20],
            "memory_mb": [round(memory[0], 1), round(max(memory), 1), round(memory[-1], 1)],
            "same_process": gateway.pool.pids() == [worker] and gateway.pool.tend() == 0,
            "torn_files": len(torn),
        }  # fmt: skip
