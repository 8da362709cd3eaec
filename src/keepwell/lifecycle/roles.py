"""Who may do what: roles grant verbs, and an author never judges their own work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepwell.core.errors import Refused, near_miss
from keepwell.core.records.lifecycle import User

if TYPE_CHECKING:
    from keepwell.core.ports.store import Reader

ALLOWED: dict[str, frozenset[str]] = {
    "train": frozenset({"author", "operator", "admin"}),
    "release": frozenset({"author", "operator", "admin"}),
    "approve": frozenset({"approver", "admin"}),
    "activate": frozenset({"author", "operator", "admin"}),
    "rollout": frozenset({"operator", "admin"}),
    "new key": frozenset({"operator", "admin"}),
    "rollback": frozenset({"operator", "approver", "admin"}),
}
"""Roles by verb. ``rollback`` is wide on purpose: whoever sees the fire may pull the lever."""

_SAID = {"new key": "make a new signing key"}


def require(name: str, verb: str, *, store: Reader) -> User | None:
    """Give the user if they may do this.

    A project that declares no users is one person's own: then anyone may, and None is given.
    Raises Refused.
    """
    if not any(known.roles for known in store.find(User)):
        return None
    user = store.get(User, name)
    if user is None:
        raise Refused(
            f"There is no user {name!r} in this project.",
            todo=near_miss(name, [known.name for known in store.find(User) if known.roles])
            + " Declare users under [users] in keepwell.toml, and act as one with --as NAME.",
        )
    if not ALLOWED[verb] & set(user.roles):
        raise Refused(
            f"{name} may not {_SAID.get(verb, verb)}: their roles are {', '.join(user.roles) or 'none'}.",
            todo=f"One of these roles is needed: {', '.join(sorted(ALLOWED[verb]))}.",
        )
    return user
