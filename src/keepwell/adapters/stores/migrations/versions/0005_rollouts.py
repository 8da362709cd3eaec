"""Rollouts of several stages and challengers, and the looks that led to their verdicts."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TEXTS = (("others", "[]"), ("stages", "[]"))
NUMBERS = ("stage", "since_plan", "looks")


def upgrade() -> None:
    """Add the columns and the table; rollouts that are there have one stage and one challenger."""
    for name, default in TEXTS:
        op.add_column(
            "rollouts", sa.Column(name, sa.Text(), nullable=False, server_default=default)
        )
    for name in NUMBERS:
        op.add_column(
            "rollouts", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
        )
    op.add_column("rollouts", sa.Column("winner", sa.BigInteger(), nullable=True))
    op.add_column(
        "rollouts",
        sa.Column("makes_champion", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "rollout_looks",
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event_time", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=False),
        sa.Column("memory", sa.Text(), nullable=False),
        sa.Column("plan", sa.BigInteger(), nullable=False),
        sa.Column("written", sa.BigInteger(), nullable=False),
        sa.Column("arms", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("next", sa.Text(), nullable=False),
        sa.Column("measured", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "number"),
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_table("rollout_looks")
    for name in (
        "makes_champion",
        "winner",
        *reversed(NUMBERS),
        *(name for name, _ in reversed(TEXTS)),
    ):
        op.drop_column("rollouts", name)
