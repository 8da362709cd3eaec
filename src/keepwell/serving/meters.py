"""What a worker counts, and the Prometheus text of all workers together."""

from __future__ import annotations

import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import msgspec

BOUNDS_US = (100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000)
"""Upper bounds of the latency histogram, microseconds."""


class Work(msgspec.Struct, frozen=True):
    """The model calls of one version at one endpoint. A call computes all rows of a tick."""

    calls: int = 0
    spent: int = 0
    """Nanoseconds."""
    failed: int = 0
    failed_spent: int = 0
    rows: int = 0
    last: int = 0
    """When the last call succeeded, milliseconds since 1970."""


class Meters:
    """Counters of one worker, shared with the others through a file a worker."""

    def __init__(self, folder: Path, *, worker: str) -> None:
        self._folder = folder
        self._path = folder / f"{worker}.json"
        self.counts: dict[tuple[str, str, int, str], int] = {}
        self.latency: dict[tuple[str, str, int], list[int]] = {}
        self.refusals: dict[str, int] = {}
        self.calls: dict[tuple[str, int], list[int]] = {}
        self.sheds: dict[tuple[str, str], int] = {}
        self.dropped = 0
        self.outcomes = 0

    def answered(
        self,
        endpoint: str,
        arm: str,
        version: int,
        status: str,
        latencies: list[int],
        rows: list[int] | None = None,
    ) -> None:
        """Count what one arm answered in a tick: a latency (microseconds) a request, and its rows if not one."""
        key = (endpoint, arm, version, status)
        n = len(latencies) if rows is None else sum(rows)
        self.counts[key] = self.counts.get(key, 0) + n
        buckets = self.latency.get(key[:3])
        if buckets is None:
            buckets = self.latency[key[:3]] = [0] * (len(BOUNDS_US) + 2)
        place = bisect_left(BOUNDS_US, min(latencies))
        if rows is None and place == bisect_left(BOUNDS_US, max(latencies)):
            # The requests of one tick mostly took alike.
            buckets[-1] += sum(latencies)
            buckets[place] += n
            return
        for latency, count in zip(latencies, rows or [1] * n, strict=True):
            buckets[-1] += latency * count
            buckets[bisect_left(BOUNDS_US, latency)] += count

    def refused(self, endpoint: str) -> None:
        """Count one request with bad input."""
        self.refusals[endpoint] = self.refusals.get(endpoint, 0) + 1

    def shed(self, endpoint: str, reason: str) -> None:
        """Count one request that was not computed for want of time."""
        self.sheds[endpoint, reason] = self.sheds.get((endpoint, reason), 0) + 1

    def ran(self, endpoint: str, version: int, *, rows: int, spent: int, failed: bool) -> None:
        """Count one model call that took ``spent`` nanoseconds."""
        work = self.calls.setdefault((endpoint, version), [0] * len(Work.__struct_fields__))
        place = 2 if failed else 0
        work[place] += 1
        work[place + 1] += spent
        if not failed:
            work[4] += rows
            work[5] = time.time_ns() // 1_000_000

    def work(self) -> dict[tuple[str, int], Work]:
        """Sum the model calls of all workers since the gateway started, by endpoint and version."""
        found: dict[tuple[str, int], Work] = {}
        for part in self._parts():
            for endpoint, version, *values in part["calls"]:
                before = found.get((endpoint, version), Work())
                sums = [a + b for a, b in zip(msgspec.structs.astuple(before), values, strict=True)]
                sums[5] = max(before.last, values[5])
                found[endpoint, version] = Work(*sums)
        return found

    def _own(self) -> dict[str, Any]:
        return {
            "counts": [[*key, value] for key, value in self.counts.items()],
            "latency": [[*key, value] for key, value in self.latency.items()],
            "refusals": self.refusals,
            "sheds": [[*key, value] for key, value in self.sheds.items()],
            "calls": [[*key, *values] for key, values in self.calls.items()],
            "dropped": self.dropped,
            "outcomes": self.outcomes,
        }

    def share(self) -> None:
        """Write the counters where the other workers read them."""
        temporary = self._path.with_suffix(".new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(self._own()))
            temporary.replace(self._path)
        except OSError:
            # A full disk must not end a worker that still answers: the next call shares them all again.
            temporary.unlink(missing_ok=True)

    def _parts(self) -> list[dict[str, Any]]:
        """Read the counters of all workers, the own ones as they are now."""
        parts = [self._own()]
        for path in self._folder.glob("*.json"):
            if path != self._path:
                try:
                    parts.append(msgspec.json.decode(path.read_bytes()))
                except (OSError, msgspec.DecodeError):
                    continue  # a worker that ends right now
        return parts

    def render(self) -> str:
        """Give the Prometheus text (exposition format 0.0.4), summed over all workers since the gateway started."""
        parts = self._parts()
        counts: dict[tuple[Any, ...], int] = {}
        latency: dict[tuple[Any, ...], list[int]] = {}
        refusals: dict[str, int] = {}
        sheds: dict[tuple[str, str], int] = {}
        for part in parts:
            for endpoint, reason, value in part["sheds"]:
                sheds[endpoint, reason] = sheds.get((endpoint, reason), 0) + value
            for *key, value in part["counts"]:
                counts[tuple(key)] = counts.get(tuple(key), 0) + value
            for *key, values in part["latency"]:
                before = latency.get(tuple(key), [0] * len(values))
                latency[tuple(key)] = [a + b for a, b in zip(before, values, strict=True)]
            for name, value in part["refusals"].items():
                refusals[name] = refusals.get(name, 0) + value
        lines = ["# TYPE keepwell_predictions_total counter"]
        for (endpoint, arm, version, status), value in sorted(counts.items()):
            labels = f'endpoint="{endpoint}",arm="{arm}",version="{version}",status="{status}"'
            lines.append(f"keepwell_predictions_total{{{labels}}} {value}")
        lines.append("# TYPE keepwell_prediction_latency_seconds histogram")
        for (endpoint, arm, version), values in sorted(latency.items()):
            labels = f'endpoint="{endpoint}",arm="{arm}",version="{version}"'
            running = 0
            for bound, value in zip(BOUNDS_US, values, strict=False):
                running += value
                lines.append(
                    f'keepwell_prediction_latency_seconds_bucket{{{labels},le="{bound / 1e6:g}"}} {running}'
                )
            total = sum(values[:-1])
            lines.append(
                f'keepwell_prediction_latency_seconds_bucket{{{labels},le="+Inf"}} {total}'
            )
            lines.append(
                f"keepwell_prediction_latency_seconds_sum{{{labels}}} {values[-1] / 1e6:.6f}"
            )
            lines.append(f"keepwell_prediction_latency_seconds_count{{{labels}}} {total}")
        lines.append("# TYPE keepwell_refused_requests_total counter")
        lines += [
            f'keepwell_refused_requests_total{{endpoint="{name}"}} {value}'
            for name, value in sorted(refusals.items())
        ]
        lines.append("# TYPE keepwell_shed_requests_total counter")
        lines += [
            f'keepwell_shed_requests_total{{endpoint="{name}",reason="{reason}"}} {value}'
            for (name, reason), value in sorted(sheds.items())
        ]
        lines.append("# TYPE keepwell_dropped_shadows_total counter")
        lines.append(f"keepwell_dropped_shadows_total {sum(part['dropped'] for part in parts)}")
        lines.append("# TYPE keepwell_outcomes_total counter")
        lines.append(f"keepwell_outcomes_total {sum(part['outcomes'] for part in parts)}")
        return "\n".join(lines) + "\n"
