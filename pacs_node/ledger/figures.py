"""How long things take, as histograms that outlive a restart and are the same whichever process is asked; and when
something was done last."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.queues import resting
from pacs_node.ledger.tables import (
    duration_table,
    job_table,
    mark_table,
    no_heartbeat,
    series_table,
)
from pacs_node.records import DURATIONS, OPEN_JOB_STATES, STEPS_S

RECENT = 20  # sends to a destination that are looked at


class Figures(Database):
    """Durations and marks."""

    def _took(self, db: sa.Connection, what: str, name: str, seconds: float) -> None:
        """Last in a transaction: whoever counts in the same row waits for its end."""
        assert what in DURATIONS
        seconds = max(0.0, seconds)  # a clock that was set back
        row = {"what": what, "name": name, "step": bisect_left(STEPS_S, seconds)}
        more = {
            "number": duration_table.c.number + 1,
            "seconds": duration_table.c.seconds + seconds,
        }
        counted = self._insert(duration_table).values(**row, number=1, seconds=seconds)
        keys = [duration_table.c[key] for key in row]
        db.execute(counted.on_conflict_do_update(index_elements=keys, set_=more))

    def durations(self) -> dict[tuple[str, str], tuple[list[int], float]]:
        """(what, its name) -> how many took no longer than each of STEPS_S and then all of them, and all seconds."""
        found: dict[tuple[str, str], tuple[list[int], float]] = {}
        with self._reading() as db:
            for row in db.execute(sa.select(duration_table)).mappings():
                counts, seconds = found.get((row["what"], row["name"]), ([0] * (len(STEPS_S) + 1), 0.0))
                step = min(row["step"], len(STEPS_S))
                up_to = [count + (row["number"] if number >= step else 0) for number, count in enumerate(counts)]
                found[row["what"], row["name"]] = up_to, seconds + row["seconds"]
        return found

    def mark(self, name: str, at: datetime, text: str) -> None:
        """Remember when this was done last, and what there is to say of it."""
        with self._begin() as db:
            row = self._insert(mark_table).values(name=name, at=at, text=text)
            db.execute(row.on_conflict_do_update(index_elements=[mark_table.c.name], set_={"at": at, "text": text}))

    def marks(self) -> Mapping[str, dict[str, Any]]:
        """name -> {"at", "text"}"""
        with self._reading() as db:
            rows = db.execute(sa.select(mark_table)).mappings()
            return {row["name"]: {"at": row["at"], "text": row["text"]} for row in rows}

    def backlog(self, closed: Collection[str] = ()) -> list[dict[str, Any]]:
        """Of each queue how many jobs wait and run, and when the oldest of them was made; None where all of them rest
        because their routes are among the closed. Without shadows, and what waits for other series of its study: that
        is as it should be."""
        of = job_table.c.kind, job_table.c.destination
        at_rest = sa.and_(resting(closed), job_table.c.state != "running")
        made = sa.case((at_rest, sa.null()), else_=job_table.c.created_at)
        states = job_table.c.state, sa.func.count(), sa.func.min(made, type_=job_table.c.created_at.type)
        meant = job_table.c.shadow.is_(False), job_table.c.study.is_distinct_from("waiting"), no_heartbeat(job_table)
        query = sa.select(*of, *states).where(job_table.c.state.in_(OPEN_JOB_STATES), *meant)
        query = query.group_by(*of, job_table.c.state)
        queues: dict[tuple[str, str | None], dict[str, Any]] = {}
        with self._reading() as db:
            for kind, destination, state, number, oldest in db.execute(query):
                new = {"kind": kind, "destination": destination, "waiting": 0, "running": 0, "oldest_at": oldest}
                queue = queues.setdefault((kind, destination), new)
                queue["running" if state == "running" else "waiting"] += number
                queue["oldest_at"] = min((at for at in (queue["oldest_at"], oldest) if at is not None), default=None)
        return [queues[key] for key in sorted(queues, key=lambda key: (key[0], key[1] or ""))]

    def last_received(self) -> dict[str, datetime]:
        """AE title -> when the first image of its latest series came."""
        of = series_table.c.sender, sa.func.max(series_table.c.first_arrival)
        with self._reading() as db:
            rows = db.execute(sa.select(*of).group_by(series_table.c.sender))
            return dict(tuple(row) for row in rows)

    def last_sent(self, destination: str) -> datetime | None:
        """When a send to it last ended well; of the last RECENT that began."""
        sends = job_table.c.kind == "send", job_table.c.destination == destination, job_table.c.started_at.is_not(None)
        latest = sa.select(job_table.c.state, job_table.c.finished_at).where(*sends)
        with self._reading() as db:
            rows = db.execute(latest.order_by(job_table.c.started_at.desc()).limit(RECENT))
            return max((at for state, at in rows if state == "done" and at is not None), default=None)

    def clock_ahead_s(self) -> float | None:
        """How far the clock of the database is ahead of ours, seconds; None: it is ours."""
        if self.embedded:
            return None
        with self._reading() as db:
            asked = datetime.now(UTC)
            there = db.scalar(sa.select(sa.func.clock_timestamp()))
            here = asked + (datetime.now(UTC) - asked) / 2
        return (there - here).total_seconds() if there is not None else None
