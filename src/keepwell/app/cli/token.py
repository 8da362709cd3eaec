"""``keepwell token``: makes and revokes the tokens by which users prove who they are."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import actor, print_json, project_state
from keepwell.core.clock import iso
from keepwell.lifecycle.tokens import create_token, revoke_token


def run(given: argparse.Namespace) -> int:
    """Make a token and print it this once, or revoke one."""
    state = project_state(given)
    who = actor(given, state)
    if given.verb == "revoke":
        token = revoke_token(
            given.name, by=who, reason=given.reason, store=state.store, clock=state.clock
        )
        if given.json:
            print_json({"id": token.id, "user": token.user, "revoked": token.revoked})
        else:
            sys.stdout.write(f"the token {token.id} of {token.user} is good no longer\n")
        return 0
    text, token = create_token(
        given.name,
        by=who,
        days=given.expires,
        label=given.label,
        store=state.store,
        clock=state.clock,
    )
    if given.json:
        print_json({"token": text, "id": token.id, "user": token.user, "expires": token.expires})
        return 0
    sys.stdout.write(f"{text}\n")
    until = f"until {iso(token.expires)[:10]}" if token.expires else "until it is revoked"
    sys.stderr.write(
        f"It is good {until} and shown only now. From now on {token.user} must give one:\n"
        "  command line  KEEPWELL_TOKEN=...\n  control API   Authorization: Bearer ...\n"
    )
    return 0
