"""Who waits for what: each queue in its order, and the turns of its senders. Which is next is decided in turns.py."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.pauses import Pauses, held
from pacs_node.ledger.tables import job_table, queue_table
from pacs_node.records import BEGINNABLE, NOT_URGENT, Also, Job, Pause, moment, why_held
from pacs_node.turns import Next, begun, in_order, turn_of

BELONGS_TO = {"send": "infer_job", "confirm": "send_job", "report": "transaction_uid"}  # the column `parent`, by kind
JOB_FIELDS = tuple(name for name in Job.__dataclass_fields__ if name not in BELONGS_TO.values())


class Queues(Pauses):
    """The order of what waits. A queue is a kind of job and a destination; within it each priority is a class."""

    def due_jobs(
        self, now: datetime, most: Mapping[str, int], overtaken_s: float, closed: Collection[str] = ()
    ) -> list[Job]:
        """Jobs that may begin now, in their order: `most[kind]` of each queue.

        However many wait: only the first of each class are read. closed: routes whose hours are not now.
        """
        found: list[Job] = []
        with self._reading() as db:
            pauses = self._pauses(db, now)
            for kind, destination in self._queues(db):
                if most[kind] > 0:
                    first = self._first(db, kind, destination, now, most[kind], overtaken_s, pauses, closed)
                    found += [one.job for one in first]
        return found

    def number_running(self, kind: str) -> int:
        with self._reading() as db:
            of_kind = job_table.c.state == "running", job_table.c.kind == kind
            return db.scalar(sa.select(sa.func.count()).select_from(job_table).where(*of_kind)) or 0

    def queues(
        self, now: datetime, most: int, overtaken_s: float, closed: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Each queue in which something runs or waits, as plain values, and why each job is in its place.

        closed: routes whose hours are not now -> what their jobs wait for.
        """
        closed = closed or {}
        with self._reading() as db:
            pauses = self._pauses(db, now)
            return [
                {
                    "kind": kind,
                    "destination": destination,
                    "waiting": self._number_waiting(db, kind, destination),
                    "jobs": [
                        *self._running(db, kind, destination),
                        *(
                            _shown(one.job, one.why, one.job.created_at, place=place)
                            for place, one in enumerate(
                                self._first(db, kind, destination, now, most, overtaken_s, pauses, closed), start=1
                            )
                        ),
                        *self._delayed(db, kind, destination, now, most),
                        *self._held(db, kind, destination, now, most, pauses),
                        *self._resting(db, kind, destination, now, most, pauses, closed),
                    ],
                }
                for kind, destination in self._queues(db, ("running", *BEGINNABLE))
            ]

    def _number_waiting(self, db: sa.Connection, kind: str, destination: str | None) -> int:
        waiting = job_table.c.state.in_(BEGINNABLE), *in_queue(kind, destination)
        return db.scalar(sa.select(sa.func.count()).select_from(job_table).where(*waiting)) or 0

    def _running(self, db: sa.Connection, kind: str, destination: str | None) -> list[dict[str, Any]]:
        running = job_table.c.state == "running", *in_queue(kind, destination)
        rows = db.execute(
            sa.select(job_table).where(*running).order_by(job_table.c.started_at, job_table.c.id)
        ).mappings()
        return [_shown(job_of(row), row["progress_text"], row["started_at"]) for row in rows]

    def _delayed(
        self, db: sa.Connection, kind: str, destination: str | None, now: datetime, most: int
    ) -> list[dict[str, Any]]:
        later = job_table.c.not_before > now, job_table.c.state.in_(BEGINNABLE), *in_queue(kind, destination)
        rows = db.execute(sa.select(job_table).where(*later).order_by(job_table.c.not_before).limit(most)).mappings()
        jobs = [job_of(row) for row in rows]
        return [
            _shown(job, f"not before {moment(job.not_before, 'seconds')}: {job.reason}", job.created_at)
            for job in jobs
            if job.not_before is not None
        ]

    def _held(
        self, db: sa.Connection, kind: str, destination: str | None, now: datetime, most: int, pauses: Sequence[Pause]
    ) -> list[dict[str, Any]]:
        """Those that could begin if nothing were paused, in their order."""
        if not any(each.holds(kind, each.name, destination) for each in pauses):
            return []
        jobs = self._waiting(db, kind, destination, now, most, held(pauses))
        return [_shown(job, why_held(pauses, kind, job.pipeline, destination) or "", job.created_at) for job in jobs]

    def _resting(
        self,
        db: sa.Connection,
        kind: str,
        destination: str | None,
        now: datetime,
        most: int,
        pauses: Sequence[Pause],
        closed: Mapping[str, str],
    ) -> list[dict[str, Any]]:
        """Those that wait for the hours of their route, and that nobody has paused besides."""
        if not closed or kind != "infer":
            return []
        jobs = self._waiting(db, kind, destination, now, most, resting(closed), ~held(pauses))
        return [_shown(job, closed[job.route], job.created_at) for job in jobs]

    def _waiting(
        self,
        db: sa.Connection,
        kind: str,
        destination: str | None,
        now: datetime,
        most: int,
        *of: sa.ColumnElement[bool],
    ) -> list[Job]:
        """Those of a queue whose time has come and for which all of this holds, in their order."""
        waiting = job_table.c.state.in_(BEGINNABLE), _due(now), *in_queue(kind, destination), *of
        order = job_table.c.priority, job_table.c.turn, job_table.c.created_at
        rows = db.execute(sa.select(job_table).where(*waiting).order_by(*order).limit(most)).mappings()
        return [job_of(row) for row in rows]

    def _queues(self, db: sa.Connection, states: Sequence[str] = BEGINNABLE) -> list[tuple[str, str | None]]:
        queue = job_table.c.kind, job_table.c.destination
        rows = db.execute(sa.select(*queue).where(job_table.c.state.in_(states)).distinct())
        return sorted((tuple(row) for row in rows), key=lambda one: (one[0], one[1] or ""))

    def _first(
        self,
        db: sa.Connection,
        kind: str,
        destination: str | None,
        now: datetime,
        most: int,
        overtaken_s: float,
        pauses: Sequence[Pause],
        closed: Collection[str],
    ) -> list[Next]:
        if why_held(pauses, kind, "", destination):
            return []
        free = [~held(pauses)] if any(each.holds(kind, each.name, destination) for each in pauses) else []
        awake = [~resting(closed)] if closed else []
        in_it = (*in_queue(kind, destination), *free, *awake)
        waiting: list[Job] = []
        for state in BEGINNABLE:  # one at a time: the index has each in this order
            for priority in self._classes(db, state, kind, destination):
                rows = db.execute(
                    sa.select(job_table)
                    .where(job_table.c.state == state, *in_it, job_table.c.priority == priority, _due(now))
                    .order_by(job_table.c.turn, job_table.c.created_at)
                    .limit(most)
                ).mappings()
                waiting += [job_of(row) for row in rows]
        return in_order(waiting, self._overtaken(db, kind, destination), now, overtaken_s, most)

    def _classes(self, db: sa.Connection, state: str, kind: str, destination: str | None) -> Iterator[int]:
        """The priorities that wait, each found by the index: not by reading all that do."""
        lowest = sa.select(sa.func.min(job_table.c.priority)).where(
            job_table.c.state == state, *in_queue(kind, destination)
        )
        priority = db.scalar(lowest)
        while priority is not None:
            yield priority
            priority = db.scalar(lowest.where(job_table.c.priority > priority))

    def _overtaken(self, db: sa.Connection, kind: str, destination: str | None) -> dict[int, int]:
        counted = sa.select(queue_table).where(*_row_of(kind, destination))
        return {row["priority"]: row["overtaken"] for row in db.execute(counted).mappings()}

    def _turn(self, db: sa.Connection, job: Job) -> int:
        """The turn of a new job."""
        row = {"kind": job.kind, "destination": job.destination or "", "priority": job.priority}
        db.execute(self._insert(queue_table).values(**row, turn=1, overtaken=0).on_conflict_do_nothing())
        on = db.execute(
            sa.select(queue_table.c.turn).where(
                *_row_of(job.kind, job.destination), queue_table.c.priority == job.priority
            )
        ).scalar_one()
        latest = db.scalar(
            sa.select(job_table.c.turn)
            .where(
                *in_queue(job.kind, job.destination),
                job_table.c.priority == job.priority,
                job_table.c.sender == job.sender,
                job_table.c.state != "superseded",  # a turn that nobody takes
            )
            .order_by(job_table.c.turn.desc())
            .limit(1)
        )
        return turn_of(on, latest)

    def _turn_of_next(self, db: sa.Connection, job: Job) -> int:
        """One before all that wait in this class of its queue."""
        first = sa.select(sa.func.min(job_table.c.turn)).where(
            *in_queue(job.kind, job.destination),
            job_table.c.priority == job.priority,
            job_table.c.state.in_(BEGINNABLE),
        )
        on, before = self._turn(db, job), db.scalar(first)
        return on if before is None else before - 1

    def _count_start(self, db: sa.Connection, job: Job) -> None:
        """Its turn has come; and it has overtaken whatever is less urgent."""
        in_it = _row_of(job.kind, job.destination)
        # all of a queue are locked, in one order: another worker waits here instead of for half of them
        rows = db.execute(
            sa.select(queue_table).where(*in_it).order_by(queue_table.c.priority).with_for_update()
        ).mappings()
        before = {row["priority"]: row for row in rows}
        after = begun({each: row["overtaken"] for each, row in before.items()}, job.priority, ())
        for priority, row in before.items():
            turn = max(row["turn"], job.turn) if priority == job.priority else row["turn"]
            if (turn, after[priority]) != (row["turn"], row["overtaken"]):
                db.execute(
                    sa.update(queue_table)
                    .where(*in_it, queue_table.c.priority == priority)
                    .values(turn=turn, overtaken=after[priority])
                )


def _due(now: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(job_table.c.not_before.is_(None), job_table.c.not_before <= now)


def in_order_of_queues(jobs: Iterable[Job]) -> list[Job]:
    """One order for all who add several: none waits for a row of a queue that another holds, who waits for his."""
    return sorted(jobs, key=lambda job: (job.kind, job.destination or "", job.priority))


def in_queue(kind: str, destination: str | None) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    same = job_table.c.destination
    return job_table.c.kind == kind, same.is_(None) if destination is None else same == destination


def resting(closed: Collection[str]) -> sa.ColumnElement[bool]:
    """As `Job.rests` says it."""
    urgent = job_table.c.priority < NOT_URGENT
    return sa.and_(job_table.c.kind == "infer", sa.not_(urgent), job_table.c.route.in_(list(closed)))


def _row_of(kind: str, destination: str | None) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return queue_table.c.kind == kind, queue_table.c.destination == (destination or "")


def _shown(job: Job, why: str, since: datetime | None, place: int | None = None) -> dict[str, Any]:
    plain = ("series_uid", "pipeline", "route", "sender", "priority", "turn", "state")
    return {
        "job": job.id,
        **{name: getattr(job, name) for name in plain},
        "place": place,
        "why": why,
        "since": None if since is None else since.isoformat(timespec="milliseconds"),
    }


def job_of(row: Any) -> Job:
    values = {name: row[name] for name in JOB_FIELDS}
    if row["kind"] in BELONGS_TO:
        values[BELONGS_TO[row["kind"]]] = row["parent"]
    also = tuple(
        Also(tuple(each["send_to"]), tuple(each["kinds"]), each["min_size_mm"], tuple(each.get("categories", ())))
        for each in values["also"] or ()
    )
    lists = {"send_to": tuple(values["send_to"]), "also": also, "options": dict(values["options"])}
    return Job(**{**values, **lists})
