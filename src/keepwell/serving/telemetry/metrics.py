"""The gateway's page for Prometheus: the counts of all workers together, and how each worker stands."""

from __future__ import annotations

import platform

import keepwell
from keepwell.serving.telemetry.exposition import Family, render
from keepwell.serving.telemetry.footprint import process_families
from keepwell.serving.telemetry.meters import (
    BOUNDS_ROWS,
    BOUNDS_US,
    Counts,
    Gone,
    Meters,
    Standing,
    parts_of,
)

BOUNDS_SECONDS = tuple(bound / 1e6 for bound in BOUNDS_US)


def gateway_page(meters: Meters) -> str:
    """Give the text (exposition format 0.0.4): counters since the gateway started, summed over all its workers."""
    counts, standing, gone = meters.total()
    found = [
        *_answers(counts),
        *_ticks(counts),
        *_trouble(counts),
        *_log(counts, standing),
        *_workers(counts, standing, gone),
        *_plans(standing),
        *_listeners(counts),
        build_family(),
        *process_families([({"worker": name}, each.footprint) for name, each in standing.items()]),
    ]
    return render(found)


def build_family() -> Family:
    """Say which build runs."""
    build = Family("keepwell_build_info", "gauge", "Always 1; the labels say what is running.")
    build.add(1, version=keepwell.__version__, python=platform.python_version())
    return build


def _answers(counts: Counts) -> list[Family]:
    rows = Family(
        "keepwell_predictions_total",
        "counter",
        "Rows answered, by how: ok, fallback (another arm answered for it) or error (no answer).",
    )
    for key, value in sorted(counts.rows.items()):
        endpoint, arm, version, status = parts_of(key)
        rows.add(value, endpoint=endpoint, arm=arm, version=version, status=status)
    latency = Family(
        "keepwell_prediction_latency_seconds",
        "histogram",
        "Time of a row from when its request was read until its answer was computed, the disk not included.",
    )
    for key, values in sorted(counts.latency.items()):
        endpoint, arm, version = parts_of(key)
        labels = {"endpoint": endpoint, "arm": arm, "version": version}
        latency.add_histogram(values[:-1], BOUNDS_SECONDS, values[-1] / 1e6, **labels)
    calls = Family("keepwell_model_calls_total", "counter", "Model calls; one computes a tick.")
    failed = Family("keepwell_model_call_failures_total", "counter", "Model calls that raised.")
    spent = Family(
        "keepwell_model_call_seconds_total", "counter", "Time spent in model calls, failed or not."
    )
    for key, values in sorted(counts.calls.items()):
        endpoint, version = parts_of(key)
        labels = {"endpoint": endpoint, "version": version}
        calls.add(values[0] + values[2], **labels)
        failed.add(values[2], **labels)
        spent.add((values[1] + values[3]) / 1e9, **labels)
    outcomes = Family("keepwell_outcomes_total", "counter", "Outcomes accepted.")
    outcomes.add(counts.plain.get("outcomes", 0))
    return [rows, latency, calls, failed, spent, outcomes]


def _ticks(counts: Counts) -> list[Family]:
    requests = Family(
        "keepwell_tick_requests",
        "histogram",
        "Requests computed together at an endpoint: those that had come since the tick before.",
    )
    for name, values in sorted(counts.tick_requests.items()):
        requests.add_histogram(values[:-1], BOUNDS_ROWS, values[-1], endpoint=name)
    rows = Family("keepwell_tick_rows", "histogram", "Rows computed together at an endpoint.")
    for name, values in sorted(counts.tick_rows.items()):
        rows.add_histogram(values[:-1], BOUNDS_ROWS, values[-1], endpoint=name)
    return [requests, rows]


def _trouble(counts: Counts) -> list[Family]:
    refused = Family(
        "keepwell_refused_requests_total", "counter", "Requests whose body does not fit."
    )
    for name, value in sorted(counts.refusals.items()):
        refused.add(value, endpoint=name)
    shed = Family(
        "keepwell_shed_requests_total",
        "counter",
        "Requests not computed for want of time: busy, deadline, full, late or gap.",
    )
    for key, value in sorted(counts.sheds.items()):
        name, reason = parts_of(key)
        shed.add(value, endpoint=name, reason=reason)
    errors = Family(
        "keepwell_error_responses_total",
        "counter",
        "Answers that are no success, over all protocols and paths, by HTTP status.",
    )
    for status, value in sorted(counts.errors.items()):
        errors.add(value, code=status)
    dropped = Family(
        "keepwell_dropped_shadows_total",
        "counter",
        "Rows of mirrors that were computed and could not be logged.",
    )
    dropped.add(counts.plain.get("dropped", 0))
    return [refused, shed, errors, dropped]


def _log(counts: Counts, standing: dict[str, Standing]) -> list[Family]:
    plain = counts.plain
    written = Family("keepwell_log_written_bytes_total", "counter", "Bytes given to the log.")
    written.add(plain.get("written", 0))
    lost = Family(
        "keepwell_log_append_failures_total", "counter", "Writes that the log's disk did not take."
    )
    lost.add(plain.get("append_failures", 0))
    syncs = Family(
        "keepwell_log_sync_seconds", "histogram", "Waits until the log was on the disk (fdatasync)."
    )
    if counts.syncs:
        syncs.add_histogram(counts.syncs[:-1], BOUNDS_SECONDS, counts.syncs[-1] / 1e6)
    failures = Family("keepwell_log_sync_failures_total", "counter", "Such waits that failed.")
    failures.add(plain.get("sync_failures", 0))
    behind = Family(
        "keepwell_log_unsynced_bytes", "gauge", "Bytes written to the log and not on the disk yet."
    )
    seconds = Family(
        "keepwell_log_unsynced_seconds", "gauge", "How long the oldest of them has waited, at most."
    )
    for name, each in standing.items():
        behind.add(each.unsynced, worker=name)
        seconds.add(each.unsynced_seconds, worker=name)
    return [written, lost, syncs, failures, behind, seconds]


def _workers(counts: Counts, standing: dict[str, Standing], gone: Gone) -> list[Family]:
    up = Family("keepwell_workers", "gauge", "Workers that live.")
    up.add(len(standing))
    wanted = Family("keepwell_workers_wanted", "gauge", "Workers that there should be.")
    wanted.add(gone.wanted)
    deaths = Family(
        "keepwell_worker_deaths_total", "counter", "Workers that ended without being told to."
    )
    deaths.add(gone.deaths)
    accepted = Family(
        "keepwell_accepted_connections_total", "counter", "HTTP connections accepted."
    )
    accepted.add(counts.plain.get("connected", 0))
    ready = Family("keepwell_worker_ready", "gauge", "1: everything of the newest edition answers.")
    edition = Family("keepwell_edition", "gauge", "Number of the edition that a worker serves.")
    connections = Family("keepwell_connections", "gauge", "Open HTTP connections.")
    pending = Family(
        "keepwell_pending_requests", "gauge", "Requests that wait for their tick or for the disk."
    )
    size = Family("keepwell_pending_bytes", "gauge", "Bytes of these requests.")
    for name, each in standing.items():
        ready.add(int(each.ready), worker=name)
        edition.add(each.edition, worker=name)
        connections.add(each.connections, worker=name)
        pending.add(each.pending, worker=name)
        size.add(each.pending_bytes, worker=name)
    expires = Family(
        "keepwell_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the TLS certificate in force expires; no sample without TLS.",
    )
    for name, each in standing.items():
        if each.certificate_expires is not None:
            expires.add(each.certificate_expires, worker=name)
    return [expires, up, wanted, deaths, accepted, ready, edition, connections, pending, size]


_LISTENERS = {
    "access_log_lines": "Lines of the access log, dropped ones too.",
    "access_log_dropped": "Lines of the access log that found no room or no disk.",
    "spans": "Spans made of traced requests, dropped ones too.",
    "spans_dropped": "Spans that found no room on their way to the collector.",
    "spans_failed": "Spans that the collector did not take.",
}


def _listeners(counts: Counts) -> list[Family]:
    """Tell what whoever is told of each request has counted, where somebody is."""
    found = []
    for name, told in _LISTENERS.items():
        if name in counts.plain:
            family = Family(f"keepwell_{name}_total", "counter", told)
            family.add(counts.plain[name])
            found.append(family)
    return found


def _plans(standing: dict[str, Standing]) -> list[Family]:
    plan = Family(
        "keepwell_plan_revision",
        "gauge",
        "Revision of the traffic plan in force; while workers differ, the oldest.",
    )
    revisions: dict[str, int] = {}
    for each in standing.values():
        for name, revision in each.plans.items():
            revisions[name] = min(revision, revisions.get(name, revision))
    for name, revision in sorted(revisions.items()):
        plan.add(revision, endpoint=name)
    weight = Family(
        "keepwell_arm_weight_ratio",
        "gauge",
        "Share of an endpoint's units that an arm answers; role 'mirror' answers nobody.",
    )
    newest = max(standing.values(), key=lambda each: each.edition, default=None)
    for endpoint, arm, version, share, mirrors in newest.arms if newest else ():
        weight.add(
            share,
            endpoint=endpoint,
            arm=arm,
            version=version,
            role="mirror" if mirrors else "arm",
        )
    return [plan, weight]
