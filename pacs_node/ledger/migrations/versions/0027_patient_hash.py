"""Whose each series is, as keyed hashes. Series of before are looked at when the node has started."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.create_table(
        "patient_hash",
        sa.Column("series_uid", sa.String(64), primary_key=True),
        sa.Column("hash", sa.String(32), primary_key=True),
    )
    op.create_index("ix_patient_hash", "patient_hash", ["hash", "series_uid"])
