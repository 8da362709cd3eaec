"""What a process takes of the machine, under the names that Prometheus' own clients use. Linux's /proc is read."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import msgspec

from keepwell.serving.telemetry.exposition import Family

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Footprint(msgspec.Struct, frozen=True):
    """One process as it was when it looked at itself."""

    pid: int
    born: int
    """Clock ticks between the machine's start and the process's: with the pid it names one process for good."""
    cpu: float
    """Seconds of processor time, user and system."""
    resident: int
    virtual: int
    """Bytes."""
    descriptors: int
    descriptor_limit: int
    started: float
    """Seconds since 1970."""


def _fields(pid: int) -> list[bytes]:
    # The name may hold spaces and brackets; what follows its last bracket is numbers.
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()


def take_footprint() -> Footprint:
    """Look at the own process."""
    pid = os.getpid()
    fields = _fields(pid)
    born = int(fields[19])
    boot = next(
        int(line.split()[1])
        for line in Path("/proc/stat").read_bytes().splitlines()
        if line.startswith(b"btime")
    )
    return Footprint(
        pid=pid,
        born=born,
        cpu=(int(fields[11]) + int(fields[12])) / _TICK,
        resident=int(fields[21]) * _PAGE,
        virtual=int(fields[20]),
        descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        descriptor_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        started=boot + born / _TICK,
    )


def is_alive(footprint: Footprint) -> bool:
    """Tell whether the very process still runs; a later one of the same number does not count."""
    try:
        fields = _fields(footprint.pid)
    except OSError:
        return False
    return int(fields[19]) == footprint.born and fields[0] != b"Z"


def process_families(found: Sequence[tuple[dict[str, str], Footprint]]) -> list[Family]:
    """Give the ``process_*`` families of some processes, each with its labels."""
    cpu = Family("process_cpu_seconds_total", "counter", "User and system CPU time, in seconds.")
    resident = Family("process_resident_memory_bytes", "gauge", "Resident memory, in bytes.")
    virtual = Family("process_virtual_memory_bytes", "gauge", "Virtual memory, in bytes.")
    files = Family("process_open_fds", "gauge", "Open file descriptors.")
    limit = Family("process_max_fds", "gauge", "Most file descriptors that may be open.")
    started = Family(
        "process_start_time_seconds", "gauge", "Start of the process, seconds since 1970."
    )
    for labels, of in found:
        cpu.add(of.cpu, **labels)
        resident.add(of.resident, **labels)
        virtual.add(of.virtual, **labels)
        files.add(of.descriptors, **labels)
        limit.add(of.descriptor_limit, **labels)
        started.add(of.started, **labels)
    return [cpu, resident, virtual, files, limit, started]
