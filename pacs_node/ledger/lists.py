"""The list of series: searched, filtered, counted and read page by page, however many there are.

What is asked of all rows is answered by an index alone; only the rows that are shown are read.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.found import in_series, with_findings
from pacs_node.ledger.patients import of_patient
from pacs_node.ledger.pauses import Pauses
from pacs_node.ledger.tables import event_table, job_table, no_heartbeat, series_table
from pacs_node.records import EVERY, OPEN_JOB_STATES, Wanted

# not the verdict, which names every image
SUMMARY = [series_table.c[name] for name in (
    "series_uid", "study_uid", "modality", "description", "sender", "state", "arrived", "revision", "closed_because",
    "first_arrival", "last_arrival", "turnaround_s", "deleted_at", "deleted_images",
)]  # fmt: skip
OF_A_JOB = [job_table.c[name] for name in ("series_uid", "pipeline", "kind", "state", "revision", "reason", "shadow")]
BETWEEN = "\x01"  # in no text that anybody seeks
UID = re.compile(r"[0-9]+\.[0-9.]*")


class Lists(Pauses):
    """Questions about many series."""

    def series_list(self, limit: int, wanted: Wanted = EVERY) -> list[dict[str, Any]]:
        """The first of them in their order, as plain values."""
        with self._reading() as db:
            uids = self._uids(db, limit, wanted)
            rows = {
                row["series_uid"]: row
                for row in db.execute(sa.select(*SUMMARY).where(series_table.c.series_uid.in_(uids))).mappings()
            }
            of: dict[str, list[Any]] = {}
            jobs = sa.select(*OF_A_JOB).where(job_table.c.series_uid.in_(uids)).order_by(job_table.c.created_at)
            for job in db.execute(jobs).mappings():
                of.setdefault(job["series_uid"], []).append(job)
            found = in_series(db, uids)
            return [summary(rows[uid], of.get(uid, ()), found.get(uid)) for uid in uids if uid in rows]

    def series_uids_of(self, limit: int, wanted: Wanted) -> list[str]:
        """Series Instance UIDs alone."""
        with self._reading() as db:
            return self._uids(db, limit, wanted)

    def series_count(self, wanted: Wanted) -> tuple[int, int]:
        """How many are wanted, and how many there are."""
        with self._reading() as db:
            all_of_it = sa.select(sa.func.count()).select_from(series_table)
            there = (db.scalar(all_of_it) or 0) - (db.scalar(all_of_it.where(~no_heartbeat(series_table))) or 0)
            if not wanted.narrowed:
                return there, there
            number = db.scalar(sa.select(sa.func.count(series_table.c.first_arrival)).where(*conditions(wanted)))
            return number or 0, there

    def stamp(self) -> str:
        """Another one whenever a page would show something else."""
        last = sa.select(sa.func.max(event_table.c.id))
        came = sa.select(sa.func.max(series_table.c.last_arrival)).where(series_table.c.state == "receiving")
        runs = sa.select(sa.func.count(), sa.func.sum(job_table.c.progress)).where(job_table.c.state == "running")
        with self._reading() as db:
            event, arrival, (number, progress) = db.scalar(last), db.scalar(came), db.execute(runs).one()
            paused = self._pauses_changed(db)
        return f"{event or 0}-{iso(arrival) or ''}-{number}-{progress or 0:.3f}{paused}"

    def senders_and_modalities(self) -> list[tuple[str, str]]:
        """Which AE title has sent which modality; "" while a series is open."""
        of = series_table.c.sender, series_table.c.modality
        with self._reading() as db:
            return [
                (sender, modality)
                for sender, modality in db.execute(
                    sa.select(*of).where(no_heartbeat(series_table)).distinct().order_by(*of)
                )
            ]

    def _uids(self, db: sa.Connection, limit: int, wanted: Wanted) -> list[str]:
        by, uid = (
            (series_table.c.turnaround_s if wanted.sort == "slowest" else series_table.c.first_arrival),
            (series_table.c.series_uid),
        )
        forward = wanted.sort == "oldest"
        query = sa.select(uid).where(*conditions(wanted)).limit(limit)
        query = query.order_by(by, uid) if forward else query.order_by(by.desc(), uid.desc())
        if wanted.sort == "slowest":
            query = query.where(by.is_not(None))
        if wanted.after:
            last = db.execute(sa.select(by).where(uid == wanted.after)).first()
            if last is None or last[0] is None:
                return []
            from_there, behind = (by >= last[0], by > last[0]) if forward else (by <= last[0], by < last[0])
            same = sa.and_(by == last[0], uid > wanted.after if forward else uid < wanted.after)
            query = query.where(from_there, sa.or_(behind, same))  # the first lets the index begin there
        return list(db.scalars(query))


def conditions(wanted: Wanted) -> list[sa.ColumnElement[bool]]:
    """What holds for each row that is wanted."""
    of, found = series_table.c, [no_heartbeat(series_table)]
    equal = {of.modality: wanted.modality, of.sender: wanted.sender, of.state: wanted.state}
    found += [column == value for column, value in equal.items() if value]
    if wanted.since is not None:
        found.append(of.first_arrival >= wanted.since)
    if wanted.before is not None:
        found.append(of.first_arrival < wanted.before)
    if UID.fullmatch(wanted.text):
        found.append(sa.or_(*(uid.startswith(wanted.text, autoescape=True) for uid in (of.series_uid, of.study_uid))))
    elif wanted.text:
        words = of.description + BETWEEN + of.modality + BETWEEN + of.sender  # looked at once, not three times
        found.append(words.icontains(wanted.text, autoescape=True))
    if wanted.patient:
        found.append(of.series_uid.in_(of_patient(wanted.patient)))
    if wanted.pipeline:
        asked = job_table.c.kind == "infer", job_table.c.pipeline == wanted.pipeline
        found.append(sa.exists().where(*asked, job_table.c.series_uid == of.series_uid))
    if wanted.job:
        found.append(of.series_uid.in_(sa.select(job_table.c.series_uid).where(job_table.c.state == wanted.job)))
    if wanted.trouble:
        again = job_table.c.state.in_(OPEN_JOB_STATES), job_table.c.attempt > 1, job_table.c.shadow.is_(False)
        retried = sa.select(job_table.c.series_uid).where(*again)
        failed = failed_for_good(sa.select(job_table.c.series_uid))
        found.append(of.series_uid.in_(sa.union(retried, failed)))
    return [*found, *with_findings(wanted, of.series_uid)]


def failed_for_good(query: sa.Select[Any], *, shadow: bool = False) -> sa.Select[Any]:
    """Of these columns of jobs, those of jobs that failed for good and that nobody has dealt with: live ones, or those
    of shadows.

    Dealt with: retried, dismissed, run again with its series (a later job of its kind, route and destination),
    overtaken by late images, or of a series whose images were deleted.
    """
    later, series = job_table.alias("later"), series_table.alias("of_it")
    place = sa.func.coalesce(job_table.c.destination, "")
    again = sa.exists().where(
        later.c.series_uid == job_table.c.series_uid,
        later.c.kind == job_table.c.kind,
        later.c.route == job_table.c.route,
        sa.func.coalesce(later.c.destination, "") == place,
        later.c.created_at > job_table.c.created_at,
    )
    current = sa.func.coalesce(series.c.revision, job_table.c.revision) == job_table.c.revision
    return (
        query.select_from(job_table)
        .outerjoin(series, series.c.series_uid == job_table.c.series_uid)
        .where(
            job_table.c.state == "failed",
            job_table.c.shadow.is_(shadow),
            no_heartbeat(job_table),
            current,
            ~again,
            series.c.state.is_distinct_from("deleted"),
        )
    )


def summary(row: Any, jobs: Any, found: dict[str, Any] | None) -> dict[str, Any]:
    """jobs: those of this series; found: see found.in_series."""
    plain = ("series_uid", "study_uid", "modality", "description", "sender", "state")
    return {
        **{name: row[name] for name in plain},
        "instances": row["arrived"],
        "revision": row["revision"],
        "closed_because": row["closed_because"],
        "first_arrival": iso(row["first_arrival"]),
        "last_arrival": iso(row["last_arrival"]),
        "turnaround_s": row["turnaround_s"],
        **(found or {"findings": None, "largest_mm": None}),
        "deleted_at": iso(row["deleted_at"]),
        "deleted_images": row["deleted_images"],
        "jobs": [
            {name: job[name] for name in ("pipeline", "kind", "state", "revision", "reason", "shadow")} for job in jobs
        ],
    }


def iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds")
