"""The arm of units that are held out of an endpoint's rollouts."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; plans that are there hold nobody out."""
    op.add_column(
        "traffic_plans", sa.Column("holdout", sa.Text(), nullable=False, server_default="null")
    )


def downgrade() -> None:
    """Take the column away."""
    op.drop_column("traffic_plans", "holdout")
