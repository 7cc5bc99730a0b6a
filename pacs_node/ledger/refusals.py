"""What was not taken in, and why."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.pages import _iso
from pacs_node.ledger.tables import (
    refusal_count_table,
    refusal_table,
)
from pacs_node.records import Refusal

MOST_REFUSALS = 1000  # rows kept, the newest; the counts go on


class Refusals(Database):
    """What senders brought in vain."""

    def note_refusal(self, refusal: Refusal) -> None:
        """Remember what was not taken in: the newest MOST_REFUSALS of them, and how many of each kind there were."""
        row = {  # what came from the network may hold anything; PostgreSQL takes no NUL
            name: each.replace("\0", "") if isinstance(each := getattr(refusal, name), str) else each
            for name in Refusal.__dataclass_fields__
        }
        with self._begin() as db:
            added = db.execute(sa.insert(refusal_table).values(row)).inserted_primary_key
            if added is not None:
                db.execute(sa.delete(refusal_table).where(refusal_table.c.id <= added[0] - MOST_REFUSALS))
            count = self._insert(refusal_count_table).values(kind=refusal.kind, number=1, latest=refusal.at)
            db.execute(
                count.on_conflict_do_update(
                    index_elements=[refusal_count_table.c.kind],
                    set_={"number": refusal_count_table.c.number + 1, "latest": refusal.at},
                )
            )

    def refusals(self, limit: int) -> list[dict[str, Any]]:
        """The newest first."""
        with self._reading() as db:
            rows = db.execute(sa.select(refusal_table).order_by(refusal_table.c.id.desc()).limit(limit)).mappings()
            return [{**row, "at": _iso(row["at"])} for row in rows]

    def refusal_counts(self) -> dict[str, dict[str, Any]]:
        """kind -> {"number": since the ledger began, "latest": when}"""
        with self._reading() as db:
            rows = db.execute(sa.select(refusal_count_table).order_by(refusal_count_table.c.kind)).mappings()
            return {row["kind"]: {"number": row["number"], "latest": _iso(row["latest"])} for row in rows}
