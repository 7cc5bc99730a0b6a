"""How often each peer of the settings was refused: the refusals themselves are the newest alone."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.create_table(
        "refused_peer",
        sa.Column("ae_title", sa.String(64), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
    )
