"""What was found in each series, as far as a list is narrowed by it: how many findings of each kind, and the largest.

One result counts for each pipeline and its options, the latest; what could not be analysed any more leaves the earlier
one in force, as editions.py has it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import found_table
from pacs_node.records import Job, Wanted

ALL = ""  # the kind of all findings together


class FoundRows(Database):
    """Written in the transaction in which an inference ends."""

    def _note_found(self, db: sa.Connection, job: Job, facts: Mapping[str, Any]) -> None:
        """facts: see kinds.py."""
        of = {"series_uid": job.series_uid, "pipeline": job.pipeline, "variant": variant(job.options)}
        rows = [{**of, **row} for row in rows_of(facts)]
        mine = [found_table.c[name] == value for name, value in of.items()]
        db.execute(sa.delete(found_table).where(*mine, found_table.c.kind.not_in([row["kind"] for row in rows])))
        for row in rows:
            said = {name: row[name] for name in ("number", "largest_mm", "unsized")}
            put = self._insert(found_table).values(**row)
            db.execute(put.on_conflict_do_update(index_elements=[*found_table.primary_key], set_=said))

    def kinds_found(self) -> list[str]:
        """Each once, one look into the index for each."""
        kind = found_table.c.kind
        walked = sa.select(sa.func.min(kind).label("kind")).where(kind > ALL).cte("walked", recursive=True)
        after = sa.select(sa.func.min(kind)).where(kind > walked.c.kind).scalar_subquery()
        walked = walked.union_all(sa.select(after).where(walked.c.kind.is_not(None)))
        with self._reading() as db:
            return list(db.scalars(sa.select(walked.c.kind).where(walked.c.kind.is_not(None))))


def variant(options: Mapping[str, Any]) -> str:
    return sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def rows_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One of all and one for each kind, in their order: two who write do not wait for each other."""
    numbers, largest = dict(facts.get("number_of") or {}), dict(facts.get("largest_mm") or {})
    unsized = set(facts.get("unsized") or ())
    rows = [_row(kind, numbers[kind], largest.get(kind), kind in unsized) for kind in sorted(numbers)]
    return [_row(ALL, sum(numbers.values()), max(largest.values(), default=None), bool(unsized)), *rows]


def _row(kind: str, number: int, largest_mm: float | None, unsized: bool) -> dict[str, Any]:
    return {"kind": kind, "number": number, "largest_mm": largest_mm, "unsized": unsized}


def in_series(db: sa.Connection, uids: Collection[str]) -> dict[str, dict[str, Any]]:
    """Series Instance UID -> {"findings", "largest_mm"}; without those that were not analysed. Of one pipeline with
    several options the one that found most counts, for they mark the same lesions."""
    of = found_table.c
    most = sa.func.max(of.number).label("number"), sa.func.max(of.largest_mm).label("largest_mm")
    query = sa.select(of.series_uid, *most).where(of.series_uid.in_(uids), of.kind == ALL)
    found: dict[str, dict[str, Any]] = {}
    for row in db.execute(query.group_by(of.series_uid, of.pipeline)).mappings():
        before = found.get(row["series_uid"], {"findings": 0, "largest_mm": None})
        largest = [mm for mm in (before["largest_mm"], row["largest_mm"]) if mm is not None]
        number = before["findings"] + row["number"]
        found[row["series_uid"]] = {"findings": number, "largest_mm": max(largest, default=None)}
    return found


def with_findings(wanted: Wanted, series_uid: sa.Column[str]) -> Iterator[sa.ColumnElement[bool]]:
    """What holds for a series with such findings, or that was analysed and is without."""
    of = found_table.c
    if not (wanted.findings or wanted.kind or wanted.min_mm):
        return
    such = [of.series_uid == series_uid, of.kind == wanted.kind, of.number > 0]
    if wanted.min_mm:
        such.append(sa.or_(of.largest_mm >= wanted.min_mm, of.unsized))  # not known to be smaller
    there = sa.exists().where(*such)
    yield ~there if wanted.findings == "without" else there
    if wanted.findings == "without":
        yield sa.exists().where(of.series_uid == series_uid, of.kind == ALL)
