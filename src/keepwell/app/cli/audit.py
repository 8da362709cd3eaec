"""``keepwell audit``: who changed what, when, and the proof that nobody changed that."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import print_json, project_state, table
from keepwell.core.auditing import audit_problems
from keepwell.core.clock import iso


def run(given: argparse.Namespace) -> int:
    """List the newest entries, or verify the chain; the exit status of verify is 1 if it is broken."""
    state = project_state(given)
    if given.verb == "verify":
        problems = audit_problems(state.store)
        count = sum(1 for _ in state.store.audit())
        if given.json:
            print_json({"entries": count, "problems": problems})
        else:
            sys.stdout.write("".join(f"{problem}\n" for problem in problems))
            sys.stdout.write(
                f"{count} entries checked: "
                + (f"{len(problems)} problems\n" if problems else "unbroken\n")
            )
        return int(bool(problems))
    entries = list(state.store.audit())[-given.last :]
    if given.json:
        print_json(entries)
    else:
        rows = [
            (e.seq, iso(e.time)[:19], e.actor, e.action, e.subject, e.reason[:60]) for e in entries
        ]
        sys.stdout.write(table(rows, ("seq", "time", "who", "what", "record", "reason")) + "\n")
    return 0
