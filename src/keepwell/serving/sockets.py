"""Sockets that a parent binds, for its workers to inherit or to stand beside."""

from __future__ import annotations

import socket

from keepwell.core.errors import Unavailable


def bind(host: str, port: int) -> socket.socket:
    """Bind and listen. Raises Unavailable naming what to do when the port is taken."""
    listening = _bound(host, port)
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port that workers listen at themselves, side by side. Raises Unavailable, as ``bind`` does.

    The socket never listens, so no connection ends in it; the port stays ours while workers come and go.
    """
    # A free port is seen without SO_REUSEPORT: with it, a second gateway would share the first one's port unnoticed.
    with _bound(host, port) as first:
        port = int(first.getsockname()[1])
    return _bound(host, port, shared=True)


def _bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise Unavailable(
            f"The address {host}:{port} cannot be bound: {error.strerror}.",
            todo="Another program holds the port, perhaps another 'keepwell up': end it, or set another port"
            " under [server] in keepwell.toml (0 takes a free one).",
        ) from error
    return made
