"""TLS at the gateway's door: real clients over it, new certificates while it runs, wrong files at the start."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
import tritonclient.grpc
from tests.serving.gateways import PATIENCE, Gateway, arm, endpoint, linear, request, running
from tests.serving.transport.certificates import make

from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.serving.application import HttpApplication
from keepwell.serving.terms import Terms
from keepwell.serving.transport.tls import Tls, read_context, trust

ROW = {"x": 1.0, "flag": True, "dep delay": 0.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[Path, Path]
) -> Iterator[Gateway]:
    certificate, key = map(str, files)
    terms = Terms(tls_certificate=certificate, tls_key=key)
    with running(tmp_path_factory.mktemp("secured"), workers=1, grpc=True, terms=terms) as made:
        made.publish(endpoint("e", arms=[arm(1, linear(made.shelf, 10.0))]))
        yield made


def shown(gateway: Gateway) -> bytes:
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", gateway.port)).encode()


def test_our_own_client_asks_over_tls_and_trusts_that_certificate_alone(
    secured: Gateway, tmp_path: Path
):
    assert secured.post({"rows": [ROW]})[1]["predictions"][0]["prediction"] == 11.0
    stranger, _ = make(tmp_path, name="stranger")
    asking = HttpApplication(f"https://127.0.0.1:{secured.port}", trust=lambda: trust(stranger))
    with pytest.raises(Unavailable, match=r"self-signed certificate|verify failed"):
        asking.request("GET", "/live")
    with pytest.raises(Unavailable, match="verify failed"):
        HttpApplication(f"https://127.0.0.1:{secured.port}").request("GET", "/live")


def test_httpx_verifies_the_certificate_by_its_name_and_keeps_its_connection(
    secured: Gateway, files: tuple[Path, Path]
):
    with httpx.Client(
        verify=ssl.create_default_context(cafile=str(files[0])), timeout=60
    ) as client:
        for rows in (1, 500, 10_000):
            answer = client.post(
                f"https://127.0.0.1:{secured.port}/v1/endpoints/e/predict",
                json={"rows": [ROW] * rows},
            )
            assert [each["prediction"] for each in answer.json()["predictions"]] == [11.0] * rows
        assert client.get(f"https://127.0.0.1:{secured.port}/v1/endpoints").json()["tls"] == "good"


def test_tritons_client_asks_over_grpc_with_tls(secured: Gateway, files: tuple[Path, Path]):
    with tritonclient.grpc.InferenceServerClient(
        secured.grpc, ssl=True, root_certificates=str(files[0])
    ) as client:
        given = tritonclient.grpc.InferInput("all", [2, 3], "FP64")
        given.set_data_from_numpy(np.array([[1.0, 1, 0], [2, 0, 0]]))
        answer = client.infer("e", [given])
        assert answer.as_numpy("prediction").tolist() == [11.0, 12.0]


def test_plain_http_at_the_door_of_tls_gets_no_answer_and_harms_nobody(secured: Gateway):
    assert b"200" not in secured.raw(request(msgspec.json.encode({"rows": [ROW]})), timeout=2)
    assert secured.post({"rows": [ROW]})[0] == 200


@pytest.mark.parametrize(
    ("highest", "taken"), [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)]
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_the_least_version_is_tls_1_2(secured: Gateway, highest: ssl.TLSVersion, taken: bool):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_1, highest
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", secured.port), timeout=60) as plain:
        try:
            with context.wrap_socket(plain) as wrapped:
                assert wrapped.version() == "TLSv1.2"
                done = True
        except (ssl.SSLError, ConnectionResetError):
            done = False
    assert done is taken


def test_pipelined_requests_and_a_body_in_pieces_are_answered_in_order(
    secured: Gateway, files: tuple[Path, Path]
):
    bodies = [msgspec.json.encode({"row": ROW | {"x": float(k)}}) for k in range(40)]
    sent = b"".join(request(body) for body in bodies[:-1]) + request(
        bodies[-1], extra="connection: close\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", secured.port), timeout=60) as plain,
        trust(files[0]).wrap_socket(plain) as wrapped,
    ):
        for at in range(0, len(sent), 1000):
            wrapped.sendall(sent[at : at + 1000])
        answer = b""
        while more := wrapped.recv(65536):
            answer += more
    found = [float(part.split(b",")[0]) for part in answer.split(b'"prediction":')[1:]]
    assert found == [10.0 + k for k in range(40)]


def test_workers_are_replaced_over_tls_without_losing_a_request(secured: Gateway):
    def ask(_: int) -> int:
        return secured.post({"rows": [ROW]})[0]

    with ThreadPoolExecutor(4) as threads:
        asked = threads.map(ask, range(300))
        secured.pool.swap()
        assert set(asked) == {200}


def test_a_new_certificate_is_taken_while_it_runs_and_a_wrong_one_is_not(tmp_path: Path):
    certificate, key = make(tmp_path)
    second, second_key = make(tmp_path, name="second")
    terms = Terms(tls_certificate=str(certificate), tls_key=str(key))
    with running(tmp_path / "gateway", workers=1, grpc=True, terms=terms) as gateway:
        gateway.publish(endpoint("e", arms=[arm(1, linear(gateway.shelf, 10.0))]))
        first = shown(gateway)
        assert first.split() == certificate.read_bytes().split()
        second.replace(certificate)  # the key follows later: in between the two do not fit
        deadline = time.monotonic() + PATIENCE
        held = trust(tmp_path / "gateway.crt")  # the file names another one already
        while time.monotonic() < deadline:
            with (
                socket.create_connection(("127.0.0.1", gateway.port)) as plain,
                ssl._create_unverified_context().wrap_socket(plain) as wrapped,
            ):
                wrapped.sendall(b"GET /v1/endpoints HTTP/1.1\r\nconnection: close\r\n\r\n")
                told = b"".join(iter(lambda wrapped=wrapped: wrapped.recv(65536), b""))  # type: ignore[misc]
            if b"does not belong" in told:
                break
            time.sleep(0.05)
        assert b"does not belong" in told
        assert shown(gateway) == first
        second_key.replace(key)
        deadline = time.monotonic() + PATIENCE
        while shown(gateway) == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shown(gateway).split() == certificate.read_bytes().split()
        asking = HttpApplication(f"https://127.0.0.1:{gateway.port}", trust=lambda: held)
        assert asking.request("GET", "/live")[0] == 200
        assert msgspec.json.decode(asking.request("GET", "/v1/endpoints")[1])["tls"] == "good"
        with tritonclient.grpc.InferenceServerClient(
            gateway.grpc, ssl=True, root_certificates=str(certificate)
        ) as client:
            assert client.is_server_live()


def test_wrong_files_are_refused_with_what_is_wrong(tmp_path: Path):
    good, good_key = make(tmp_path)
    _, other_key = make(tmp_path, name="other")
    old, old_key = make(tmp_path, name="old", days=-1)
    secret, secret_key = make(tmp_path, name="secret", password=b"hush")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(InvalidInput, match="does not belong to the certificate"):
        read_context(good, other_key)
    with pytest.raises(InvalidInput, match="certificate has expired"):
        read_context(old, old_key)
    with pytest.raises(InvalidInput, match="is encrypted"):
        read_context(secret, secret_key)
    with pytest.raises(InvalidInput, match="tls_certificate and tls_key"):
        read_context(text, good_key)
    with pytest.raises(InvalidInput, match="tls_certificate and tls_key"):
        read_context(good_key, good)
    with pytest.raises(Unavailable, match="TLS key cannot be read: No such file"):
        read_context(good, tmp_path / "nowhere")
    with pytest.raises(Unavailable, match="TLS certificate cannot be read: Is a directory"):
        read_context(tmp_path, good_key)
    together = tmp_path / "together.pem"
    together.write_bytes(good_key.read_bytes() + good.read_bytes())
    context, expires = read_context(together, together)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert abs(expires - time.time() - 30 * 86400) < 600


def test_prometheus_is_told_when_the_certificate_expires(secured: Gateway):
    page = secured.application.request("GET", "/metrics")[1].decode()
    found = re.search(
        r"^keepwell_certificate_expiry_timestamp_seconds\{.*\} (\S+)$", page, re.MULTILINE
    )
    assert found
    assert abs(float(found[1]) - time.time() - 30 * 86400) < 600


def test_files_that_went_away_leave_the_certificate_in_force(tmp_path: Path):
    certificate, key = make(tmp_path)
    tls = Tls(certificate, key)
    assert not tls.refresh()
    assert tls.problem == ""
    certificate.unlink()
    assert not tls.refresh()
    assert "cannot be read" in tls.problem
    make(tmp_path)
    assert tls.refresh()
    assert tls.problem == ""
