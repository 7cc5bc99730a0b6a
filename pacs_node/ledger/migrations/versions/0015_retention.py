"""What was deleted, what is still to be deleted from the disk, and for whom images must be kept."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

TIME = sa.String(32).with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "deletion",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("series_uid", sa.String(64), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("at", TIME, nullable=False),
    )
    op.add_column("series", sa.Column("deleted_at", TIME))
    op.add_column("series", sa.Column("deleted_images", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("series", sa.Column("committed_to", sa.String(16)))
    op.add_column("edition", sa.Column("deleted_at", TIME))
    op.create_index("ix_series_state_last_arrival", "series", ["state", "last_arrival"])
    db = op.get_bind()
    request = sa.table("commitment_request", sa.column("calling_ae"), sa.column("wanted", sa.JSON()))
    instance = sa.table("instance", sa.column("sop_instance_uid"), sa.column("series_uid"))
    series = sa.table("series", sa.column("series_uid"), sa.column("committed_to"))
    for calling_ae, wanted in db.execute(sa.select(request.c.calling_ae, request.c.wanted)).all():
        for start in range(0, len(wanted), 500):
            uids = [uid for _, uid in wanted[start : start + 500]]
            of = sa.select(instance.c.series_uid).where(instance.c.sop_instance_uid.in_(uids))
            db.execute(sa.update(series).where(series.c.series_uid.in_(of)).values(committed_to=calling_ae))
