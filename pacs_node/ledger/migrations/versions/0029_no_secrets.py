"""The history of the settings without secrets: a backup holds it, and whoever reads that should not have them."""

import sqlalchemy as sa
from alembic import op

from pacs_node import settings_file

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    db = op.get_bind()
    if db.dialect.name == "sqlite":
        db.exec_driver_sql("PRAGMA secure_delete=ON")  # the former text must not stay in pages that are free
    table = sa.table("settings_version", sa.column("id", sa.Integer), sa.column("text", sa.Text))
    for number, text in db.execute(sa.select(table.c.id, table.c.text)).all():
        kept, _ = settings_file.kept(text)
        if kept != text:
            db.execute(sa.update(table).where(table.c.id == number).values(text=kept))
