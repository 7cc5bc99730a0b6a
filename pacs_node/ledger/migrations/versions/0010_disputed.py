"""Of which objects a destination has reported first one thing and then another."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("commitment", sa.Column("disputed", sa.JSON(), nullable=False, server_default="[]"))
