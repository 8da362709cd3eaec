"""The governance catalogue: for each model its owner, purpose, tier, data and card, kept current by activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keepwell.core.records.lifecycle import CatalogueEntry
from keepwell.lifecycle.cards import write_card

if TYPE_CHECKING:
    from keepwell.core.records.models import ModelVersion
    from keepwell.lifecycle.context import Context


def catalogue_entry(context: Context, version: ModelVersion) -> CatalogueEntry:
    """Make the entry for this version from what the project declares and the release found."""
    declared = context.project.model(version.model)
    features = version.signature.names if version.signature else declared.features
    card = context.blobs.put(write_card(context, version).encode())
    return CatalogueEntry(
        model=version.model,
        owner=declared.owner,
        purpose=declared.purpose,
        risk=declared.risk,
        task=declared.task,
        label=declared.label,
        features=features,
        sources=tuple(
            sorted({declared.source, *(view.source for view in context.project.views.values())})
        ),
        card=card,
        updated=context.clock.now(),
    )


def keep_entry(context: Context, entry: CatalogueEntry, *, actor: str) -> None:
    """Add the entry, or replace the one that is there."""
    with context.store.transaction(actor=actor) as transaction:
        before = transaction.get(CatalogueEntry, entry.model)
        if before is None:
            transaction.add(entry, reason="catalogued")
        else:
            transaction.replace(
                msgspec.structs.replace(entry, revision=before.revision + 1), reason="catalogued"
            )
