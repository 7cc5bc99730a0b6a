"""What somebody was told of, so that a restart tells it neither again nor never; and what there is to tell."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import portions
from pacs_node.ledger.figures import Figures
from pacs_node.ledger.tables import job_table, no_heartbeat, notice_table, series_table
from pacs_node.records import Notice


class Notices(Figures):
    """Notices, and the questions behind them."""

    def notices(self, receiver: str) -> dict[str, Notice]:
        """Those that are open, by what they are about."""
        with self._reading() as db:
            rows = db.execute(sa.select(notice_table).where(notice_table.c.receiver == receiver)).mappings()
            return {row["key"]: Notice(row["text"], row["since"], row["told_at"]) for row in rows}

    def told(self, receiver: str, notices: Iterable[tuple[str, Notice]], over: Iterable[str]) -> None:
        """These have been told; those are over, and forgotten."""
        with self._begin() as db:
            for key, notice in notices:
                new = {"text": notice.text, "since": notice.since, "told_at": notice.told_at}
                row = self._insert(notice_table).values(receiver=receiver, key=key, **new)
                keys = [notice_table.c.receiver, notice_table.c.key]
                db.execute(row.on_conflict_do_update(index_elements=keys, set_=new))
            mine = notice_table.c.receiver == receiver
            for some in portions(list(over)):
                db.execute(sa.delete(notice_table).where(mine, notice_table.c.key.in_(some)))

    def failing_sends(self, made_before: datetime) -> list[tuple[str, datetime, str]]:
        """(destination, since when, why) of each that has taken nothing since a send was made that is tried again and
        again; of those that were made before then."""
        failing = (
            job_table.c.kind == "send",
            job_table.c.state.in_(("queued", "waiting", "running")),
            job_table.c.attempt > 1,
            job_table.c.created_at < made_before,
        )
        with self._reading() as db:
            names = list(db.scalars(sa.select(job_table.c.destination).where(*failing).distinct()))
        found = []
        for name in names:
            last = self.last_sent(name)
            since = (job_table.c.created_at > last,) if last is not None else ()
            first = sa.select(job_table.c.created_at, job_table.c.reason).where(
                *failing, job_table.c.destination == name, *since
            )
            with self._reading() as db:
                row = db.execute(first.order_by(job_table.c.created_at).limit(1)).first()
            if row is not None:
                found.append((name, row.created_at, row.reason))
        return found

    def inferred_since(self, since: datetime, began_since: datetime) -> list[dict[str, Any]]:
        """Inferences that ended well since then, of those that began since the other: what they found, in figures. None
        of a shadow: nobody is told of what it found."""
        names = ("id", "series_uid", "pipeline", "route", "reason", "facts", "finished_at")
        query = sa.select(*(job_table.c[name] for name in names)).where(
            job_table.c.kind == "infer",
            job_table.c.destination.is_(None),
            job_table.c.started_at >= began_since,
            job_table.c.finished_at >= since,
            job_table.c.state == "done",
            job_table.c.shadow.is_(False),
            no_heartbeat(job_table),
        )
        with self._reading() as db:
            return [dict(row) for row in db.execute(query.order_by(job_table.c.finished_at)).mappings()]

    def came_since(self, since: datetime) -> dict[tuple[str, str], list[datetime]]:
        """(sender, modality) -> when each of its series began to come, ascending; modality "" while one is open."""
        of = series_table.c.sender, series_table.c.modality, series_table.c.first_arrival
        found: dict[tuple[str, str], list[datetime]] = {}
        with self._reading() as db:
            for sender, modality, at in db.execute(
                sa.select(*of).where(of[2] >= since, no_heartbeat(series_table)).order_by(*of)
            ):
                found.setdefault((sender, modality), []).append(at)
        return found
