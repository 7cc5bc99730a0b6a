"""A list of series is searched, filtered and counted: who sent each, and how long its results took to arrive."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.add_column("series", sa.Column("sender", sa.String(16), nullable=False, server_default=""))
    op.add_column("series", sa.Column("turnaround_s", sa.Float()))
    first = "SELECT min(instance.calling_ae) FROM instance WHERE instance.series_uid = series.series_uid"
    op.execute(f"UPDATE series SET sender = coalesce(({first}), '')")  # noqa: S608  the words are ours
    op.drop_index("ix_series_first_arrival", "series")
    listed = ["first_arrival", "series_uid", "study_uid", "modality", "description", "sender", "state"]
    op.create_index("ix_series_list", "series", listed)
    op.create_index("ix_series_turnaround", "series", ["turnaround_s", "series_uid"])
    op.create_index("ix_series_sender", "series", ["sender", "modality", "first_arrival"])
    op.create_index("ix_job_pipeline", "job", ["kind", "pipeline", "series_uid"])
