"""The index of shadow jobs is of them alone: of all jobs, it was taken for whatever asks for those that are none."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    op.drop_index("ix_job_shadow", "job")
    op.create_index(
        "ix_job_shadow",
        "job",
        ["route", "state", "created_at"],
        sqlite_where=sa.text("shadow = 1"),
        postgresql_where=sa.text("shadow"),
    )
