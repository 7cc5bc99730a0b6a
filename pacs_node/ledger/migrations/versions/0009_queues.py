"""The most urgent jobs of each queue, and those whose time lies ahead, are found without reading all others."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index("ix_job_queue", "job", ["state", "kind", "destination", "priority", "created_at", "not_before"])
    op.create_index("ix_job_not_before", "job", ["not_before"])
    op.create_index("ix_job_started", "job", ["kind", "destination", "started_at"])
