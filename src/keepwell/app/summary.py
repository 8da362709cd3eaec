"""The summary of a story: what was released, refused, activated, renewed, served and earned, from rows alone."""

from __future__ import annotations

from typing import Any

from keepwell.app.wiring import State
from keepwell.core.clock import iso
from keepwell.core.records.lifecycle import Activation, Approval, StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import Rollout
from keepwell.core.records.watching import Alert, Decision, LedgerEntry
from keepwell.core.records.work import Replay
from keepwell.watch.totals import totals


def summarise(state: State, *, endpoint: str, model: str, seconds: float) -> dict[str, Any]:
    """Give the summary as plain values."""
    store = state.store
    steps = store.find(StepResult, {"model": model}, order=["started"])
    replays = store.find(Replay, {"endpoint": endpoint})
    acknowledged = sum(replay.acknowledged for replay in replays)
    logged = logged_decisions(state, endpoint)
    entries = store.find(LedgerEntry, {"endpoint": endpoint})
    answered = _answered_windows(state, entries)
    ledger: dict[str, Any] = {}
    if answered:
        total = totals(answered)
        ledger = {
            "value": total.difference,
            "low": total.low,
            "high": total.high,
            "unit": total.unit,
            "baseline": total.baseline,
            "earned": total.value,
            "labelled": total.labelled,
        }
    return {
        "release": [_step(s) for s in steps if s.procedure.startswith("release-")],
        "activation": [_step(s) for s in steps if s.procedure.startswith("activation-")],
        "refused": [
            {
                "version": s.version,
                "step": s.step,
                "reason": "; ".join(r.message for r in s.results if r.verdict == "fail"),
            }
            for s in steps
            if s.verdict == "fail" and s.procedure.startswith("release-")
        ],
        "approvals": [
            {"version": a.version, "by": a.by, "scope": a.scope}
            for a in store.find(Approval, {"model": model})
        ],
        "alerts": [
            {
                "time": iso(a.event_time),
                "monitor": a.monitor,
                "version": a.version,
                "state": a.state,
                "message": a.message,
            }
            for a in store.find(Alert, {"endpoint": endpoint, "drill": False}, order=["event_time"])
        ],
        "renewals": [
            _renewal(state, d)
            for d in store.find(
                Decision, {"endpoint": endpoint, "kind": "retrain"}, order=["event_time"]
            )
        ],
        "requests": {
            "served": acknowledged,
            "failed": sum(replay.failed for replay in replays),
            "retried": sum(replay.retried for replay in replays),
        },
        "predictions": {
            "acknowledged": acknowledged,
            "logged": logged,
            "equal": acknowledged == logged,
        },
        "ledger": ledger,
        "seconds": round(seconds, 1),
    }


def _step(step: StepResult) -> dict[str, Any]:
    return {"version": step.version, "step": step.step, "verdict": step.verdict}


def _answered_windows(state: State, entries: list[LedgerEntry]) -> list[LedgerEntry]:
    """Keep what was earned by versions that answered; a mirror earns nothing."""
    del state
    return [entry for entry in entries if entry.labelled > 0]


def logged_decisions(state: State, endpoint: str) -> int:
    """Count the decisions in the log, each id once, mirrors left out."""
    seen: set[str] = set()
    cursor: dict[str, int] = {}
    while True:
        batch = state.log.read(cursor)
        if not batch.predictions and not batch.outcomes:
            return len(seen)
        cursor = batch.cursor
        seen.update(p.id for p in batch.predictions if not p.mirror and p.endpoint == endpoint)


def _renewal(state: State, decision: Decision) -> dict[str, Any]:
    """Follow one decision to what came of it."""
    store = state.store
    found = [
        version
        for version in store.find(
            ModelVersion, {"model": decision.model, "renews": decision.version}
        )
        if version.created >= decision.made
    ]
    version = found[0] if found else None
    activation = (
        store.find(Activation, {"model": version.model, "version": version.version})
        if version
        else []
    )
    rollout = store.get(Rollout, f"rollout-{activation[0].id}") if activation else None
    verdict = rollout.state if rollout else version.state if version else decision.state
    return {
        "detected": iso(decision.event_time),
        "reason": decision.reason,
        "version": version.version if version else None,
        "decided": iso(rollout.ended) if rollout and rollout.ended else None,
        "verdict": verdict,
        "why": rollout.reason if rollout else version.reason if version else decision.result,
        "times": {
            "made": decision.made,
            "trained": version.created if version else None,
            "rollout_started": rollout.started if rollout else None,
            "rollout_ended": rollout.ended if rollout else None,
        },
    }


def render(summary: dict[str, Any]) -> str:
    """Write the summary for people."""
    lines = ["", "SUMMARY"]
    passed: dict[str, list[str]] = {}
    for kind in ("release", "activation"):
        for step in summary[kind]:
            passed.setdefault(f"{kind} of v{step['version']}", []).append(step["verdict"])
    for what, verdicts in passed.items():
        lines.append(
            f"  {what:<20} {sum(v in {'pass', 'waived'} for v in verdicts)} of 7 steps passed"
        )
    for refused in summary["refused"]:
        lines.append(
            f"  v{refused['version']} refused at {refused['step']!r}: {refused['reason'][:300]}"
        )
    for renewal in summary["renewals"]:
        lines.append(
            f"  renewal: decay found {renewal['detected'][:10]}, v{renewal['version']},"
            f" {renewal['verdict']}. {str(renewal['why'])[:200]}"
        )
    requests, predictions = summary["requests"], summary["predictions"]
    lines.append(
        f"  requests: {requests['served']:,} served, {requests['failed']:,} failed;"
        f" {predictions['acknowledged']:,} acknowledged, {predictions['logged']:,} in the log"
    )
    ledger = summary["ledger"]
    if ledger:
        lines.append(
            f"  value: {ledger['value']:+,.0f} {ledger['unit']} against the rule in use"
            f" (95% interval {ledger['low']:,.0f} to {ledger['high']:,.0f}, {ledger['labelled']:,} labelled decisions)"
        )
    lines.append(f"  {summary['seconds']:.0f} seconds")
    return "\n".join(lines)
