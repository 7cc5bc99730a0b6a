"""What readers say of the findings."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

TIME = sa.String(32).with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("reader", sa.String(80), nullable=False),
        sa.Column("series_uid", sa.String(64), nullable=False, index=True),
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("pipeline", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("finding", sa.Integer),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("place", sa.JSON()),
    )
    op.create_index("ix_feedback_counts", "feedback", ["pipeline", "version", "kind"])
