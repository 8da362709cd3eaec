"""The contract of channels on the webhook, against real receivers, and on a member that never looks at the answer."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time

import msgspec
import pytest

from keepwell.adapters.alerts import webhook
from keepwell.adapters.alerts.webhook import ATTEMPTS, Webhook
from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.core.records.watching import Alert
from keepwell.testing.alerts import ALERT, ChannelContract

SECRET = "s3cret-path"


class Receiver:
    """An HTTP server that answers with the given statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int, location: str = "") -> None:
        self.bodies: list[str] = []
        self.headers: list[dict[str, str]] = []
        waiting = list(statuses)
        receiver = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.headers.append({k.lower(): v for k, v in self.headers.items()})
                receiver.bodies.append(
                    self.rfile.read(int(self.headers["content-length"])).decode()
                )
                self.send_response(waiting.pop(0) if len(waiting) > 1 else waiting[0])
                if location:
                    self.send_header("location", location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/{SECRET}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _tries_again_soon(monkeypatch):
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def receive():
    made = []

    def receive(*statuses, location=""):
        made.append(Receiver(*statuses, location=location))
        return made[-1]

    yield receive
    for receiver in made:
        receiver.close()


@pytest.fixture
def silent():
    """A port that accepts connections and sends a byte now and then, never a whole answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    ended = threading.Event()
    taken = []

    def trickle() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                taken.append(listener.accept()[0])
            for connection in taken:
                try:
                    connection.sendall(b"H")
                except OSError:
                    continue

    thread = threading.Thread(target=trickle)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/{SECRET}"
    ended.set()
    thread.join()
    for connection in (*taken, listener):
        connection.close()


class TestWebhook(ChannelContract):
    @pytest.fixture
    def receiver(self, receive):
        return receive(200)

    @pytest.fixture
    def channel(self, receiver):
        return Webhook(name="ops", url=receiver.url)

    @pytest.fixture
    def received(self, receiver):
        return lambda: receiver.bodies

    @pytest.fixture
    def deaf(self, silent):
        return Webhook(name="ops", url=silent, timeout=0.3)


class _Careless(Webhook):
    """A channel that takes having sent for having been heard."""

    def send(self, alert):
        self._attempt(alert)
        return "sent"


def test_the_contract_catches_a_channel_that_does_not_look_at_the_answer(silent):
    bad = _Careless(name="ops", url=silent, timeout=0.1)
    with pytest.raises(pytest.fail.Exception):
        ChannelContract().test_a_receiver_that_does_not_acknowledge_is_unavailable_in_bounded_time(
            bad
        )


def test_the_body_is_the_alert_as_json(receive):
    receiver = receive(204)
    assert Webhook(name="ops", url=receiver.url).send(ALERT) == "HTTP 204"
    assert msgspec.json.decode(receiver.bodies[0], type=Alert) == ALERT
    assert receiver.headers[0]["content-type"] == "application/json"
    assert receiver.headers[0]["idempotency-key"] == ALERT.id


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_may_pass_is_tried_again(receive, status):
    receiver = receive(status, 200)
    assert Webhook(name="ops", url=receiver.url).send(ALERT) == "HTTP 200"
    assert len(receiver.bodies) == 2


def test_a_receiver_that_stays_broken_is_tried_a_few_times_and_named_without_its_secret(receive):
    receiver = receive(500)
    with pytest.raises(Unavailable, match="HTTP 500") as caught:
        Webhook(name="ops", url=receiver.url).send(ALERT)
    assert len(receiver.bodies) == ATTEMPTS
    assert SECRET not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_refusal_is_not_tried_again(receive):
    receiver = receive(403)
    with pytest.raises(Unavailable, match="HTTP 403"):
        Webhook(name="ops", url=receiver.url).send(ALERT)
    assert len(receiver.bodies) == 1


def test_a_redirect_is_not_followed(receive):
    elsewhere = receive(200)
    receiver = receive(307, location=elsewhere.url)
    with pytest.raises(Unavailable, match="307"):
        Webhook(name="ops", url=receiver.url).send(ALERT)
    assert elsewhere.bodies == []


def test_nobody_at_the_port_is_unavailable_and_the_secret_is_not_told(unused_port):
    with pytest.raises(Unavailable) as caught:
        Webhook(name="ops", url=f"http://127.0.0.1:{unused_port}/{SECRET}").send(ALERT)
    assert SECRET not in str(caught.value)


def test_a_receiver_on_this_machine_is_reached_past_any_proxy(receive, monkeypatch, unused_port):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert Webhook(name="ops", url=receive(200).url).send(ALERT) == "HTTP 200"


@pytest.fixture
def unused_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and nobody listens
        yield held.getsockname()[1]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/path",
        "ftp://host/path",
        "file:///etc/passwd",
        "http://",
        "http://host:port/",
        "https://user:s3cret-path@host/",
        "https://host/a b",
        "https://host/a\r\nx: y",
        "http://[::1/",
    ],
)
def test_what_is_no_url_to_post_to_is_refused_at_once(url):
    with pytest.raises(InvalidInput) as caught:
        Webhook(name="ops", url=url)
    assert SECRET not in str(caught.value)


def test_a_receiver_that_trickles_does_not_hold_the_sender(silent):
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no answer"):
        Webhook(name="ops", url=silent, timeout=0.2).send(ALERT)
    assert time.monotonic() - began < 30
