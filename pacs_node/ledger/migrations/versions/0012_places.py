"""Files below the data folder are named by their place in it: another machine has the folder elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    config = op.get_context().config
    root = config.attributes.get("root") if config is not None else None
    if root is None:
        return
    above = f"{root}/"
    db = op.get_bind()
    for name in ("instance", "result"):
        table = sa.table(name, sa.column("path", sa.Text))
        below = sa.func.substr(table.c.path, 1, len(above)) == above
        db.execute(sa.update(table).where(below).values(path=sa.func.substr(table.c.path, len(above) + 1)))
    edition = sa.table("edition", sa.column("job", sa.Text), *(sa.column(name, sa.JSON) for name in OBJECTS))
    for row in db.execute(sa.select(edition)).mappings().all():
        told = {name: row[name] for name in OBJECTS}
        for each in (each for objects in told.values() for each in objects):
            each["path"] = each["path"].removeprefix(above)
        db.execute(sa.update(edition).where(edition.c.job == row["job"]).values(**told))


OBJECTS = "replaces", "objects"
