"""Where tokens are set, nobody asks without one, and no token is ever written down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from tests.serving.gateways import PATIENCE, Gateway, arm, endpoint, linear, request, running

from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.serving.protocols.grpc import SERVICE, InferRequest, message_of
from keepwell.serving.terms import Terms
from keepwell.serving.transport.gate import DENIED, Gate, read_digests

TOKEN = "a token of the tests: né"
BODY = b'{"row":{"x":1,"flag":true,"dep delay":1},"id":"let-in"}'


def line(token: str) -> str:
    return f"sha256:{sha256(token.encode()).hexdigest()}"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# who may ask\n\n{line('another')}\n{line(TOKEN)} the scoring service\n")
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("guarded")
    with running(folder, workers=1, grpc=True, terms=Terms(tokens=str(tokens))) as made:
        made.publish(endpoint("e", arms=[arm(1, linear(made.shelf, 1.0))]))
        yield made


def asked(gateway: Gateway, path: str, method: str, given: bytes | None) -> bytes:
    sent = request(BODY if method == "POST" else b"", path=path, method=method)
    head, _, body = sent.partition(b"\r\n\r\n")
    extra = b"" if given is None else b"\r\nauthorization: " + given
    return gateway.raw(head + extra + b"\r\nconnection: close\r\n\r\n" + body)


@pytest.mark.parametrize(
    "given", [None, b"", b"Bearer", b"Bearer ", b"Bearer x", b"Basic " + TOKEN.encode(), TOKEN.encode(), b"Bearer " + line(TOKEN).encode(),
              b"Bearer " + TOKEN.encode()[:-1]]
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/endpoints/e/predict"), ("POST", "/v1/outcomes"), ("GET", "/metrics"), ("GET", "/v1/endpoints"),
        ("POST", "/v2/models/e/infer"), ("POST", "/invocations"), ("GET", "/nothing"), ("GET", "/v2"),
    ],
)  # fmt: skip
def test_without_a_right_token_nothing_is_answered(guarded, method, path, given):
    answer = asked(guarded, path, method, given)
    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert b"\r\nwww-authenticate: Bearer\r\n" in answer
    assert answer.endswith(b'{"error":"%s"}' % DENIED.encode())


@pytest.mark.parametrize("path", ["/live", "/ready", "/v2/health/ready", "/ping"])
def test_whether_it_lives_is_told_without_a_token(guarded, path):
    assert asked(guarded, path, "GET", None).startswith(b"HTTP/1.1 200")


def test_a_token_lets_in_and_is_in_no_file_of_the_gateway(guarded, tmp_path):
    for kind in (b"Bearer ", b"bearer "):
        answer = asked(guarded, "/v1/endpoints/e/predict", "POST", kind + TOKEN.encode())
        assert answer.startswith(b"HTTP/1.1 200"), answer
    assert asked(guarded, "/metrics", "GET", b"Bearer another").startswith(b"HTTP/1.1 200")
    files = [each for each in guarded.log.parent.rglob("*") if each.is_file()]
    held = {each.name: each.read_bytes() for each in files}
    assert any(b"let-in" in content for content in held.values())
    assert not [name for name, content in held.items() if TOKEN.encode() in content]


def test_a_call_over_grpc_needs_a_token_too(guarded):
    with grpc.insecure_channel(guarded.grpc) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        body = InferRequest(model_name="nothing").SerializeToString()
        for sent in ((), (("authorization", "Bearer x"),)):
            with pytest.raises(grpc.RpcError) as caught:
                infer(body, metadata=sent, timeout=60)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            infer(body, metadata=(("authorization", "Bearer another"),), timeout=60)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/ServerMetadata")(b"", timeout=60)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        live = message_of("ServerLiveResponse")
        assert live.FromString(channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=60)).live


def written(tokens: Path, text: str) -> None:
    """Put another file in the place of that with the tokens, at once."""
    new = tokens.with_suffix(".new")
    new.write_text(text)
    new.replace(tokens)


def asked_until(gateway: Gateway, sent: bytes, wanted: bytes) -> bytes:
    """Ask until the answer holds this: a worker looks at the file of tokens twice a second."""
    deadline = time.monotonic() + PATIENCE
    while wanted not in (told := gateway.raw(sent, half_close=True)):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told


def test_a_token_taken_out_of_the_file_is_good_no_longer_also_by_a_remembered_head(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(line("first"))
    with running(tmp_path / "gateway", workers=1, terms=Terms(tokens=str(tokens))) as made:
        made.publish(endpoint("e", arms=[arm(1, linear(made.shelf, 1.0))]))
        first = request(
            BODY, path="/v1/endpoints/e/predict", extra="authorization: Bearer first\r\n"
        )
        assert made.raw(first + first, half_close=True).count(b"200 OK") == 2
        written(tokens, "nothing that is a digest")
        look = "authorization: Bearer first\r\nconnection: close\r\n"
        sent = request(b"", path="/v1/endpoints", method="GET", extra=look)
        assert b'"tokens":' in asked_until(made, sent, b"Line 1 is not")
        assert made.raw(first, half_close=True).count(b"200 OK") == 1, (
            "a wrong file shuts nobody out"
        )
        written(tokens, line("second"))
        assert asked_until(made, first, b"401 Unauthorized").count(b"401 Unauthorized") == 1
        second = first.replace(b"first", b"second")
        assert made.raw(second, half_close=True).count(b"200 OK") == 1


def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path):
    gate = Gate(tmp_path / "none")
    assert not gate.refresh()
    assert not gate.admits(b"Bearer ")
    with pytest.raises(Unavailable, match="cannot be read"):
        read_digests(tmp_path / "none")


def test_a_token_in_the_file_instead_of_its_digest_is_refused_and_not_repeated(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"{line('good')}\nmy-secret\n")
    with pytest.raises(InvalidInput, match="Line 2") as caught:
        read_digests(path)
    assert "my-secret" not in str(caught.value)
