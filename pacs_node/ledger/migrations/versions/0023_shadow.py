"""Shadow routes: which jobs are theirs, and where each job found what, to be compared. Jobs that wait for other series
of a study."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

TIME = sa.String(32).with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.add_column("job", sa.Column("shadow", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("job", sa.Column("needs", sa.JSON()))
    op.add_column("job", sa.Column("waits_until", TIME))
    op.add_column("job", sa.Column("study", sa.String(16)))
    op.create_index("ix_job_study", "job", ["study", "route"])
    op.create_index("ix_job_study_uid", "job", ["study_uid", "study"])
    op.create_index("ix_series_study", "series", ["study_uid", "state"])
    op.create_index("ix_job_shadow", "job", ["shadow", "route", "state", "created_at"])
    op.create_table(
        "place",
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("said", sa.JSON(), nullable=False),
    )
