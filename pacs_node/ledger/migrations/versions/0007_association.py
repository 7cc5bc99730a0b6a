"""The images of an association are found without reading those of all others."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_index("ix_instance_association", "instance", ["association"])
