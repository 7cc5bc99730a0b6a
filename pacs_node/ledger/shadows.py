"""What shadow routes asked for, and what live routes said of the same series."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database, portions
from pacs_node.ledger.lists import iso
from pacs_node.ledger.tables import job_table, place_table, series_table

ENDED = ("done", "refused", "failed")
RECENT = 200  # series of a shadow that tell which live routes took them, too
OF_A_JOB = [job_table.c[name] for name in (
    "id", "series_uid", "route", "pipeline", "revision", "state", "reason", "facts", "created_at"
)]  # fmt: skip
OF_A_SERIES = [series_table.c[name] for name in ("series_uid", "modality", "description", "first_arrival")]


class Shadows(Database):
    """Questions that change nothing."""

    def shadow_states(self) -> dict[str, dict[str, int]]:
        """Shadow route -> its inferences by state."""
        of = job_table.c.route, job_table.c.state
        counted: dict[str, dict[str, int]] = {}
        with self._reading() as db:
            rows = db.execute(sa.select(*of, sa.func.count()).where(job_table.c.shadow).group_by(*of).order_by(*of))
            for route, state, number in rows:
                counted.setdefault(route, {})[state] = number
        return counted

    def shadows_among(self, jobs: Iterable[str]) -> frozenset[str]:
        """Those of these jobs that a shadow asked for."""
        mine = job_table.c.id.in_(list(jobs)), job_table.c.shadow
        with self._reading() as db:
            return frozenset(db.scalars(sa.select(job_table.c.id).where(*mine)))

    def live_beside(self, route: str) -> dict[str, int]:
        """Live route -> how many of the last series of this shadow it took, too."""
        mine = job_table.c.shadow, job_table.c.route == route, job_table.c.state.in_(ENDED)
        last = sa.select(job_table.c.series_uid).where(*mine).order_by(job_table.c.created_at.desc()).limit(RECENT)
        with self._reading() as db:
            uids = list(dict.fromkeys(db.scalars(last)))
            if not uids:
                return {}
            live = job_table.c.kind == "infer", job_table.c.shadow.is_(False), job_table.c.series_uid.in_(uids)
            number = sa.func.count(job_table.c.series_uid.distinct())
            rows = db.execute(sa.select(job_table.c.route, number).where(*live).group_by(job_table.c.route))
            return dict(tuple(row) for row in rows)

    def compared(
        self, route: str, live: str, since: datetime | None, before: datetime | None, limit: int
    ) -> list[dict[str, Any]]:
        """{"series_uid", "modality", "description", "first_arrival", "live", "shadow"}: of each series that both routes
        have done with, the job of either that is in force, with where it found what. The newest first, of those that
        the shadow asked for since then and before."""
        mine = [job_table.c.shadow, job_table.c.route == route, job_table.c.state.in_(ENDED)]
        mine += [job_table.c.created_at >= since] if since is not None else []
        mine += [job_table.c.created_at < before] if before is not None else []
        asked = sa.select(*OF_A_JOB).where(*mine).order_by(job_table.c.created_at.desc()).limit(limit)
        with self._reading() as db:
            shadows: dict[str, Any] = {}
            for row in db.execute(asked).mappings():
                shadows.setdefault(row["series_uid"], row)  # the last one of each
            lives = self._live(db, live, shadows)
            both = [uid for uid in shadows if uid in lives]
            ids = [of[uid]["id"] for uid in both for of in (shadows, lives)]
            places = {
                row["job"]: row["said"] for row in self._in_chunks(db, sa.select(place_table), place_table.c.job, ids)
            }
            series = {
                row["series_uid"]: row
                for row in self._in_chunks(db, sa.select(*OF_A_SERIES), series_table.c.series_uid, both)
            }
        return [
            {
                "series_uid": uid,
                "modality": series[uid]["modality"],
                "description": series[uid]["description"],
                "first_arrival": iso(series[uid]["first_arrival"]),
                "live": _plain(lives[uid], places),
                "shadow": _plain(shadows[uid], places),
            }
            for uid in both
            if uid in series
        ]

    def _live(self, db: sa.Connection, live: str, shadows: dict[str, Any]) -> dict[str, Any]:
        """Of each series the last job of the live route about the images that the shadow saw."""
        query = sa.select(*OF_A_JOB).where(
            job_table.c.kind == "infer",
            job_table.c.route == live,
            job_table.c.shadow.is_(False),
            job_table.c.state.in_(ENDED),
        )
        found: dict[str, Any] = {}
        rows = self._in_chunks(db, query, job_table.c.series_uid, list(shadows))
        for row in sorted(rows, key=lambda each: each["created_at"]):
            if row["revision"] == shadows[row["series_uid"]]["revision"]:
                found[row["series_uid"]] = row
        return found

    def _in_chunks(self, db: sa.Connection, query: sa.Select[Any], column: Any, values: list[str]) -> list[Any]:
        return [row for some in portions(values) for row in db.execute(query.where(column.in_(some))).mappings()]


def _plain(job: Any, places: dict[str, Any]) -> dict[str, Any]:
    plain = ("pipeline", "route", "state", "reason")
    return {
        "job": job["id"],
        **{name: job[name] for name in plain},
        "seconds": job["facts"].get("seconds"),
        "created_at": iso(job["created_at"]),
        "places": places.get(job["id"]),
    }
