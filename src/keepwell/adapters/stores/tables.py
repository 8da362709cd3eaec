"""The same shapes as SQLAlchemy tables: what the migrations must add up to."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from keepwell.adapters.stores.shapes import Scalar, Shape, shapes
from keepwell.core.records.kinds import record_kinds

__all__ = ["AUDIT", "CHANGES", "METADATA", "TABLES", "record_kinds", "shapes"]

METADATA = sa.MetaData()

_TYPES: dict[Scalar, sa.types.TypeEngine[Any]] = {
    "text": sa.Text(),
    "integer": sa.BigInteger(),
    "real": sa.Float(53),
    "boolean": sa.Boolean(),
    "bytes": sa.LargeBinary(),
}


def _table(shape: Shape) -> sa.Table:
    kind = shape.kind
    return sa.Table(
        kind.TABLE,
        METADATA,
        *(
            sa.Column(
                column.name,
                _TYPES[column.scalar],
                primary_key=column.name in kind.KEY,
                nullable=column.nullable,
                autoincrement=False,
            )
            for column in shape.columns
        ),
        *(sa.Index(f"ix_{kind.TABLE}_{'_'.join(group)}", *group) for group in kind.INDEX),
    )


TABLES = {kind: _table(shape) for kind, shape in shapes().items()}

AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
    sa.Column("time", sa.BigInteger(), nullable=False),
    sa.Column("actor", sa.Text(), nullable=False),
    sa.Column("action", sa.Text(), nullable=False),
    sa.Column("subject", sa.Text(), nullable=False),
    sa.Column("before", sa.Text(), nullable=False),
    sa.Column("after", sa.Text(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("previous", sa.Text(), nullable=False),
    sa.Column("hash", sa.Text(), nullable=False),
    sa.Index("ix_audit_subject", "subject"),
)

CHANGES = sa.Table(
    "changes",
    METADATA,
    sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger(), nullable=False),
)
"""One row: how many transactions were committed. Polling it is how processes notice one another."""
