"""Who gets the results of a job as well, if a finding of a kind is among them."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    op.add_column("job", sa.Column("also", sa.JSON(), nullable=False, server_default="[]"))
