"""What is kept, what may go, and what has gone: the rows of retention.

Rows go before files: what no row names is not here any more, for everyone, whatever still lies on the disk. The files
that are to follow are written down in the same transaction, and struck out once they are gone for good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.commitments import Commitments
from pacs_node.ledger.engine import portions
from pacs_node.ledger.queues import job_of
from pacs_node.ledger.series import SeriesRows
from pacs_node.ledger.tables import (
    arrival_table,
    association_table,
    deletion_table,
    edition_table,
    event_table,
    instance_table,
    job_table,
    patient_hash_table,
    place_table,
    receipt_table,
    refusal_table,
    series_table,
    trace_table,
)
from pacs_node.records import OPEN_JOB_STATES, Deletion, Holding

DELETED = "deleted"  # the state of a series, and the event


class Holdings(SeriesRows, Commitments):
    """Series as what takes up room."""

    def holdings(self, after: Holding | None, limit: int) -> list[Holding]:
        """The closed series whose last images came the longest ago, from behind `after` on."""
        order = series_table.c.last_arrival, series_table.c.series_uid
        rows = sa.select(series_table).where(series_table.c.state == "closed").order_by(*order).limit(limit)
        if after is not None:
            same = sa.and_(order[0] == after.last_arrival, order[1] > after.series_uid)
            rows = rows.where(sa.or_(order[0] > after.last_arrival, same))
        with self._reading() as db:
            return self._holdings(db, db.execute(rows).mappings().all())

    def holding(self, series_uid: str) -> Holding | None:
        """One series, closed or not."""
        with self._reading() as db:
            one = sa.select(series_table).where(series_table.c.series_uid == series_uid)
            return next(iter(self._holdings(db, db.execute(one).mappings().all())), None)

    def _holdings(self, db: sa.Connection, rows: Sequence[Mapping[Any, Any]]) -> list[Holding]:
        uids = [row["series_uid"] for row in rows]
        of_series = instance_table.c.series_uid
        sizes: dict[str, int] = {
            uid: int(size)
            for uid, size in db.execute(
                sa.select(of_series, sa.func.sum(instance_table.c.size)).where(of_series.in_(uids)).group_by(of_series)
            )
        }
        mine = sa.select(job_table).where(job_table.c.series_uid.in_(uids))
        jobs = [job_of(row) for row in db.execute(mine.order_by(job_table.c.created_at, job_table.c.id)).mappings()]
        ids = sa.select(job_table.c.id).where(job_table.c.series_uid.in_(uids))
        stored, proven = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        receipts = receipt_table.c.job, receipt_table.c.sop_instance_uid
        for job_id, uid in db.execute(sa.select(*receipts).where(receipt_table.c.job.in_(ids), receipt_table.c.stored)):
            stored[job_id].add(uid)
        send_of = {job.id: job.send_job for job in jobs if job.kind == "confirm" and job.send_job is not None}
        arrivals = arrival_table.c.job, arrival_table.c.sop_instance_uid, arrival_table.c.arrived
        for job_id, uid, arrived in db.execute(
            sa.select(*arrivals).where(arrival_table.c.job.in_(ids)).order_by(arrival_table.c.id)
        ):  # the latest of an object is the valid one
            of_send = proven[send_of.get(job_id, "")]
            (of_send.add if arrived else of_send.discard)(uid)
        return [
            Holding(
                **{
                    name: row[name]
                    for name in ("series_uid", "state", "last_arrival", "arrived", "committed_to", "study_uid")
                },
                size=sizes.get(row["series_uid"], 0),
                jobs=(own := tuple(job for job in jobs if job.series_uid == row["series_uid"])),
                stored={job.id: frozenset(stored[job.id]) for job in own if job.kind == "send"},
                proven={job.id: frozenset(proven[job.id]) for job in own if job.kind == "send"},
            )
            for row in rows
        ]

    def delete_series(self, holding: Holding, files: Sequence[str], said: str, now: datetime) -> Deletion | None:
        """The images and results of a series are not here any more; `files`, which still are, are to go.

        None, and nothing written, when it is not as `holding` says: an image came, a job began, a sender relies on it.
        """
        series_uid = holding.series_uid
        with self._begin() as db:
            one = sa.select(series_table).where(series_table.c.series_uid == series_uid)
            rows = db.execute(one.with_for_update()).mappings().all()  # whoever adds jobs or images waits here
            if self._holdings(db, rows) != [holding] or any(job.state in OPEN_JOB_STATES for job in holding.jobs):
                return None
            db.execute(sa.delete(instance_table).where(instance_table.c.series_uid == series_uid))
            self._forget_patient(db, series_uid)
            of_series = edition_table.c.series_uid == series_uid, edition_table.c.deleted_at.is_(None)
            db.execute(sa.update(edition_table).where(*of_series).values(deleted_at=now))
            gone = {"state": DELETED, "deleted_at": now, "deleted_images": holding.arrived, "arrived": 0}
            db.execute(sa.update(series_table).where(series_table.c.series_uid == series_uid).values(**gone))
            self._note(db, series_uid, now, DELETED, said)
            return self._to_delete(db, series_uid, files, now)

    def _to_delete(self, db: sa.Connection, series_uid: str, files: Sequence[str], now: datetime) -> Deletion:
        row = sa.insert(deletion_table).values(series_uid=series_uid, files=list(files), at=now)
        key = db.execute(row).inserted_primary_key
        assert key is not None
        return Deletion(key[0], series_uid, tuple(files))

    def deletions(self) -> list[Deletion]:
        """What is to go, and may be there still."""
        with self._reading() as db:
            rows = db.execute(sa.select(deletion_table).order_by(deletion_table.c.id)).mappings()
            return [Deletion(row["id"], row["series_uid"], tuple(row["files"])) for row in rows]

    def deletion_done(self, deletion: Deletion) -> None:
        """All of it is gone for good."""
        with self._begin() as db:
            db.execute(sa.delete(deletion_table).where(deletion_table.c.id == deletion.id))

    def jobs_kept(self, ids: Sequence[str]) -> set[str]:
        """Which of these are jobs of series that have not been deleted."""
        kept: set[str] = set()
        with self._reading() as db:
            for some in portions(ids):
                mine = sa.select(job_table.c.id).where(job_table.c.id.in_(some))
                gone = mine.join(series_table, series_table.c.series_uid == job_table.c.series_uid)
                kept.update(db.scalars(mine.except_(gone.where(series_table.c.state == DELETED))))
        return kept

    def bytes_deleted(self, file: str, why: str, now: datetime) -> None:
        """What was kept of something refused, below the spool folder, is to go: it is said where the refusal is."""
        with self._begin() as db:
            mine = refusal_table.c.file == file
            for row in db.execute(sa.select(refusal_table).where(mine)).mappings().all():
                if row["series_uid"]:
                    self._note(db, row["series_uid"], now, DELETED, f"{row['kind']} {row['sop_instance_uid']}: {why}")
                values = {"file": "", "reason": f"{row['reason']}; {why}"}
                db.execute(sa.update(refusal_table).where(refusal_table.c.id == row["id"]).values(**values))

    def forget_timelines(self, before: datetime) -> int:
        """Events of series whose images were deleted before then, except that; how many there were. And how senders
        left that brought nothing that is still here."""
        gone = sa.select(series_table.c.series_uid).where(
            series_table.c.state == DELETED, series_table.c.deleted_at < before
        )
        still = sa.exists().where(instance_table.c.association == association_table.c.association)
        with self._begin() as db:
            old = sa.delete(event_table).where(event_table.c.series_uid.in_(gone), event_table.c.event != DELETED)
            number = db.execute(old).rowcount
            of_gone = sa.select(job_table.c.id).where(job_table.c.series_uid.in_(gone))
            db.execute(sa.delete(place_table).where(place_table.c.job.in_(of_gone)))
            db.execute(sa.delete(trace_table).where(trace_table.c.series_uid.in_(gone)))
            db.execute(sa.delete(association_table).where(association_table.c.ended_at < before, ~still))
            return number

    def received_since(self, since: datetime) -> tuple[int, datetime | None]:
        """Bytes of the series that began to arrive since then and are here, and when the first of all began."""
        size = sa.select(sa.func.sum(instance_table.c.size)).join(
            series_table, series_table.c.series_uid == instance_table.c.series_uid
        )
        with self._reading() as db:
            came = db.scalar(size.where(series_table.c.first_arrival >= since))
            return int(came or 0), db.scalar(sa.select(sa.func.min(series_table.c.first_arrival)))

    def forget_images(self, why: str, now: datetime) -> int:
        """No image is here any more: those of a backup without them. How many series had some."""
        has = series_table.c.arrived > 0
        with self._begin() as db:
            uids = db.scalars(sa.select(series_table.c.series_uid).where(has)).all()
            for uid in uids:
                self._note(db, uid, now, DELETED, why)
            gone = {"state": DELETED, "deleted_at": now, "deleted_images": series_table.c.arrived, "arrived": 0}
            db.execute(sa.update(series_table).where(has).values(**gone))
            db.execute(sa.delete(instance_table))
            db.execute(sa.delete(patient_hash_table))
            return len(uids)
