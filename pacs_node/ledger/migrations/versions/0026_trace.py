"""Traces of series for a collector of OpenTelemetry: what it has been told, and the class of the error of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    op.add_column("job", sa.Column("error", sa.String(64)))
    op.create_table(
        "trace",
        sa.Column("series_uid", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("event", sa.Integer(), nullable=False),
    )
