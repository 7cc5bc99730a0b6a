"""Which result objects each job wrote, and which of them a newer job replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.editions import merged, same_objects, superseded_objects
from pacs_node.errors import EditionChanged
from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import (
    edition_table,
    job_table,
    receipt_table,
)
from pacs_node.records import (
    OPEN_JOB_STATES,
    Edition,
    Job,
    Result,
)


class Editions(Database):
    """The editions of results: what was written, what left for where, what it replaced."""

    def editions(self, job: Job) -> list[Edition]:
        """What this job's pipeline, with its options, has said about its series so far, the oldest first."""
        with self._reading() as db:
            return self._editions(db, job)

    def _editions(self, db: sa.Connection, job: Job) -> list[Edition]:
        rows = db.execute(
            sa.select(edition_table).where(
                edition_table.c.series_uid == job.series_uid, edition_table.c.pipeline == job.pipeline
            )
        ).mappings()
        mine = [row for row in rows if row["options"] == job.asked]
        return merged(
            Edition(
                result_revision=row["number"],
                series_revision=row["revision"],
                **{name: row[name] for name in ("version", "analysed", "dated")},
                replaces=self._objects(row["replaces"]),
                objects=self._objects(row["objects"]),
                released_to=self._released_to(db, row["job"]),
            )
            for row in mine
        )

    def _released_to(self, db: sa.Connection, infer_job: str) -> frozenset[str]:
        """Destinations that stored something of these results, or were sent them in an attempt that never ended."""
        stored = sa.select(receipt_table.c.job).where(receipt_table.c.stored)
        return frozenset(
            db.scalars(
                sa.select(job_table.c.destination).where(
                    job_table.c.parent == infer_job,
                    job_table.c.kind == "send",
                    sa.or_(job_table.c.crashes > 0, job_table.c.id.in_(stored)),
                )
            )
        )

    def every_object(self) -> list[Result]:
        """What every edition consists of whose files have not been deleted, with their SHA-256."""
        kept = sa.select(edition_table.c.objects).where(edition_table.c.deleted_at.is_(None))
        with self._reading() as db:
            return [each for objects in db.scalars(kept) for each in self._objects(objects)]

    def _add_edition(
        self, db: sa.Connection, job: Job, edition: Edition, now: datetime, sent_to: Collection[str | None]
    ) -> None:
        known = self._editions(db, job)
        if all(edition.result_revision != each.result_revision for each in known):
            if edition.analysed:  # what waits to be sent is old now, and must not be sent after the new
                self._void_sends(db, job, f"replaced by revision {edition.result_revision} of the results", now)
            current = superseded_objects(self._editions(db, job), analysed=edition.analysed)
            if not same_objects(current, edition.replaces):
                raise EditionChanged(
                    f"what revision {edition.result_revision} replaces has changed while it was written"
                )
        further = job.destinations - {*job.send_to}
        held_by = {place for each in known for place in each.released_to} if further else set()
        if missed := (held_by & further) - {*sent_to}:
            raise EditionChanged(f"{', '.join(sorted(missed))} got an earlier revision while this one was written")
        row: dict[str, Any] = {"number": edition.result_revision, "revision": edition.series_revision}
        row |= {name: getattr(edition, name) for name in ("version", "analysed", "dated")}
        row |= {name: [self._object_row(each) for each in getattr(edition, name)] for name in ("replaces", "objects")}
        row |= {"series_uid": job.series_uid, "pipeline": job.pipeline, "options": job.asked}
        again = self._insert(edition_table).values(job=job.id, **row)
        db.execute(again.on_conflict_do_update(index_elements=[edition_table.c.job], set_=row))

    def _void_sends(self, db: sa.Connection, job: Job, reason: str, now: datetime) -> None:
        """Sends of the earlier editions to the destinations that get the new one, and questions whether those arrived,
        end here unless they have ended well; a failed send may not be retried either."""
        rows = db.execute(
            sa.select(edition_table.c.job, edition_table.c.options).where(
                edition_table.c.series_uid == job.series_uid, edition_table.c.pipeline == job.pipeline
            )
        )
        earlier = [infer_job for infer_job, options in rows if options == job.asked]
        sends = sa.select(job_table.c.id).where(
            job_table.c.kind == "send", job_table.c.parent.in_(earlier), job_table.c.destination.in_(job.destinations)
        )
        over = db.scalars(sends).all()
        db.execute(
            sa.update(job_table)
            .where(
                sa.or_(
                    sa.and_(job_table.c.id.in_(over), job_table.c.state.in_((*OPEN_JOB_STATES, "failed"))),
                    sa.and_(
                        job_table.c.kind == "confirm",
                        job_table.c.parent.in_(over),
                        job_table.c.state.in_(OPEN_JOB_STATES),
                    ),
                )
            )
            .values(state="superseded", finished_at=now, reason=reason)
        )

    def _object_row(self, result: Result) -> dict[str, str]:
        return {
            "sop_instance_uid": result.sop_instance_uid,
            "sop_class_uid": result.sop_class_uid,
            "path": self._place(result.path),
            "series_uid": result.series_uid,
            "sha256": result.sha256,
        }

    def _objects(self, rows: Iterable[Mapping[str, str]]) -> tuple[Result, ...]:
        return tuple(
            Result(
                row["sop_instance_uid"],
                row["sop_class_uid"],
                self._path(row["path"]),
                row["series_uid"],
                row["sha256"],
            )
            for row in rows
        )
