"""The gateway as an application calls it: plain HTTP, bounded waits."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from keepwell.core.errors import InvalidInput, Unavailable


class HttpApplication:
    """Calls a gateway. Implements ``keepwell.core.ports.stage.Application``."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout: float = 10.0,
        token: str = "",
        trust: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        """``trust`` tells, at every request, whose certificate an ``https`` gateway may show; None: as the machine."""
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        parts = urlsplit(base_url)
        self._host = parts.hostname or "127.0.0.1"
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._trust = trust
        self._timeout = timeout

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Make one request. Raises Unavailable if no answer comes."""
        connection = self._connection()
        try:
            connection.request(method, path, body=body, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"The gateway did not answer: {error}.",
                where=f"{'https' if self._secure else 'http'}://{self._host}:{self._port}{path}",
                todo="Start it with 'keepwell up'.",
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._trust()
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def _predict(self, endpoint: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        status, answer = self.request(
            "POST", f"/v1/endpoints/{endpoint}/predict", msgspec.json.encode(body)
        )
        given = msgspec.json.decode(answer)
        if status == 200:
            predictions: list[dict[str, Any]] = given["predictions"]
            return predictions
        kind = InvalidInput if status in {400, 404, 422} else Unavailable
        raise kind(str(given.get("error", answer[:200])), where=f"endpoint {endpoint!r}")

    def predict(self, endpoint: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """See ``keepwell.core.ports.stage.Application``."""
        return self._predict(endpoint, {"rows": list(rows)})

    def probe(
        self, endpoint: str, *, version: int, rows: Sequence[dict[str, Any]], within: float
    ) -> list[Any]:
        """See ``keepwell.core.ports.stage.Application``."""
        deadline = time.monotonic() + within
        while True:
            try:
                answers = self._predict(endpoint, {"rows": list(rows), "probe": version})
                return [answer["prediction"] for answer in answers]
            except (Unavailable, InvalidInput):
                # Not deployed, or not loaded yet: both pass.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
