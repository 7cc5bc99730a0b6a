"""What readers say of the findings: kept for good, also when the series is deleted."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import edition_table, feedback_table, job_table
from pacs_node.records import Feedback

CHUNK = 1000  # rows read at a time


class FeedbackRows(Database):
    """Who said what of which finding."""

    def note_feedback(self, feedback: Feedback) -> bool:
        """False: no such job has results of this series. Pipeline and version are those that made them."""
        of = (
            sa.select(job_table.c.pipeline, edition_table.c.version)
            .join(edition_table, edition_table.c.job == job_table.c.id)
            .where(job_table.c.id == feedback.job, job_table.c.series_uid == feedback.series_uid)
        )
        with self._begin() as db:
            made_by = db.execute(of).first()
            if made_by is None:
                return False
            db.execute(
                self._insert(feedback_table).values(
                    at=feedback.at,
                    reader=feedback.reader,
                    series_uid=feedback.series_uid,
                    job=feedback.job,
                    pipeline=made_by.pipeline,
                    version=made_by.version,
                    kind=feedback.kind,
                    finding=feedback.finding,
                    label=feedback.label,
                    place=feedback.place,
                )
            )
            return True

    def feedback_of(self, series_uid: str) -> list[dict[str, Any]]:
        """What has been said of the findings of a series, the oldest first, as plain values."""
        query = sa.select(feedback_table).where(feedback_table.c.series_uid == series_uid).order_by(feedback_table.c.id)
        with self._reading() as db:
            return [_plain(row) for row in db.execute(query).mappings()]

    def feedback(self, after: int, limit: int = CHUNK) -> list[dict[str, Any]]:
        """The next after the row of this number, the oldest first, as plain values."""
        query = sa.select(feedback_table).where(feedback_table.c.id > after).order_by(feedback_table.c.id).limit(limit)
        with self._reading() as db:
            return [_plain(row) for row in db.execute(query).mappings()]

    def feedback_counts(self) -> list[tuple[str, str, str, int]]:
        """(pipeline, version of its algorithm, kind, number)"""
        of = feedback_table.c.pipeline, feedback_table.c.version, feedback_table.c.kind
        with self._reading() as db:
            return [tuple(row) for row in db.execute(sa.select(*of, sa.func.count()).group_by(*of).order_by(*of))]


def _plain(row: Any) -> dict[str, Any]:
    return {**row, "at": row["at"].isoformat(timespec="seconds")}
