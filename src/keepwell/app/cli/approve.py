"""``keepwell approve``: a named person's consent, bound to digests."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import actor, print_json, project_state, version_named
from keepwell.core.clock import iso
from keepwell.core.digest import short
from keepwell.lifecycle.approvals import approve


def run(given: argparse.Namespace) -> int:
    """Approve and say what that binds."""
    state = project_state(given)
    version = version_named(state, given.version)
    approval = approve(
        version.model,
        version.version,
        by=actor(given, state),
        reason=given.reason,
        expires_in=state.settings.policy.approval_expires,
        scope="renewals" if given.renewals else "version",
        store=state.store,
        blobs=state.blobs,
        signer=state.signer,
        clock=state.clock,
    )
    if given.json:
        print_json(approval)
        return 0
    what = "renewals of" if given.renewals else ""
    sys.stdout.write(
        f"{approval.by} approved {what} {version.label()} until {iso(approval.expires)}\n".replace(
            "  ", " "
        )
        + f"  artefact {short(approval.bound.artefact)}  data {short(approval.bound.training_set)}"
        f"  code {short(approval.bound.code)}  policy {short(approval.bound.policy)}\n"
    )
    return 0
