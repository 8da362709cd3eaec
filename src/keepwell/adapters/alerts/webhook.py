"""A webhook: the alert as JSON by HTTP POST, in bounded time."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import msgspec

from keepwell.core.errors import InvalidInput, Unavailable
from keepwell.core.records.watching import Alert

ATTEMPTS = 3


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An alert goes where the project says and nowhere else."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class Webhook:
    """Posts alerts to a URL. Implements ``keepwell.core.ports.alerts.Channel``."""

    def __init__(self, *, name: str, url: str, timeout: float = 5.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidInput(f"The webhook {name!r} has no http(s) URL.", where="[[alerts]]")
        self._name = name
        self._url = url
        # The path may hold a secret, so errors name the host alone.
        self._shown = f"{parts.scheme}://{parts.hostname}:{parts.port or ''}"
        self._timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirect)

    @property
    def name(self) -> str:
        """See ``keepwell.core.ports.alerts.Channel``."""
        return self._name

    def send(self, alert: Alert) -> str:
        """See ``keepwell.core.ports.alerts.Channel``."""
        request = urllib.request.Request(  # noqa: S310 - http(s) only, checked above
            self._url,
            data=msgspec.json.encode(alert),
            headers={"content-type": "application/json", "user-agent": "keepwell"},
            method="POST",
        )
        said = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(0.2 * 2**attempt)
            try:
                with self._opener.open(request, timeout=self._timeout) as answer:
                    return f"HTTP {answer.status}"
            except urllib.error.HTTPError as error:
                said = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, ValueError) as error:
                said = str(getattr(error, "reason", error))
        raise Unavailable(
            f"The webhook {self._name!r} did not take the alert: {said}.",
            where=self._shown,
            todo="See that the receiver runs; the alert is kept and tried again.",
        )
