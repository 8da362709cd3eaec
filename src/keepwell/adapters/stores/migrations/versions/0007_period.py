"""Arms of a traffic plan that take turns: the length of a turn, and what takes turns by itself."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; in plans that are there nothing takes turns."""
    op.add_column(
        "traffic_plans", sa.Column("period", sa.Text(), nullable=False, server_default="null")
    )


def downgrade() -> None:
    """Take it away."""
    op.drop_column("traffic_plans", "period")
