"""``keepwell evidence``: the signed proof behind every verdict."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import actor, print_json, project_state, table
from keepwell.app.proof import evidence_problems
from keepwell.core.digest import short
from keepwell.core.errors import NotFound
from keepwell.core.records.evidence import Evidence
from keepwell.core.statements import read_evidence
from keepwell.lifecycle.roles import require


def run(given: argparse.Namespace) -> int:
    """List, show one, verify all, or make a new key; the exit status of verify is 1 if anything does not hold."""
    state = project_state(given)
    if given.verb == "new-key":
        who = actor(given, state)
        require(who, "new key", store=state.store)
        key = state.new_key(actor=who)
        if given.json:
            print_json({"keyid": key.keyid, "created": key.created})
        else:
            sys.stdout.write(
                f"the key {key.keyid} signs from now on; what earlier keys signed still holds\n"
            )
        return 0
    rows = state.store.find(Evidence, order=["created"])
    if given.verb == "verify":
        problems = evidence_problems(state)
        if given.json:
            print_json({"checked": len(rows), "problems": problems})
        else:
            sys.stdout.write("".join(f"{problem}\n" for problem in problems))
            sys.stdout.write(
                f"{len(rows)} pieces of evidence and their artefacts checked: "
                + (f"{len(problems)} problems\n" if problems else "all hold\n")
            )
        return int(bool(problems))
    if given.verb == "show":
        wanted = given.digest.removeprefix("sha256:")
        found = [
            row
            for row in rows
            if wanted and row.envelope.removeprefix("sha256:").startswith(wanted)
        ]
        if not found:
            raise NotFound(
                f"There is no evidence {given.digest!r}.", todo="'keepwell evidence list' lists it."
            )
        statement = read_evidence(found[0], blobs=state.blobs, verifier=state.verifier)
        print_json({"evidence": found[0], "statement": statement})
        return 0
    if given.json:
        print_json(rows)
    else:
        cells = [(short(r.envelope), r.subject, r.step, r.verdict, r.procedure) for r in rows]
        sys.stdout.write(
            table(cells, ("envelope", "subject", "step", "verdict", "procedure")) + "\n"
        )
    return 0
