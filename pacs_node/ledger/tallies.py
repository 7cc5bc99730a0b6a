"""What came of the series of each pipeline, counted by week as it comes: however many there were, a page reads some
thousand rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import edition_table, tally_table
from pacs_node.outcomes import STEPS, Counted
from pacs_node.records import Edition, Job

MOST_TEXTS = 50  # different texts of one kind that are counted; the rest together
OTHERS = "others"
BY_SENDER = ("size", "certainty", "seconds")  # whose mean is told of each sender and week


def week_of(time: datetime) -> int:
    """Weeks begin on Monday (ISO 8601), in UTC; day 1 of `date.toordinal` is one."""
    return (time.toordinal() - 1) // 7


class Tallies(Database):
    """Counted in the transaction in which an inference ends."""

    def _tally(
        self, db: sa.Connection, job: Job, edition: Edition, counted: Mapping[str, Counted], now: datetime
    ) -> None:
        """Each series once for each version: what is run again is no new one."""
        mine = edition_table.c
        again = sa.select(mine.job).where(
            mine.series_uid == job.series_uid,
            mine.pipeline == job.pipeline,
            mine.version == edition.version,
            mine.analysed,
            mine.job != job.id,
        )
        if db.scalar(again.limit(1)) is not None:
            return
        of = {"pipeline": job.pipeline, "version": edition.version}
        for what, each in counted.items():
            value = each.value if what in STEPS else self._text(db, of, what, each.value)
            row = {**of, "what": what, "week": week_of(now), "value": value, "sender": job.sender}
            once = self._insert(tally_table).values(**row, number=1, total=each.number)
            more = {"number": tally_table.c.number + 1, "total": tally_table.c.total + each.number}
            db.execute(once.on_conflict_do_update(index_elements=[tally_table.c[key] for key in row], set_=more))

    def _text(self, db: sa.Connection, of: Mapping[str, str], what: str, value: str) -> str:
        """Itself, or OTHERS where senders have written very many different ones."""
        mine = [tally_table.c[key] == each for key, each in of.items()] + [tally_table.c.what == what]
        known = set(db.scalars(sa.select(tally_table.c.value).where(*mine).distinct().limit(MOST_TEXTS + 1)))
        return value if value in known or len(known) < MOST_TEXTS else OTHERS

    def tallied(self) -> list[tuple[str, str, int, int]]:
        """(pipeline, version, first week, last week), by its key alone."""
        of = tally_table.c.pipeline, tally_table.c.version
        weeks = sa.func.min(tally_table.c.week), sa.func.max(tally_table.c.week)
        query = sa.select(*of, *weeks).where(tally_table.c.what == "positive").group_by(*of).order_by(weeks[0])
        with self._reading() as db:
            return [tuple(row) for row in db.execute(query)]

    def tallies(
        self, pipeline: str, first_week: int, last_week: int, sender: str | None = None
    ) -> list[tuple[str, str, int, str, int, float]]:
        """(version, what, week, value, how many series, their sum) from a week to another one; of one AE title alone,
        if it is given."""
        c = tally_table.c
        of = c.version, c.what, c.week, c.value
        mine = [c.pipeline == pipeline, c.week >= first_week, c.week <= last_week]
        mine += [c.sender == sender] if sender is not None else []
        query = sa.select(*of, sa.func.sum(c.number), sa.func.sum(c.total)).where(*mine).group_by(*of)
        with self._reading() as db:
            return [(*row[:4], int(row[4]), float(row[5])) for row in db.execute(query)]

    def values_by_sender(
        self, pipeline: str, version: str, first_week: int, last_week: int
    ) -> list[tuple[str, str, str, int]]:
        """(AE title, what, value, how many series) of a version, from a week to another one."""
        c = tally_table.c
        of = c.sender, c.what, c.value
        mine = c.pipeline == pipeline, c.version == version, c.week >= first_week, c.week <= last_week
        query = sa.select(*of, sa.func.sum(c.number)).where(*mine).group_by(*of)
        with self._reading() as db:
            return [(*row[:3], int(row[3])) for row in db.execute(query)]

    def tallies_by_sender(self, pipeline: str, first_week: int) -> list[tuple[str, str, str, int, float]]:
        """(AE title, what, value, how many series, their sum) since a week: of "positive" and of BY_SENDER."""
        c = tally_table.c
        of = c.sender, c.what, c.value
        mine = c.pipeline == pipeline, c.what.in_(("positive", *BY_SENDER)), c.week >= first_week
        query = sa.select(*of, sa.func.sum(c.number), sa.func.sum(c.total)).where(*mine).group_by(*of).order_by(*of)
        with self._reading() as db:
            return [(*row[:3], int(row[3]), float(row[4])) for row in db.execute(query)]
