"""TLS at the gateway's door: its certificate, read again when its files change, and the trust of our own callers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from keepwell.core.errors import InvalidInput, KeepwellError, Unavailable

HANDSHAKE_SECONDS = 10.0
SHUTDOWN_SECONDS = 2.0
"""So long a closing connection waits for its client's last word: less than a worker that drains has."""
_TODO = "Mend tls_certificate and tls_key under [server] in keepwell.toml, or take both out."
_REASONS = {
    "KEY_VALUES_MISMATCH": "The key does not belong to the certificate.",
    "NO_START_LINE": "There is no PEM block of the right kind in it.",
    "CERTIFICATE_VERIFY_FAILED": "No client would take the certificate",
}


def read_context(certificate: Path, key: Path) -> tuple[ssl.SSLContext, float]:
    """Read a certificate (with its chain behind it) and its key, both PEM, and see that a client takes them.

    Gives the server's context, and when the certificate expires, seconds since 1970.

    TLS 1.2 is the least. Raises Unavailable for files that cannot be read, InvalidInput for what is in them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load(context, certificate, key)
    shown = _greet(context, certificate)
    return context, ssl.cert_time_to_seconds(str(shown["notAfter"]))


def load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Put the files' content into a context; connections from now on use it. Raises as ``read_context``."""
    for path, name in ((certificate, "certificate"), (key, "key")):
        try:
            path.read_bytes()
        except OSError as error:
            raise Unavailable(
                f"The gateway's TLS {name} cannot be read: {error.strerror}.",
                where=str(path),
                todo=_TODO,
            ) from error
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise _wrong(error, f"{certificate}, {key}") from error


def trust(certificate: Path) -> ssl.SSLContext:
    """Make a client's context that trusts exactly the first certificate of a file, under any name.

    Our own processes ask by an address that need not stand in the certificate. Raises Unavailable, InvalidInput.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        first, end, _ = certificate.read_text("ascii").partition("-----END CERTIFICATE-----")
        context.load_verify_locations(
            cadata=first[first.find("-----BEGIN CERTIFICATE-----") :] + end
        )
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(
            f"The gateway's TLS certificate cannot be read: {error}.",
            where=str(certificate),
            todo=_TODO,
        ) from error
    except (ssl.SSLError, ValueError) as error:
        raise _wrong(error, str(certificate)) from error
    return context


class Tls:
    """A worker's certificate. While its files are wrong, new connections get the one before."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._stamps = self._look()
        self.context, self.expires = read_context(certificate, key)
        self.content = self._content()
        self.problem = ""

    def refresh(self) -> bool:
        """Read the files if they have changed; tell whether new connections get another certificate."""
        stamps = self._look()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            # The one that serves is touched last: a wrong pair, or half of a new one, never gets into it.
            _, expires = read_context(*self._paths)
            load(self.context, *self._paths)
            self.content, self.expires = self._content(), expires
        except (KeepwellError, OSError) as error:
            self.problem = str(error)
            return False
        self.problem = ""
        return True

    def _look(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                found = path.stat()
                stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
            except OSError:
                stamps.append(None)
        return stamps

    def _content(self) -> tuple[bytes, bytes]:
        """Certificate and key as they are in the files: gRPC wants the bytes."""
        certificate, key = self._paths
        return certificate.read_bytes(), key.read_bytes()


def _no_password() -> str:
    # OpenSSL would ask for it at the terminal.
    raise InvalidInput(
        "The gateway's TLS key is encrypted; nobody can be asked for its password.",
        todo="Write it without one, readable by the gateway's user alone: openssl pkey -in KEY -out PLAIN",
    )


def _greet(context: ssl.SSLContext, certificate: Path) -> Mapping[str, object]:
    """Let a client that trusts the certificate shake hands with the server, in memory; give what it was shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust(certificate).wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise _wrong(error, str(certificate)) from error
    return client.getpeercert() or {}


def _wrong(error: Exception, where: str) -> InvalidInput:
    reason = getattr(error, "reason", "") or str(error)
    said = _REASONS.get(reason, f"It is no certificate with its key: {error}.")
    if reason == "CERTIFICATE_VERIFY_FAILED":
        said += f": {getattr(error, 'verify_message', '')}."
    return InvalidInput(f"The gateway cannot use its TLS files. {said}", where=where, todo=_TODO)
