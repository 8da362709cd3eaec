"""``keepwell drill``: use a safety mechanism for real before it is needed, and keep what came out as evidence."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import actor, print_json, project_state
from keepwell.core.errors import NotFound, near_miss
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import Endpoint
from keepwell.core.statements import TEST_RESULT, sign_evidence
from keepwell.lifecycle.roles import require
from keepwell.serving.drills import rollback_drill
from keepwell.serving.rollouts.plans import describe_plan, latest_plan


def run(given: argparse.Namespace) -> int:
    """Run the drill; exit 1 if it fails."""
    state = project_state(given)
    who = actor(given, state)
    require(who, "rollback", store=state.store)
    endpoint = state.store.get(Endpoint, given.endpoint)
    plan = latest_plan(given.endpoint, store=state.store)
    if endpoint is None or plan is None:
        known = [row.name for row in state.store.find(Endpoint)]
        raise NotFound(
            f"There is no endpoint {given.endpoint!r}.", todo=near_miss(given.endpoint, known)
        )
    back = state.rollouts.preview_roll_back(given.endpoint, reason="a drill")
    if not given.json:
        sys.stderr.write(
            f"beside the live gateway: from {describe_plan(plan)} to {describe_plan(back)} ...\n"
        )
    result = rollback_drill(
        endpoint, plan, back, blobs=state.blobs, workers=state.settings.server.gateway_workers
    )
    arm = back.arms[0]
    version = state.store.get(ModelVersion, arm.model, arm.version)
    assert version is not None
    now = state.clock.now()
    evidence = sign_evidence(
        signer=state.signer,
        blobs=state.blobs,
        subject=version.label(),
        subject_digest=version.artefact,
        predicate=TEST_RESULT,
        body={
            "check": result.check,
            "message": result.message,
            "measured": result.measured,
            "limits": result.limits,
            "endpoint": endpoint.name,
            "from_plan": plan.revision,
        },
        verdict=result.verdict,
        now=now,
        procedure=f"drill-{endpoint.name}-{now}",
        step="rollback",
    )
    with state.store.transaction(actor=who) as transaction:
        transaction.add(evidence, reason=result.message)
    if given.json:
        print_json({"result": result, "evidence": evidence})
    else:
        sys.stdout.write(f"{result.verdict}: {result.message}\nevidence {evidence.envelope}\n")
    return int(result.verdict != "pass")
