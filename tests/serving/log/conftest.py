"""The log's own tests read what a process left to the kernel: whether the disk has it changes nothing of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _nobody_waits_for_the_disk() -> Iterator[None]:
    """Thousands of small files would be brought to the disk, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda _: None)
        yield
