"""Showing a release or an activation: steps, checks, verdicts, and what comes next."""

from __future__ import annotations

import sys

from keepwell.app.cli.common import print_json
from keepwell.app.wiring import State
from keepwell.core.digest import short
from keepwell.core.records.lifecycle import Activation, Procedure, StepResult

_MARKS = {"pass": "ok  ", "fail": "FAIL", "inconclusive": "??  ", "waived": "--  "}


def show_procedure(state: State, procedure: Procedure, *, as_json: bool) -> int:
    """Print a procedure with its steps; the exit status is 1 if it failed."""
    steps = state.store.find(StepResult, {"procedure": procedure.id}, order=["number"])
    failed = procedure.state == "failed"
    noun = "activation" if isinstance(procedure, Activation) else "release"
    label = f"{procedure.model}/{procedure.version}"
    if failed:
        sys.stderr.write(
            f"the {noun} of {label} failed at {procedure.step!r}: {procedure.reason}\n"
        )
    if as_json:
        print_json({"procedure": procedure, "steps": steps})
        return int(failed)
    sys.stdout.write(f"{noun} of {label}: {procedure.state}\n")
    for step in steps:
        sys.stdout.write(
            f"{_MARKS[step.verdict]} {step.number} {step.step}  [{short(step.evidence)}]\n"
        )
        for result in step.results:
            sys.stdout.write(f"       {_MARKS[result.verdict]} {result.check}: {result.message}\n")
    if procedure.state == "waiting":
        sys.stdout.write(f"waits at {procedure.step!r} for {procedure.waits_for}\n")
        if "approval" in procedure.waits_for:
            sys.stdout.write(f"next: keepwell approve {label} --as NAME --reason '...'\n")
    elif procedure.state == "passed" and noun == "release":
        sys.stdout.write(
            f"next: keepwell approve {label} --as NAME --reason '...', then keepwell activate {label}\n"
        )
    return int(failed)
