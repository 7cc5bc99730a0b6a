"""The life of each series that has come to rest, as a collector of traces is told of it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import (
    arrival_table,
    event_table,
    instance_table,
    job_table,
    no_heartbeat,
    receipt_table,
    series_table,
    trace_table,
)
from pacs_node.records import OPEN_JOB_STATES
from pacs_node.spans import Closing, Ended, Life

TOLD_KINDS = ("infer", "send", "confirm")


class TraceRows(Database):
    """What a collector has been told, and what there is to tell."""

    def newest_event(self) -> int:
        with self._reading() as db:
            return db.scalar(sa.select(sa.func.max(event_table.c.id))) or 0

    def events_after(self, event: int, limit: int) -> list[tuple[int, datetime, str]]:
        """(id, time, Series Instance UID) of the events behind this one, in the order of their ids."""
        of = event_table.c.id, event_table.c.at, event_table.c.series_uid
        query = sa.select(*of).where(event_table.c.id > event).order_by(event_table.c.id).limit(limit)
        with self._reading() as db:
            return [tuple(row) for row in db.execute(query)]

    def life(self, series_uid: str, since: int) -> Life | None:
        """What has become of a series since it was told of last, or since an event; None while it goes on, and where
        there is nothing to tell."""
        with self._reading() as db:
            series = db.execute(
                sa.select(series_table).where(series_table.c.series_uid == series_uid, no_heartbeat(series_table))
            ).mappings()
            row = series.first()
            mine = job_table.c.series_uid == series_uid, job_table.c.kind.in_(TOLD_KINDS), job_table.c.shadow.is_(False)
            open_jobs = sa.select(job_table.c.id).where(*mine, job_table.c.state.in_(OPEN_JOB_STATES)).limit(1)
            if row is None or row["state"] == "receiving" or db.scalar(open_jobs) is not None:
                return None
            known = db.execute(sa.select(trace_table).where(trace_table.c.series_uid == series_uid)).mappings().first()
            told = known["event"] if known is not None else since
            story = event_table.c.series_uid == series_uid
            events = db.execute(sa.select(event_table).where(story).order_by(event_table.c.id)).mappings().all()
            new = [event for event in events if event["id"] > told]
            ends = {event["at"] for event in new}
            jobs = [
                self._ended(db, job)
                for job in db.execute(
                    sa.select(job_table).where(*mine).order_by(job_table.c.created_at, job_table.c.id)
                ).mappings()
                if job["finished_at"] in ends  # an end and its event have one time
            ]
            closings = self._closings(db, row, events, told)
            if not jobs and not closings:
                return None
            return Life(
                series_uid,
                key=known["key"] if known is not None else "",
                number=known["number"] if known is not None else 0,
                event=events[-1]["id"],
                modality=row["modality"],
                sender=row["sender"],
                revision=row["revision"],
                judged=not (row["verdict"] or {}).get("reason", "").startswith("could not be judged"),
                closings=tuple(closings),
                jobs=tuple(jobs),
                asked_again=tuple(event["at"] for event in new if event["event"] in ("retry now", "run again")),
            )

    def _closings(self, db: sa.Connection, series: Any, events: Sequence[Any], told: int) -> list[Closing]:
        """Each time that the series was closed since it was told of, and what had come by then."""
        found, before = list[Closing](), None
        closed = [event for event in events if event["event"] == "closed"]
        for event in closed:
            if event["id"] > told:
                judged = (each["at"] for each in events if each["id"] > event["id"] and each["event"] == "judged")
                last = event is closed[-1]
                images, size, first, latest = self._came(
                    db, series["series_uid"], before, None if last else event["at"]
                )
                if not images:  # they are not here any more
                    first, latest = series["last_arrival" if before else "first_arrival"], series["last_arrival"]
                found.append(Closing(first, latest, event["at"], next(judged, event["at"]), images, size))
            before = event["at"]
        return found

    def _came(
        self, db: sa.Connection, series_uid: str, after: datetime | None, until: datetime | None
    ) -> tuple[Any, ...]:
        """How many images came in between, their bytes, and when the first and the last of them did."""
        at = instance_table.c.received_at
        between = [at > after] if after is not None else []
        between += [at <= until] if until is not None else []
        size = sa.func.coalesce(sa.func.sum(instance_table.c.size), 0)
        first, latest = (function(at, type_=at.type) for function in (sa.func.min, sa.func.max))
        query = sa.select(sa.func.count(), sa.cast(size, sa.BigInteger), first, latest)
        return tuple(db.execute(query.where(instance_table.c.series_uid == series_uid, *between)).one())

    def _ended(self, db: sa.Connection, job: Any) -> Ended:
        receipts = sa.select(receipt_table.c.sop_instance_uid, receipt_table.c.stored)
        of_object = dict(
            tuple(row)
            for row in db.execute(receipts.where(receipt_table.c.job == job["id"]).order_by(receipt_table.c.at))
        )
        arrivals = sa.select(arrival_table.c.sop_instance_uid, arrival_table.c.arrived)
        latest = dict(
            tuple(row)
            for row in db.execute(arrivals.where(arrival_table.c.job == job["id"]).order_by(arrival_table.c.id))
        )
        stored, arrived = Counter(of_object.values()), Counter(latest.values())
        plain = ("id", "kind", "pipeline", "route", "destination", "state", "priority", "attempt", "executor", "error")
        return Ended(
            **{name: job[name] for name in plain},
            **{name: job[name] for name in ("created_at", "started_at", "finished_at")},
            facts=dict(job["facts"] or {}),
            stored=stored[True],
            refused=stored[False],
            arrived=arrived[True],
            unproven=arrived[None] + arrived[False],
        )

    def trace_key(self, series_uid: str, since: int) -> str:
        """By which its traces are named; written down before anybody hears of it."""
        with self._begin() as db:
            row = {"series_uid": series_uid, "key": secrets.token_hex(16), "number": 0, "event": since}
            db.execute(self._insert(trace_table).values(row).on_conflict_do_nothing())
            key = sa.select(trace_table.c.key).where(trace_table.c.series_uid == series_uid)
            return db.execute(key).scalar_one()

    def traces_told(self, lives: Sequence[Life]) -> None:
        """Of these nothing is left to tell."""
        with self._begin() as db:
            for life in lives:
                mine = trace_table.c.series_uid == life.series_uid, trace_table.c.number == life.number
                values = {"number": life.number + 1, "event": life.event}
                db.execute(sa.update(trace_table).where(*mine).values(**values))
