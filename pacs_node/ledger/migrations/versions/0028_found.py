"""What was found in each series, so that a list can be narrowed by it; filled from what inferences have said. What came
of the series of each pipeline is read by sender, too."""

import json
import re
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

AT_ONCE = 5000  # rows


def upgrade() -> None:
    found = op.create_table(
        "found",
        sa.Column("series_uid", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(64), primary_key=True),
        sa.Column("pipeline", sa.String(64), primary_key=True),
        sa.Column("variant", sa.String(16), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("largest_mm", sa.Float()),
        sa.Column("unsized", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_found_kind", "found", ["kind"])
    for name in ("ix_tally_week", "ix_tally_sender"):
        op.drop_index(name, "tally")
    more = "number", "total"
    op.create_index("ix_tally_week", "tally", ["pipeline", "week", "version", "what", "value", "sender", *more])
    op.create_index("ix_tally_sender", "tally", ["pipeline", "sender", "week", "version", "what", "value", *more])
    db = op.get_bind()
    job = sa.table("job", *(sa.column(name) for name in ("id", "series_uid", "kind", "pipeline", "reason", "sender")),
                   sa.column("state"), sa.column("shadow", sa.Boolean()), sa.column("options", sa.JSON()),
                   sa.column("facts", sa.JSON()), sa.column("finished_at"))  # fmt: skip
    done = job.c.kind == "infer", job.c.state == "done", job.c.shadow.is_(False), job.c.sender != "PACSNODE-BEAT"
    of = job.c.series_uid, job.c.pipeline, job.c.options, job.c.facts, job.c.reason
    latest: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    series_uid = None
    for row in db.execute(sa.select(*of).where(*done).order_by(job.c.series_uid, job.c.finished_at)).yield_per(AT_ONCE):
        if row.series_uid != series_uid and len(latest) >= AT_ONCE:
            db.execute(sa.insert(found), [each for rows in latest.values() for each in rows])
            latest.clear()
        series_uid = row.series_uid
        variant = variant_of(row.options)
        mine = {"series_uid": series_uid, "pipeline": row.pipeline, "variant": variant}
        latest[series_uid, row.pipeline, variant] = [{**mine, **each} for each in _rows(row.facts or {}, row.reason)]
    if latest:
        db.execute(sa.insert(found), [each for rows in latest.values() for each in rows])


def variant_of(options: dict[str, Any]) -> str:
    return sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _rows(facts: dict[str, Any], reason: str) -> list[dict[str, Any]]:
    """Of all as many as the job said; of a kind that is alone all of them, of several at least one each."""
    largest, unsized = facts.get("largest_mm") or {}, set(facts.get("unsized") or ())
    kinds, said = sorted({*largest, *unsized}), re.fullmatch(r"(\d+) findings?", reason)
    number = int(said[1]) if said else len(kinds)
    each = [(kind, number if len(kinds) == 1 else 1, largest.get(kind), kind in unsized) for kind in kinds]
    every = ("", number, max(largest.values(), default=None), bool(unsized))
    return [dict(zip(("kind", "number", "largest_mm", "unsized"), one, strict=True)) for one in (every, *each)]
