"""A webhook: the alert as JSON by HTTP POST, in bounded time."""

from __future__ import annotations

import http.client
import ipaddress
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import SplitResult, urlsplit

import msgspec

from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.core.records.watching import Alert

ATTEMPTS = 3
PAUSE_SECONDS = 0.4
"""Before the second attempt; twice that before the third."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An alert goes where the project says and nowhere else."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class Webhook:
    """Posts alerts to a URL. Implements ``keepwell.core.ports.alerts.Channel``.

    Up to three attempts of ``timeout`` seconds each; only what may pass is tried again (no connection, no
    answer, 5xx, 429). Each attempt carries the alert's id as ``Idempotency-Key``, so that a receiver
    can drop the second of two. The path of the URL may be a secret: errors and logs name the host alone.
    """

    def __init__(self, *, name: str, url: str, timeout: float = 5.0) -> None:
        self._name = name
        self._url = url
        self._timeout = timeout
        parts = self._checked()
        self._shown = f"{parts.scheme}://{parts.netloc}"
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _is_this_machine(parts.hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy can reach it for us
        self._opener = urllib.request.build_opener(*handlers)

    def _checked(self) -> SplitResult:
        reason = ""
        try:
            parts = urlsplit(self._url)
            parts.port  # noqa: B018 - reading it is what checks it
        except ValueError:
            reason = "cannot be read"
        else:
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                reason = "does not begin with http:// or https:// and a host"
            elif "@" in parts.netloc:
                reason = "has a user name in it"
            elif not self._url.isprintable() or not self._url.isascii() or " " in self._url:
                reason = "has a character in it that URLs cannot have"
        if reason:
            raise InvalidInput(
                f"The URL of the webhook {self._name!r} {reason}.",
                where="[[alerts]]",
                todo="Write it like 'https://host/path'; a secret belongs into the path.",
            )
        return parts

    @property
    def name(self) -> str:
        """See ``keepwell.core.ports.alerts.Channel``."""
        return self._name

    def send(self, alert: Alert) -> str:
        """See ``keepwell.core.ports.alerts.Channel``."""
        said = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS * attempt)
            status, said = self._attempt(alert)
            if 200 <= status < 300:
                return f"HTTP {status}"
            if status and status < 500 and status != http.HTTPStatus.TOO_MANY_REQUESTS:
                break
        raise Unavailable(
            f"The webhook {self._name!r} did not take the alert: {said}.",
            where=self._shown,
            todo="See that the receiver runs; the alert is kept and tried again.",
        )

    def _attempt(self, alert: Alert) -> tuple[int, str]:
        """Post once. Gives the HTTP status, 0 if there was none, and what to say of it."""
        result = [(0, f"no answer in {self._timeout:g} seconds")]

        def post() -> None:
            result[:] = [self._post(alert)]

        # A socket's timeout begins anew with every byte, so a receiver that trickles would hold us for ever.
        posting = threading.Thread(target=post, name=f"webhook {self._name}", daemon=True)
        posting.start()
        posting.join(self._timeout)
        return result[0]

    def _post(self, alert: Alert) -> tuple[int, str]:
        request = urllib.request.Request(  # noqa: S310 - http(s) only, checked above
            self._url,
            data=msgspec.json.encode(alert),
            headers={
                "content-type": "application/json",
                "user-agent": "keepwell",
                "idempotency-key": alert.id,
            },
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return int(answer.status), f"HTTP {answer.status}"
        except urllib.error.HTTPError as error:
            error.close()
            moved = ", which is not followed" if 300 <= error.code < 400 else ""
            return error.code, f"HTTP {error.code}{moved}"
        except urllib.error.URLError as error:
            return 0, str(error.reason)
        except (OSError, http.client.HTTPException) as error:
            return 0, type(error).__name__  # its text may quote what was sent


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
