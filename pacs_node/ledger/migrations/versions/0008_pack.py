"""An image may lie somewhere inside a file. What vouches for its bytes stands there, beside them."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("instance", sa.Column("offset", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_column("instance", "sha256")
