"""A local webhook receiver for the demo: takes alerts by HTTP on loopback and keeps them in a file."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from keepwell.core.errors import Unavailable

MAX_ALERT = 1_000_000
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Receiver:
    """Listens while its block runs; each alert becomes one line of ``path``."""

    def __init__(self, url: str, *, path: Path) -> None:
        parts = urlsplit(url)
        if parts.hostname not in LOOPBACK:
            raise Unavailable(
                f"The demo's receiver listens on loopback only, not on {parts.hostname!r}."
            )
        lock = threading.Lock()

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                if not 0 < length <= MAX_ALERT:
                    self.send_error(413 if length else 411)
                    return
                body = self.rfile.read(length).replace(b"\n", b" ")
                with lock, path.open("ab") as file:
                    file.write(body + b"\n")
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing: the alerts themselves are the record."""

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._server = ThreadingHTTPServer(
                (parts.hostname or "127.0.0.1", parts.port or 80), Take
            )
        except OSError as error:
            raise Unavailable(
                f"The webhook receiver cannot listen at {url}: {error.strerror}.",
                todo="Another program holds that port; set another URL under [[alerts]] in keepwell.toml.",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
