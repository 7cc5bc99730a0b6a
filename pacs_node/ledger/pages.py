"""What the web pages, the health check and the metrics read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.found import in_series
from pacs_node.ledger.lists import Lists, failed_for_good, iso, summary
from pacs_node.ledger.pauses import held
from pacs_node.ledger.queues import resting
from pacs_node.ledger.tables import (
    arrival_table,
    edition_table,
    event_table,
    instance_table,
    job_table,
    receipt_table,
    result_table,
    series_table,
)
from pacs_node.records import (
    BEGINNABLE,
    HEARTBEAT_AE,
    JOB_KINDS,
    JOB_STATES,
    OPEN_JOB_STATES,
)

RECENT = 20  # jobs of a queue that began last: what of it runs is among them
MOST_TOLD = 20  # jobs of one task that are told one by one, however many need a person


@dataclass(frozen=True, slots=True)
class Late:
    """Which jobs are late."""

    begun: Mapping[str, datetime]  # kind -> an attempt that began before then should have ended
    living: Collection[str]  # workers
    unattended: datetime  # so should one of another worker that began before then
    standing: datetime | None  # of a queue something should have begun since; None: not asked
    made: Mapping[str, datetime]  # kind -> a job that was made before then should have ended
    failing: datetime  # one that was made before then should have come through, and not failed to be tried again
    closed_of_standing: Collection[str] = ()  # routes that were not open all the time since `standing`
    closed_of_made: Collection[str] = ()  # or since `made`
    held: Collection[str] = ()  # kinds that cannot begin now


class Pages(Lists):
    """Questions that change nothing."""

    def series(self, series_uid: str) -> dict[str, Any] | None:
        """Everything about one series, as plain values."""
        with self._reading() as db:
            row = db.execute(sa.select(series_table).where(series_table.c.series_uid == series_uid)).mappings().first()
            if row is None:
                return None
            jobs = (
                db.execute(
                    sa.select(job_table)
                    .where(job_table.c.series_uid == series_uid)
                    .order_by(job_table.c.created_at, job_table.c.id)
                )
                .mappings()
                .all()
            )
            ids = [job["id"] for job in jobs]
            results = (
                db.execute(sa.select(result_table).where(result_table.c.job.in_(ids)).order_by(result_table.c.position))
                .mappings()
                .all()
            )
            receipts = (
                db.execute(sa.select(receipt_table).where(receipt_table.c.job.in_(ids)).order_by(receipt_table.c.at))
                .mappings()
                .all()
            )
            editions = {
                edition["job"]: {
                    "revision": edition["number"],
                    "replaces": [each["sop_instance_uid"] for each in edition["replaces"]],
                }
                for edition in db.execute(sa.select(edition_table).where(edition_table.c.job.in_(ids))).mappings()
            }
            arrivals = (
                db.execute(sa.select(arrival_table).where(arrival_table.c.job.in_(ids)).order_by(arrival_table.c.id))
                .mappings()
                .all()
            )
            events = (
                db.execute(
                    sa.select(event_table).where(event_table.c.series_uid == series_uid).order_by(event_table.c.id)
                )
                .mappings()
                .all()
            )
            calling = db.scalars(
                sa.select(instance_table.c.calling_ae).where(instance_table.c.series_uid == series_uid).distinct()
            ).all()
            verdict = row["verdict"] or {}
            return {
                **summary(row, jobs, in_series(db, [series_uid]).get(series_uid)),
                "calling_aes": sorted(calling),
                "expected": row["expected"],
                "verdict": {key: verdict.get(key) for key in ("fit", "reason", "set_aside", "facts", "remarks")}
                if verdict
                else None,
                "rules": row["rules"] or [],
                "jobs": [
                    {**_job_facts(job, results, receipts, arrivals), "edition": editions.get(job["id"])} for job in jobs
                ],
                "timeline": [
                    {"at": iso(event["at"]), "event": event["event"], "text": event["text"]} for event in events
                ],
            }

    def made_by(self, job_id: str) -> str | None:
        """The inference whose results a job sends; of an inference itself."""
        sent = sa.case((job_table.c.kind == "send", job_table.c.parent), else_=job_table.c.id)
        with self._reading() as db:
            return db.scalar(sa.select(sent).where(job_table.c.id == job_id))

    def sent_besides(self, job_id: str) -> dict[str, str]:
        """SOP Instance UID -> SOP Class UID of what destinations have taken that was made of the results of an
        inference: captures, key objects, other forms. In the order of their sending."""
        receipt, own = receipt_table.c, sa.select(result_table.c.sop_instance_uid).where(result_table.c.job == job_id)
        taken = (
            sa.select(receipt.sop_instance_uid, receipt.sop_class_uid)
            .join(job_table, job_table.c.id == receipt.job)
            .where(job_table.c.parent == job_id, receipt.stored, receipt.sop_instance_uid.not_in(own))
            .order_by(receipt.at)
        )
        with self._reading() as db:
            return dict(tuple(row) for row in db.execute(taken))

    def unresolved(self, *, shadow: bool = False) -> list[dict[str, Any]]:
        """Jobs that failed for good and that nobody has dealt with, the latest first, as plain values: of each task the
        first MOST_TOLD, with how many there are of it. shadow: those of shadow routes instead."""
        found = failed_for_good(sa.select(job_table), shadow=shadow)
        with self._reading() as db:
            return _first_of_each_task(db, found, job_table.c.finished_at.desc())

    def late(self, asked: Late) -> dict[str, list[dict[str, Any]]]:
        """Jobs that should have come further, each in the first of these that it belongs to, as `unresolved` says them,
        the oldest first. "running": they began before the time of their kind, or their worker is not among the living.
        "standing": they might have begun before then, and of their queue nothing runs or has begun or ended since.
        "overdue": they have not ended though they were made before the time of their kind; shadows wait as long as
        others run, and who waits for other series of a study has a time of their own. Whoever was paused since, or
        rests because their route is closed, is neither standing nor overdue. "failing": their last attempt has failed,
        and they are tried again."""
        begun, of = job_table.c.started_at, job_table.c.kind
        with self._reading() as db:
            long = [sa.and_(of == kind, begun < before) for kind, before in asked.begun.items()]
            gone = sa.and_(job_table.c.executor.not_in(list(asked.living)), begun < asked.unattended)
            running = sa.and_(job_table.c.state == "running", sa.or_(gone, *long))
            # what cannot be, for lack of a device, is not late either
            able = sa.not_(sa.and_(of.in_(asked.held), job_table.c.state != "running"))
            standing = [sa.and_(each, able) for each in self._standing(db, asked)]
            overdue = sa.and_(self._overdue(db, asked), able, *(sa.not_(each) for each in (running, *standing)))
            told = *(sa.not_(each) for each in (running, *standing)), sa.not_(overdue)
            failing = sa.and_(self._failing(db, asked.failing), able, *told)
            made = job_table.c.created_at
            return {
                "running": _first_of_each_task(db, sa.select(job_table).where(running), begun),
                "standing": _first_of_each_task(db, sa.select(job_table).where(sa.or_(*standing)), made)
                if standing
                else [],
                "overdue": _first_of_each_task(db, sa.select(job_table).where(overdue), made),
                "failing": _first_of_each_task(db, sa.select(job_table).where(failing), made),
            }

    def _overdue(self, db: sa.Connection, asked: Late) -> sa.ColumnElement[bool]:
        since = sa.func.coalesce(job_table.c.waits_until, job_table.c.created_at)
        live = job_table.c.state.in_(OPEN_JOB_STATES), job_table.c.shadow.is_(False), _not_at_rest(asked.closed_of_made)
        return sa.or_(
            sa.false(),
            *(
                sa.and_(job_table.c.kind == kind, since < before, *live, ~held(self._pauses(db, before)))
                for kind, before in asked.made.items()
            ),
        )

    def _failing(self, db: sa.Connection, before: datetime) -> sa.ColumnElement[bool]:
        return sa.and_(
            job_table.c.state.in_(OPEN_JOB_STATES),
            job_table.c.error.is_not(None),
            job_table.c.created_at < before,
            job_table.c.shadow.is_(False),
            ~held(self._pauses(db, before)),
        )

    def _standing(self, db: sa.Connection, asked: Late) -> list[sa.ColumnElement[bool]]:
        """For each queue that stands still: which jobs stand in it."""
        since = asked.standing
        if since is None:
            return []
        waits = (
            job_table.c.state.in_(BEGINNABLE),
            sa.func.coalesce(job_table.c.not_before, job_table.c.created_at) < since,
            ~held(self._pauses(db, since)),
            _not_at_rest(asked.closed_of_standing),
        )
        standing: list[sa.ColumnElement[bool]] = []
        queues = db.execute(sa.select(job_table.c.kind, job_table.c.destination).where(*waits).distinct()).all()
        for kind, destination in queues:
            same = job_table.c.destination
            queue = job_table.c.kind == kind, same.is_(None) if destination is None else same == destination
            latest = (
                sa.select(job_table.c.state, job_table.c.started_at, job_table.c.finished_at)
                .where(*queue, job_table.c.started_at.is_not(None))
                .order_by(job_table.c.started_at.desc())
                .limit(RECENT)
            )
            if not any(
                state == "running" or (finished_at or started_at) >= since
                for state, started_at, finished_at in db.execute(latest)
            ):
                standing.append(sa.and_(*queue, *waits))
        return standing

    def last_begun(self, destinations: Iterable[str]) -> datetime | None:
        """When a job last began: an inference, or whatever is for one of these destinations."""
        at, kind, place = job_table.c.started_at, job_table.c.kind, job_table.c.destination
        queues = [(each, name) for name in destinations for each in JOB_KINDS if each != "infer"]
        latest = [sa.select(sa.func.max(at).label("at")).where(kind == "infer", place.is_(None))]
        latest += [sa.select(sa.func.max(at).label("at")).where(kind == each, place == name) for each, name in queues]
        with self._reading() as db:
            return max((found for query in latest if (found := db.scalar(query)) is not None), default=None)

    def of_the_future(self, after: datetime) -> tuple[int, datetime | None]:
        """How many open series and jobs bear times after this one, and the latest of these times."""
        times = (
            sa.select(series_table.c.last_arrival.label("at")).where(series_table.c.state == "receiving"),
            *(
                sa.select(time.label("at")).where(job_table.c.state.in_(OPEN_JOB_STATES))
                for time in (job_table.c.created_at, job_table.c.started_at)
            ),
        )
        found = sa.union_all(*times).subquery()
        with self._reading() as db:
            number, latest = db.execute(
                sa.select(sa.func.count(), sa.func.max(found.c.at)).where(found.c.at > after)
            ).one()
            return number, latest

    def counts(self) -> dict[str, dict[str, int]]:
        """Series and jobs by state, for /health and /metrics."""
        with self._reading() as db:
            state, kinds = series_table.c.state, (job_table.c.kind, job_table.c.state)
            series = _counted(db, series_table, (state,), HEARTBEATS)
            jobs = _counted(db, job_table, kinds, job_table.c.series_uid.in_(OF_HEARTBEATS))
            # by their routes, too: so it is answered by the index of shadows, which is short
            of = job_table.c.route, job_table.c.state
            shadows: Counter[str] = Counter()
            for _, each, number in db.execute(sa.select(*of, sa.func.count()).where(job_table.c.shadow).group_by(*of)):
                shadows[each] += number
            return {
                "series": dict(series),
                **{
                    each: dict.fromkeys(JOB_STATES, 0)
                    | {s: n - (shadows[s] if each == "infer" else 0) for kind, s, n in jobs if kind == each}
                    for each in JOB_KINDS
                },
                "shadow": dict.fromkeys(JOB_STATES, 0) | shadows,  # inferences of shadows, which are in no other
            }

    def arrival_counts(self) -> list[tuple[str, str, str, int]]:
        """(destination, "yes" | "no" | "not proven", how, number) of what is known about arrivals, for /metrics."""
        words = {True: "yes", False: "no", None: "not proven"}
        kinds = arrival_table.c.destination, arrival_table.c.arrived, arrival_table.c.how
        with self._reading() as db:
            beats = sa.select(job_table.c.id).where(job_table.c.series_uid.in_(OF_HEARTBEATS))
            rows = _counted(db, arrival_table, kinds, arrival_table.c.job.in_(beats))
            return [(destination, words[arrived], how, number) for destination, arrived, how, number in rows]


def _not_at_rest(closed: Collection[str]) -> sa.ColumnElement[bool]:
    return sa.or_(job_table.c.state.not_in(BEGINNABLE), sa.not_(resting(closed)))


HEARTBEATS = series_table.c.sender == HEARTBEAT_AE
OF_HEARTBEATS = sa.select(series_table.c.series_uid).where(HEARTBEATS)


def _counted(
    db: sa.Connection, table: sa.Table, kinds: Sequence[sa.Column[Any]], beats: sa.ColumnElement[bool]
) -> list[Any]:
    """How many rows there are of each kind, less those of heartbeats: all by the index of the kinds alone, these by
    that of their sender."""
    of_each = sa.select(*kinds, sa.func.count()).select_from(table).group_by(*kinds)
    less = {tuple(kind): number for *kind, number in db.execute(of_each.where(beats))}
    counted = [(*kind, number - less.get(tuple(kind), 0)) for *kind, number in db.execute(of_each)]
    return [row for row in counted if row[-1]]


def _first_of_each_task(db: sa.Connection, found: sa.Select[Any], order: sa.ColumnElement[Any]) -> list[dict[str, Any]]:
    """Of these jobs the first of each task, in this order, with how many there are of it."""
    plain = ("kind", "pipeline", "destination", "series_uid", "state", "reason")
    of_inferences = sa.case((job_table.c.kind == "infer", job_table.c.pipeline))
    task = [job_table.c.kind, of_inferences, job_table.c.destination]
    ranked = found.with_only_columns(
        job_table.c.id.label("job"),
        *(job_table.c[name] for name in plain),
        job_table.c.created_at,
        sa.func.count().over(partition_by=task).label("of_task"),
        sa.func.row_number().over(partition_by=task, order_by=[order, job_table.c.id]).label("in_task"),
        sa.func.row_number().over(order_by=[order, job_table.c.id]).label("place"),
    ).subquery()
    first = sa.select(ranked).where(ranked.c.in_task <= MOST_TOLD).order_by(ranked.c.place)
    return [
        {name: row[name] for name in ("job", *plain, "of_task")} | {"created_at": iso(row["created_at"])}
        for row in db.execute(first).mappings()
    ]


def _job_facts(job: Any, results: Iterable[Any], receipts: Iterable[Any], arrivals: Iterable[Any]) -> dict[str, Any]:
    latest = {a["sop_instance_uid"]: a for a in arrivals if a["job"] == job["id"]}
    plain = (
        "id", "kind", "pipeline", "route", "destination", "revision", "state", "priority", "shadow", "study", "reason",
        "progress", "progress_text", "warnings", "facts",
    )  # fmt: skip
    return {
        **{name: job[name] for name in plain},
        "rests": None,  # what it waits for, where these are the hours of its route: the facts know
        "paused": None,  # why it does not begin, where a person has paused it: the facts know
        "attempts": job["attempt"],
        **{name: iso(job[name]) for name in ("not_before", "created_at", "started_at", "finished_at")},
        "results": [
            {"sop_instance_uid": r["sop_instance_uid"], "sop_class_uid": r["sop_class_uid"]}
            for r in results
            if r["job"] == job["id"]
        ],
        "receipts": [
            {
                "sop_instance_uid": r["sop_instance_uid"],
                "stored": r["stored"],
                "status": r["status"],
                "text": r["text"],
                "at": iso(r["at"]),
                "sop_class_uid": r["sop_class_uid"],
            }
            for r in receipts
            if r["job"] == job["id"]
        ],
        "arrivals": [
            {**{name: a[name] for name in ("sop_instance_uid", "arrived", "how", "text")}, "at": iso(a["at"])}
            for a in latest.values()
        ],
    }
