"""The gate: which bearer tokens may ask a gateway, by a file of their SHA-256 digests that may change at any time."""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from pathlib import Path

from keepwell.core.errors import InvalidInput, Unavailable

OPEN = frozenset({"/live", "/ready", "/v2/health/live", "/v2/health/ready", "/ping", "/health"})
"""Paths for those who look whether it lives: they ask without a token."""
DENIED = "A bearer token is needed here, and none that is known was sent."
_LINE = re.compile(r"sha256:([0-9a-f]{64})(?:\s.*)?")


def read_digests(path: Path) -> tuple[bytes, ...]:
    """Read one ``sha256:HEX`` a line, with anything behind a space. Raises Unavailable, InvalidInput."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(
            f"The file of gateway tokens cannot be read: {error}.",
            where=str(path),
            todo="Make it readable, or take gateway_token_file out of [server] in keepwell.toml.",
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        matched = _LINE.fullmatch(line.strip())
        if matched is None:
            # What stands there may be a token: it is not repeated.
            raise InvalidInput(
                f"Line {number} is not 'sha256:' and 64 hexadecimal digits in lower case.",
                where=str(path),
                todo="Write the SHA-256 of the token, not the token: printf %s TOKEN | sha256sum",
            )
        found.append(bytes.fromhex(matched[1]))
    return tuple(found)


class Gate:
    """Lets requests in. Without a file everybody; while the file is wrong, those that it named before."""

    def __init__(self, path: Path | None = None) -> None:
        self.closed = path is not None
        self.problem = ""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()

    def refresh(self) -> bool:
        """Read the file if it has changed; tell whether other tokens are good now."""
        if self._path is None:
            return False
        try:
            found = self._path.stat()
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp == self._stamp:
                return False
            digests = read_digests(self._path)
        except (OSError, Unavailable, InvalidInput) as error:
            self.problem = str(error)
            return False
        changed = digests != self._digests
        self._stamp, self._digests, self.problem = stamp, digests, ""
        return changed

    def admits(self, authorization: bytes) -> bool:
        """Tell whether a request with this header may ask. The time it takes says nothing of which token is near."""
        kind, _, token = authorization.partition(b" ")
        sent = sha256(token.strip()).digest()
        good = False
        for digest in self._digests:
            good |= hmac.compare_digest(sent, digest)
        return not self.closed or (good and kind.lower() == b"bearer")
