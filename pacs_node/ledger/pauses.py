"""What a person has paused: kept over restarts, and the same for every worker of a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import job_table, pause_table
from pacs_node.records import PAUSED_WITH_DESTINATION, Pause


class Pauses(Database):
    """Pauses, and the jobs that they hold."""

    def pause(self, pause: Pause) -> None:
        """From now on; one of the same thing is replaced."""
        with self._begin() as db:
            row = asdict(pause)
            new = {name: row[name] for name in ("since", "who", "reason", "until")}
            keys = [pause_table.c.kind, pause_table.c.name]
            db.execute(self._insert(pause_table).values(row).on_conflict_do_update(index_elements=keys, set_=new))

    def resume(self, kind: str, name: str, now: datetime) -> bool:
        """End a pause. False: there is none."""
        with self._begin() as db:
            its = pause_table.c.kind == kind, pause_table.c.name == name
            return bool(db.execute(sa.update(pause_table).where(*its, _on(now)).values(until=now)).rowcount)

    def pauses(self, now: datetime) -> list[Pause]:
        """Those that are on, by what they are of."""
        with self._reading() as db:
            return self._pauses(db, now)

    def _pauses(self, db: sa.Connection, after: datetime) -> list[Pause]:
        """Those that are on then, or end later."""
        rows = db.execute(sa.select(pause_table).where(_on(after)).order_by(pause_table.c.kind, pause_table.c.name))
        return [Pause(**row) for row in rows.mappings()]

    def _pauses_changed(self, db: sa.Connection) -> str:
        """Another text whenever somebody has paused or resumed something."""
        times = sa.func.max(pause_table.c.since), sa.func.max(pause_table.c.until), sa.func.count()
        since, until, number = db.execute(sa.select(*times)).one()
        return f"-{since:%Y%m%d%H%M%S%f}-{until or since:%Y%m%d%H%M%S%f}-{number}" if number else ""


def _on(at: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(pause_table.c.until.is_(None), pause_table.c.until > at)


def held(pauses: Iterable[Pause]) -> sa.ColumnElement[bool]:
    """Whether one of these holds a job: Pause.holds as a condition on its row."""
    names: dict[str, list[str]] = {"destination": [], "pipeline": [], "device": []}
    for pause in pauses:
        names[pause.kind].append(pause.name)
    to = job_table.c.kind.in_(PAUSED_WITH_DESTINATION) & job_table.c.destination.in_(names["destination"])
    of = (job_table.c.kind == "infer") & job_table.c.pipeline.in_(names["pipeline"])
    return sa.or_(sa.false(), *([to] if names["destination"] else ()), *([of] if names["pipeline"] else ()))
