"""Shadow routes: which jobs are theirs, and where each job found what, to be compared."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.add_column("job", sa.Column("shadow", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_job_shadow", "job", ["shadow", "route", "state", "created_at"])
    op.create_table(
        "place",
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("said", sa.JSON(), nullable=False),
    )
