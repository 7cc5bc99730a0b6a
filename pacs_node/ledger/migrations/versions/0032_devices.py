"""What each worker runs inferences on: the machine that has the pages is often another one."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.add_column("lease", sa.Column("devices", sa.JSON()))
