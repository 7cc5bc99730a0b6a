"""Which workers live, and what destinations accepted when they were last asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import (
    answer_table,
    lease_table,
)
from pacs_node.records import Answer

RECEIVES = "receives: "  # before the name of a data folder: a lease that is no worker's
LOCK = 0x70616373 + 1  # of whoever looks who receives; the one below is that of migrations


class Workers(Database):
    """Leases of workers, answers of destinations."""

    def remember_answers(self, destination: str, settings: str, answers: Sequence[Answer]) -> None:
        """What a destination said, asked under these settings; the last answer counts."""
        with self._begin() as db:
            for answer in answers:
                said = {"settings": settings, "refused": answer.refused, "at": answer.at}
                db.execute(
                    self._insert(answer_table)
                    .values(
                        destination=destination,
                        sop_class_uid=answer.sop_class_uid,
                        transfer_syntax_uid=answer.transfer_syntax_uid,
                        **said,
                    )
                    .on_conflict_do_update(index_elements=list(answer_table.primary_key), set_=said)
                )

    def answers(self, destination: str, settings: str) -> list[Answer]:
        """What a destination said under these settings, by SOP class."""
        with self._reading() as db:
            rows = db.execute(
                sa.select(answer_table)
                .where(answer_table.c.destination == destination, answer_table.c.settings == settings)
                .order_by(answer_table.c.sop_class_uid, answer_table.c.transfer_syntax_uid)
            ).mappings()
            return [Answer(**{name: row[name] for name in Answer.__dataclass_fields__}) for row in rows]

    def renew_lease(self, executor: str, lease_s: float, devices: Sequence[Mapping[str, Any]] = ()) -> None:
        """I am alive until the database's clock says otherwise, and these are my devices."""
        with self._begin() as db:
            self._renew(db, executor, lease_s, devices)

    def _renew(
        self, db: sa.Connection, executor: str, lease_s: float, devices: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        new = {"expires_at": self._clock(db) + timedelta(seconds=lease_s), "devices": list(devices)}
        db.execute(
            self._insert(lease_table)
            .values(executor=executor, **new)
            .on_conflict_do_update(index_elements=[lease_table.c.executor], set_=new)
        )

    def receive_alone(self, folder: str, lease_s: float) -> bool:
        """The images of this database come to one data folder. False while another one has the lease."""
        mine = f"{RECEIVES}{folder}"
        with self._begin() as db:
            if not self.embedded:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            others = lease_table.c.executor.startswith(RECEIVES), lease_table.c.executor != mine
            alive = lease_table.c.expires_at > self._clock(db)
            if db.scalar(sa.select(lease_table.c.executor).where(*others, alive)) is not None:
                return False
            self._renew(db, mine, lease_s)
            return True

    def receive_no_more(self, folder: str) -> None:
        self.give_up_lease(f"{RECEIVES}{folder}")

    def give_up_lease(self, executor: str) -> None:
        with self._begin() as db:
            db.execute(sa.delete(lease_table).where(lease_table.c.executor == executor))

    def living(self, lapsed_s: float = 0.0) -> dict[str, datetime]:
        """Executors whose lease has not run out, or not for longer than that, and when it will or did."""
        with self._reading() as db:
            since = self._clock(db) - timedelta(seconds=lapsed_s)
            workers = lease_table.c.expires_at > since, ~lease_table.c.executor.startswith(RECEIVES)
            rows = db.execute(sa.select(lease_table).where(*workers)).mappings()
            return {row["executor"]: row["expires_at"] for row in rows}

    def devices_of_others(self, executor: str) -> list[dict[str, Any]]:
        """Those of all other workers whose lease has not run out, with their machines."""
        with self._reading() as db:
            others = lease_table.c.expires_at > self._clock(db), lease_table.c.executor != executor
            rows = db.scalars(sa.select(lease_table.c.devices).where(*others).order_by(lease_table.c.executor))
            return [device for devices in rows for device in devices or ()]

    def _clock(self, db: sa.Connection) -> datetime:
        """The database's clock, so that machines need not agree on the time."""
        if self.embedded:
            return datetime.now(UTC)
        return db.execute(sa.select(sa.func.now())).scalar_one().astimezone(UTC)
