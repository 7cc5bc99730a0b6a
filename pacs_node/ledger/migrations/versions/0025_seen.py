"""What came back of results, and what came of each series as figures that are counted up."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"

TIME = sa.String(32).with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    for column in (
        sa.Column("object", sa.String(64), nullable=False, server_default=""),
        sa.Column("sender", sa.String(16), nullable=False, server_default=""),
        sa.Column("dice", sa.Float()),
        sa.Column("reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("made", sa.String(32), nullable=False, server_default=""),
    ):
        op.add_column("feedback", column)
    op.drop_index("ix_feedback_counts", "feedback")
    op.create_index("ix_feedback_counts", "feedback", ["pipeline", "version", "kind", "dice"])
    op.create_index("ix_feedback_object", "feedback", ["object"])
    op.create_index("ix_result_object", "result", ["sop_instance_uid"])
    op.create_index("ix_receipt_object", "receipt", ["sop_instance_uid"])
    op.create_table(
        "returned",
        sa.Column("series_uid", sa.String(64), primary_key=True),
        sa.Column("waits_since", TIME),
        sa.Column("said", sa.Text(), nullable=False),
    )
    op.create_index("ix_returned_waits_since", "returned", ["waits_since"])
    op.create_table(
        "tally",
        sa.Column("pipeline", sa.String(64), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("what", sa.String(16), primary_key=True),
        sa.Column("week", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("value", sa.String(32), primary_key=True),
        sa.Column("sender", sa.String(16), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Float(), nullable=False),
    )
    by_week = ["pipeline", "week", "version", "what", "value", "number", "total"]
    op.create_index("ix_tally_week", "tally", by_week)
    op.create_index("ix_tally_sender", "tally", ["pipeline", "what", "week", "sender", "value", "number"])
