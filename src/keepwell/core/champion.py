"""Who answers now: the one version of a model that is active and bears the alias for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.records.models import Alias, ModelVersion

if TYPE_CHECKING:
    from keepwell.core.clock import Time
    from keepwell.core.ports.store import Transaction

CHAMPION = "champion"
"""The alias that names the version which answers."""


def make_champion(
    transaction: Transaction, model: str, version: int, *, now: Time, reason: str
) -> None:
    """Make this version the active one, and any other released again; the alias moves with it.

    Changes nothing where it is so already.
    """
    for other in transaction.find(ModelVersion, {"model": model, "state": "active"}):
        if other.version != version:
            left = f"replaced by {model}/{version}"
            transaction.replace(
                msgspec.structs.replace(
                    other, state="released", reason=left, updated=now, revision=other.revision + 1
                ),
                reason=left,
            )
    current = transaction.get(ModelVersion, model, version)
    if current is not None and current.state != "active":
        transaction.replace(
            msgspec.structs.replace(
                current, state="active", reason="", updated=now, revision=current.revision + 1
            ),
            reason=reason,
        )
    alias = transaction.get(Alias, model, CHAMPION)
    if alias is None:
        transaction.add(Alias(model=model, alias=CHAMPION, version=version))
    elif alias.version != version:
        transaction.replace(
            msgspec.structs.replace(alias, version=version, revision=alias.revision + 1)
        )
