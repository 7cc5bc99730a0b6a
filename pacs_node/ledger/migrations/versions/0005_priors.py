"""Jobs know the peer that is asked for earlier studies of the patient."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("job", sa.Column("priors", sa.String(length=64), nullable=True))
