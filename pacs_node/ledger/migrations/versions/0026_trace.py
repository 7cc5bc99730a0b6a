"""Traces of series: what a collector has been told. Of a job the class of its error, and how long it waited on
purpose."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    op.add_column("job", sa.Column("error", sa.String(64)))
    op.add_column("job", sa.Column("rested_s", sa.Float()))
    op.create_table(
        "trace",
        sa.Column("series_uid", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("event", sa.Integer(), nullable=False),
    )
