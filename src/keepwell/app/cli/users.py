"""``keepwell users``: who may do what, and by which tokens they prove who they are."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import print_json, project_state, table
from keepwell.core.clock import Time, iso
from keepwell.core.records.lifecycle import Token, User


def run(given: argparse.Namespace) -> int:
    """List users and tokens; never a hash."""
    state = project_state(given)
    now = state.clock.now()
    tokens = state.store.find(Token, order=["created"])
    users = [user for user in state.store.find(User) if user.roles]
    if given.json:
        listed = [
            {
                "name": user.name,
                "roles": user.roles,
                "tokens": [_plain(token, now) for token in tokens if token.user == user.name],
            }
            for user in users
        ]
        print_json(listed)
        return 0
    if not users:
        sys.stdout.write(
            "No users are declared: anyone may do everything. Declare them under [users] in keepwell.toml.\n"
        )
        return 0
    rows = [
        (
            user.name,
            ", ".join(user.roles),
            "must be given" if any(t.user == user.name for t in tokens) else "none: on trust",
        )
        for user in users
    ]
    sys.stdout.write(table(rows, ("user", "roles", "token")) + "\n")
    if tokens:
        cells = [
            (t.id, t.user, t.label, state_of(t, now), iso(t.expires)[:10] if t.expires else "never")
            for t in tokens
        ]
        sys.stdout.write("\n" + table(cells, ("token", "user", "label", "state", "expires")) + "\n")
    return 0


def state_of(token: Token, now: Time) -> str:
    """Say whether a token is good now."""
    if token.revoked is not None:
        return "revoked"
    return "expired" if token.expires is not None and token.expires <= now else "good"


def _plain(token: Token, now: Time) -> dict[str, object]:
    return {
        "id": token.id,
        "label": token.label,
        "state": state_of(token, now),
        "created": token.created,
        "expires": token.expires,
        "revoked": token.revoked,
    }
