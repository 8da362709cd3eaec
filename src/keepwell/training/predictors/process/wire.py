"""The wire between a gateway's worker and a runtime: frames on a Unix socket, numbers as they lie in memory.

A frame is a head and a payload. Numbers travel as one float64 matrix, texts as MessagePack; nothing is written row by
row as JSON. Both ends run on one machine: the bytes' order is its own, deadlines are readings of its monotonic clock.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

HEAD = struct.Struct("<QIIHBxd")
"""Bytes of the payload, number of the call, rows, columns, kind, deadline (seconds; 0: none)."""
NUMBERS, TEXTS, HELLO, VALUES, FAILED, LATE, BYE = range(1, 8)
"""Two kinds of questions, and what a runtime says: it is ready; the answers; the model raised; the caller no longer
waits; take another connection for what comes next, this one is answered to its end."""


def question(number: int, rows: npt.NDArray[Any], deadline: float) -> tuple[bytes, Any]:
    """Write a question: head and payload, the latter without a copy where it is numbers."""
    n, width = rows.shape
    if rows.dtype == object:
        payload: Any = msgspec.msgpack.encode(rows.tolist())
        return HEAD.pack(len(payload), number, n, width, TEXTS, deadline), payload
    matrix = np.ascontiguousarray(rows, dtype=np.float64)
    return HEAD.pack(matrix.nbytes, number, n, width, NUMBERS, deadline), matrix.data.cast(
        "B"
    ) if matrix.size else b""


def rows_of(kind: int, rows: int, columns: int, payload: Any) -> npt.NDArray[Any]:
    """Read a question's rows, shape (rows, columns)."""
    if kind == TEXTS:
        return np.array(msgspec.msgpack.decode(payload), dtype=object).reshape(rows, columns)
    return np.frombuffer(payload, dtype=np.float64).reshape(rows, columns)


def answer(number: int, values: npt.NDArray[np.float64]) -> bytes:
    """Write the answers to a question, shape (n,) or (n, classes)."""
    columns = values.shape[1] if values.ndim == 2 else 0
    content = np.ascontiguousarray(values, dtype=np.float64).tobytes()
    return HEAD.pack(len(content), number, len(values), columns, VALUES, 0.0) + content


def said(number: int, kind: int, text: str = "") -> bytes:
    """Write what is no answer: HELLO, FAILED, LATE or BYE, and why."""
    content = text.encode()
    return HEAD.pack(len(content), number, 0, 0, kind, 0.0) + content


def values_of(rows: int, columns: int, payload: bytes) -> npt.NDArray[np.float64]:
    """Read answers."""
    flat = np.frombuffer(payload, dtype=np.float64)
    return flat.reshape(rows, columns) if columns else flat


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Name a socket's place so shortly that the kernel takes it, however deep its folder lies (108 bytes are all)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
