"""The share of decisions that a sampled log writes down."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; what was sampled before wrote down everything."""
    op.add_column(
        "endpoints", sa.Column("log_share", sa.Float(53), nullable=False, server_default="1")
    )


def downgrade() -> None:
    """Take the column away."""
    op.drop_column("endpoints", "log_share")
