"""What was not taken in, and why."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.lists import iso
from pacs_node.ledger.tables import (
    refusal_count_table,
    refusal_table,
    refused_peer_table,
)
from pacs_node.records import Refusal

MOST_REFUSALS = 1000  # rows kept, the newest; the counts go on


class Refusals(Database):
    """What senders brought in vain."""

    def note_refusal(self, refusal: Refusal, *, of_peer: bool = False) -> None:
        """Remember what was not taken in: the newest MOST_REFUSALS of them, and how many of each kind there were.

        of_peer   the AE title is one of the settings: how many there were of it, too. Of others nothing is counted
                  alone, for a stranger can call itself anything.
        """
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

            if of_peer:
                mine = self._insert(refused_peer_table).values(ae_title=row["calling_ae"], number=1)
                more = {"number": refused_peer_table.c.number + 1}
                db.execute(mine.on_conflict_do_update(index_elements=[refused_peer_table.c.ae_title], set_=more))

    def refused_of_peers(self) -> dict[str, int]:
        """AE title of a peer -> how many of its refusals there have been since the ledger counts them."""
        with self._reading() as db:
            rows = db.execute(sa.select(refused_peer_table.c.ae_title, refused_peer_table.c.number))
            return dict(tuple(row) for row in rows)

    def refusals(self, limit: int, kind: str = "", sender: str = "") -> list[dict[str, Any]]:
        """The newest first; of a kind or an AE title alone, where they are named."""
        query = sa.select(refusal_table).order_by(refusal_table.c.id.desc()).limit(limit)
        for column, value in ((refusal_table.c.kind, kind), (refusal_table.c.calling_ae, sender)):
            query = query.where(column == value) if value else query
        with self._reading() as db:
            return [{**row, "at": iso(row["at"])} for row in db.execute(query).mappings()]

    def refusals_by_sender(self, limit: int) -> list[dict[str, Any]]:
        """Of those that are kept, how many of each sender and kind there are, the most first."""
        of = refusal_table.c.calling_ae, refusal_table.c.address, refusal_table.c.kind
        number, latest = sa.func.count().label("number"), sa.func.max(refusal_table.c.at).label("latest")
        query = sa.select(*of, number, latest).group_by(*of).order_by(number.desc(), *of).limit(limit)
        with self._reading() as db:
            return [{**row, "latest": iso(row["latest"])} for row in db.execute(query).mappings()]

    def refusal_counts(self) -> dict[str, dict[str, Any]]:
        """kind -> {"number": since the ledger began, "latest": when}"""
        with self._reading() as db:
            rows = db.execute(sa.select(refusal_count_table).order_by(refusal_count_table.c.kind)).mappings()
            return {row["kind"]: {"number": row["number"], "latest": iso(row["latest"])} for row in rows}
