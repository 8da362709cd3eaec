"""What a traffic plan can say besides weights: cohorts, a policy that draws arms, and what fills a gap."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; plans that are there have none of it."""
    for name, default in (("cohorts", "[]"), ("policy", "null"), ("gap", "refuse")):
        op.add_column(
            "traffic_plans", sa.Column(name, sa.Text(), nullable=False, server_default=default)
        )
    op.add_column(
        "traffic_plans",
        sa.Column("gap_seconds", sa.Float(53), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Take the columns away."""
    for name in ("gap_seconds", "gap", "policy", "cohorts"):
        op.drop_column("traffic_plans", name)
