"""Segmentations and key objects that came: which of our results they name, and what they say of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

import sqlalchemy as sa

from pacs_node.ledger.engine import Database, portions
from pacs_node.ledger.tables import (
    edition_table,
    feedback_table,
    job_table,
    receipt_table,
    result_table,
    returned_table,
)
from pacs_node.records import Feedback


class ReturnedRows(Database):
    """What came back. A row is written as its series closes, and says when nobody has looked at it yet."""

    def _may_be_of_ours(self, db: sa.Connection, series_uid: str, now: datetime) -> None:
        row = self._insert(returned_table).values(series_uid=series_uid, waits_since=now, said="")
        again = row.on_conflict_do_update(index_elements=[returned_table.c.series_uid], set_={"waits_since": now})
        db.execute(again)

    def returned_waiting(self, limit: int) -> list[str]:
        """Series that nobody has looked at, the longest waiting first."""
        waits = returned_table.c.waits_since
        query = sa.select(returned_table.c.series_uid).where(waits.is_not(None)).order_by(waits).limit(limit)
        with self._reading() as db:
            return list(db.scalars(query))

    def jobs_named(self, instances: Collection[str], series: Collection[str]) -> list[tuple[str, str, bool]]:
        """(inference, its series, is one of its objects named?) of the results that these UIDs are of, or of the images
        in these series; of one that is named by an object first, then the latest first."""
        found: dict[str, tuple[str, bool, str]] = {}
        with self._reading() as db:
            for job, uid, at in self._of_objects(db, instances):
                found[job] = uid, True, at
            for some in portions(sorted(series)):
                of = job_table.c.id, job_table.c.series_uid, job_table.c.created_at
                has = sa.exists().where(result_table.c.job == job_table.c.id)
                rows = db.execute(
                    sa.select(*of).where(job_table.c.series_uid.in_(some), job_table.c.kind == "infer", has)
                )
                for job, uid, at in rows:
                    found.setdefault(job, (uid, False, at.isoformat()))
        newest = sorted(found.items(), key=lambda each: each[1][2], reverse=True)
        return [(job, uid, named) for job, (uid, named, _) in sorted(newest, key=lambda each: not each[1][1])]

    def _of_objects(self, db: sa.Connection, instances: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """(inference, its series, when it was made) of the results, and of what was sent in their place."""
        send = job_table.alias("send")
        for some in portions(sorted(instances)):
            made = sa.select(result_table.c.job).where(result_table.c.sop_instance_uid.in_(some))
            sent = (
                sa.select(send.c.parent)
                .join(receipt_table, receipt_table.c.job == send.c.id)
                .where(receipt_table.c.sop_instance_uid.in_(some), send.c.kind == "send")
            )
            ids = set(db.scalars(made)) | set(db.scalars(sent))
            rows = sa.select(job_table.c.id, job_table.c.series_uid, job_table.c.created_at)
            for job, uid, at in db.execute(rows.where(job_table.c.id.in_(ids))):
                yield job, uid, at.isoformat()

    def is_object_of_ours(self, sop_instance_uid: str) -> bool:
        """Whether we made it, or sent it."""
        with self._reading() as db:
            return any(True for _ in self._of_objects(db, [sop_instance_uid]))

    def note_returned(
        self, series_uid: str, looked_at: Collection[str], said: Sequence[Feedback], words: str, now: datetime
    ) -> None:
        """All that the objects of a series say, in place of what was noted of them before; it was looked at."""
        with self._begin() as db:
            for some in portions(sorted(looked_at)):
                db.execute(sa.delete(feedback_table).where(feedback_table.c.object.in_(some)))
            for each in said:
                self._add_feedback(db, each)
            done = sa.update(returned_table).where(returned_table.c.series_uid == series_uid)
            db.execute(done.values(waits_since=None, said=words))
            if words:
                for uid in {series_uid, *(each.series_uid for each in said)}:
                    self._note(db, uid, now, "came back", words)

    def _add_feedback(self, db: sa.Connection, feedback: Feedback) -> bool:
        """False: no such job has results of this series. Pipeline and version are those that made them."""
        of = (
            sa.select(job_table.c.pipeline, edition_table.c.version)
            .join(edition_table, edition_table.c.job == job_table.c.id)
            .where(job_table.c.id == feedback.job, job_table.c.series_uid == feedback.series_uid)
        )
        made_by = db.execute(of).first()
        if made_by is None:
            return False
        row = {
            name: getattr(feedback, name)
            for name in ("at", "reader", "series_uid", "job", "kind", "finding", "label", "place")
        } | {name: getattr(feedback, name) for name in ("object", "sender", "dice", "reason", "made")}
        db.execute(self._insert(feedback_table).values(**row, pipeline=made_by.pipeline, version=made_by.version))
        return True
