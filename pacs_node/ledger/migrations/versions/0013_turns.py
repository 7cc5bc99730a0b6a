"""The senders of jobs take turns. Jobs that wait already are given theirs, in the order in which they were made."""

from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

OPEN = "('queued', 'running', 'waiting')"


def upgrade() -> None:
    op.add_column("job", sa.Column("sender", sa.String(16), nullable=False, server_default=""))
    op.add_column("job", sa.Column("turn", sa.Integer(), nullable=False, server_default="0"))
    op.drop_index("ix_job_queue", "job")
    op.create_index("ix_job_queue", "job", ["state", "kind", "destination", "priority", "turn", "created_at"])
    op.create_index("ix_job_sender", "job", ["kind", "destination", "priority", "sender", "turn", "state"])
    op.create_table(
        "queue",
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("destination", sa.String(64), primary_key=True),
        sa.Column("priority", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("overtaken", sa.Integer(), nullable=False),
    )
    db = op.get_bind()
    said = sa.text("SELECT coalesce(min(calling_ae), '') FROM instance WHERE series_uid = :series")
    given = sa.text("UPDATE job SET sender = :sender, turn = :turn WHERE id = :id")
    turns: Counter[tuple[object, ...]] = Counter()
    waiting = db.execute(
        sa.text(
            "SELECT id, kind, destination, priority, series_uid FROM job"  # noqa: S608  OPEN is ours
            f" WHERE state IN {OPEN} ORDER BY created_at, id"
        )
    ).all()
    for job, kind, destination, priority, series in waiting:
        sender = destination if kind == "report" else db.execute(said, {"series": series}).scalar_one()
        line = (kind, destination, priority, sender)
        db.execute(given, {"sender": sender[:16], "turn": turns[line], "id": job})
        turns[line] += 1
