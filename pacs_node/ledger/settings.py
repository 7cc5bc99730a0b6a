"""What the settings were, who changed them, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.found import variant
from pacs_node.ledger.tables import instance_table, job_table, no_heartbeat, series_table, settings_version_table
from pacs_node.records import Instance, Received, SettingsVersion, Work

MOST_VERSIONS = 500  # kept of each settings file, the newest


class SettingsRows(Database):
    """The settings file as it was, and what a change of it can be tried on."""

    def keep_settings(self, version: SettingsVersion) -> int:
        """Its number. What is older than MOST_VERSIONS goes."""
        table = settings_version_table
        values = {key: value for key, value in asdict(version).items() if key != "id"}
        with self._begin() as db:
            added = db.execute(sa.insert(table).values(values)).inserted_primary_key
            number = int(added[0]) if added is not None else 0
            of_this = sa.select(table.c.id).where(table.c.place == version.place).order_by(table.c.id.desc())
            last = db.scalar(of_this.offset(MOST_VERSIONS).limit(1))
            if last is not None:
                db.execute(sa.delete(table).where(table.c.place == version.place, table.c.id <= last))
        return number

    def forget_settings(self, number: int) -> None:
        """The file was not changed after all."""
        with self._begin() as db:
            db.execute(sa.delete(settings_version_table).where(settings_version_table.c.id == number))

    def settings_versions(self, place: str, limit: int) -> list[SettingsVersion]:
        """The newest first."""
        table = settings_version_table
        query = sa.select(table).where(table.c.place == place).order_by(table.c.id.desc()).limit(limit)
        with self._reading() as db:
            return [SettingsVersion(**row) for row in db.execute(query).mappings()]

    def tried_on_since(self, since: datetime, limit: int) -> list[Received]:
        """Closed series whose last image came then or later, the newest first."""
        with self._reading() as db:
            query = (
                sa.select(*RECEIVED)
                .where(
                    series_table.c.state == "closed", series_table.c.last_arrival >= since, no_heartbeat(series_table)
                )
                .order_by(series_table.c.last_arrival.desc())
                .limit(limit)
            )
            return [_received(row) for row in db.execute(query).mappings()]

    def received_of_study(self, study_uid: str) -> list[Received]:
        """Its closed series."""
        mine = series_table.c.study_uid == study_uid, series_table.c.state == "closed"
        with self._reading() as db:
            rows = db.execute(sa.select(*RECEIVED).where(*mine).order_by(series_table.c.series_uid)).mappings()
            return [_received(row) for row in rows]

    def tried_on(self, series_uid: str) -> Received | None:
        with self._reading() as db:
            row = db.execute(sa.select(*RECEIVED).where(series_table.c.series_uid == series_uid)).mappings().first()
            return _received(row) if row else None

    def an_image_of(self, received: Received) -> Instance | None:
        """The first that is used, or any."""
        with self._reading() as db:
            of_it = sa.select(instance_table).where(instance_table.c.series_uid == received.series_uid).limit(1)
            used = instance_table.c.sop_instance_uid == received.first_used
            row = db.execute(of_it.where(used)).mappings().first() if received.first_used else None
            row = row or db.execute(of_it).mappings().first()
            return Instance(**{**row, "path": self._path(row["path"])}) if row else None

    def inference_seconds(self, since: datetime, limit: int) -> list[tuple[Work, float]]:
        """How many seconds each took of the inferences that began since then and ended well, the newest first."""
        with self._reading() as db:
            columns = "route", "pipeline", "options", "started_at", "finished_at"
            rows = db.execute(
                sa.select(*(job_table.c[name] for name in columns))
                .where(
                    job_table.c.kind == "infer",
                    job_table.c.destination.is_(None),
                    job_table.c.started_at >= since,
                    job_table.c.state == "done",
                    job_table.c.finished_at.is_not(None),
                    no_heartbeat(job_table),
                )
                .order_by(job_table.c.started_at.desc())
                .limit(limit)
            ).all()
            return [
                ((route, pipeline, variant(options)), (finished - started) / timedelta(seconds=1))
                for route, pipeline, options, started, finished in rows
            ]

    def open_sends(self) -> dict[str, int]:
        """Destination -> how many jobs are still to talk to it."""
        with self._reading() as db:
            counted = (
                sa.select(job_table.c.destination, sa.func.count())
                .where(
                    job_table.c.state.in_(("queued", "running", "waiting")), job_table.c.kind.in_(("send", "confirm"))
                )
                .group_by(job_table.c.destination)
            )
            return {name: number for name, number in db.execute(counted).all() if name}


RECEIVED = [series_table.c[name] for name in ("series_uid", "modality", "description", "arrived", "last_arrival")]
RECEIVED.append(series_table.c.verdict)


def _received(row: Mapping[Any, Any]) -> Received:
    verdict = row["verdict"] or {}
    used = verdict.get("use") or [""]
    known = {name: row[name] for name in ("series_uid", "modality", "description", "arrived", "last_arrival")}
    return Received(**known, fit=bool(verdict.get("fit")), reason=verdict.get("reason") or "", first_used=used[0])
