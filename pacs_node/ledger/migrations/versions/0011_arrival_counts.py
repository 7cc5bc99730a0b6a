"""What is known about arrivals is counted without reading what was said of each."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_index("ix_arrival_counts", "arrival", ["destination", "arrived", "how"])
