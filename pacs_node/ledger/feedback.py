"""What readers say of the findings: kept for good, also when the series is deleted."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.returned import ReturnedRows
from pacs_node.ledger.tables import feedback_table
from pacs_node.records import Feedback

CHUNK = 1000  # rows read at a time


class FeedbackRows(ReturnedRows):
    """Who said what of which finding."""

    def note_feedback(self, feedback: Feedback) -> bool:
        """False: no such job has results of this series. Pipeline and version are those that made them."""
        with self._begin() as db:
            return self._add_feedback(db, feedback)

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

    def feedback_counts(
        self, pipeline: str | None = None, version: str | None = None
    ) -> list[tuple[str, str, str, int, float | None]]:
        """(pipeline, version of its algorithm, kind, number, mean Dice of those that have one)"""
        of = feedback_table.c.pipeline, feedback_table.c.version, feedback_table.c.kind
        query = sa.select(*of, sa.func.count(), sa.func.avg(feedback_table.c.dice)).group_by(*of).order_by(*of)
        for column, wanted in zip(of, (pipeline, version), strict=False):
            query = query if wanted is None else query.where(column == wanted)
        with self._reading() as db:
            return [tuple(row) for row in db.execute(query)]


def _plain(row: Any) -> dict[str, Any]:
    return {**row, "at": row["at"].isoformat(timespec="seconds")}
