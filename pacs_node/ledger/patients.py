"""Whose each series is, as keyed hashes: see identity.py."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import mark_table, patient_hash_table, series_table

LOOKED_AT = ""  # in the place of a hash: of a series without any, too
KEY = "key of patients"  # the mark that says under which key all hashes are


class PatientRows(Database):
    """What a series is found by. Its rows go with its images."""

    def patients_under(self, key: str, now: datetime) -> bool:
        """From now on all hashes are under the key of this name. False: they were not, and are gone."""
        with self._begin() as db:
            known = db.scalar(sa.select(mark_table.c.text).where(mark_table.c.name == KEY))
            if known == key:
                return True
            db.execute(sa.delete(patient_hash_table))
            row = self._insert(mark_table).values(name=KEY, at=now, text=key)
            db.execute(row.on_conflict_do_update(index_elements=["name"], set_={"at": now, "text": key}))
            return False

    def without_patient(self, after: str, limit: int) -> list[str]:
        """Closed series that have not been looked at, by their UIDs from behind `after` on."""
        uid = series_table.c.series_uid
        looked_at = sa.exists().where(patient_hash_table.c.series_uid == uid, patient_hash_table.c.hash == LOOKED_AT)
        query = sa.select(uid).where(uid > after, series_table.c.state == "closed", ~looked_at)
        with self._reading() as db:
            return list(db.scalars(query.order_by(uid).limit(limit)))

    def note_patient(self, series_uid: str, hashes: Collection[str]) -> None:
        """Of a closed series; of one that has gone meanwhile nothing."""
        one = sa.select(series_table.c.state).where(series_table.c.series_uid == series_uid)
        with self._begin() as db:
            if db.scalar(one.with_for_update()) == "closed":  # whoever deletes it waits here
                self._set_patient(db, series_uid, hashes)

    def _set_patient(self, db: sa.Connection, series_uid: str, hashes: Collection[str]) -> None:
        self._forget_patient(db, series_uid)
        rows = [{"series_uid": series_uid, "hash": each} for each in sorted({LOOKED_AT, *hashes})]
        db.execute(sa.insert(patient_hash_table), rows)

    def _forget_patient(self, db: sa.Connection, series_uid: str) -> None:
        db.execute(sa.delete(patient_hash_table).where(patient_hash_table.c.series_uid == series_uid))


def of_patient(sought: str) -> sa.Select[tuple[str]]:
    """Series of a patient: under the number, the accession number, or all words of the name that Identity.sought
    gives."""
    number, accession, *words = sought.split("-")
    uid, hash_ = patient_hash_table.c.series_uid, patient_hash_table.c.hash
    by_number = sa.select(uid).where(hash_.in_([number, accession]))
    by_name = sa.select(uid).where(hash_.in_(words)).group_by(uid).having(sa.func.count() == len(words))
    return sa.select(sa.union(by_number, by_name).subquery().c.series_uid)
