"""Which workers live, and what destinations accepted when they were last asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import (
    answer_table,
    lease_table,
)
from pacs_node.records import Answer


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

    def renew_lease(self, executor: str, lease_s: float) -> None:
        """I am alive until the database's clock says otherwise."""
        with self._begin() as db:
            expires_at = self._clock(db) + timedelta(seconds=lease_s)
            db.execute(
                self._insert(lease_table)
                .values(executor=executor, expires_at=expires_at)
                .on_conflict_do_update(index_elements=[lease_table.c.executor], set_={"expires_at": expires_at})
            )

    def give_up_lease(self, executor: str) -> None:
        with self._begin() as db:
            db.execute(sa.delete(lease_table).where(lease_table.c.executor == executor))

    def living(self, lapsed_s: float = 0.0) -> dict[str, datetime]:
        """Executors whose lease has not run out, or not for longer than that, and when it will or did."""
        with self._reading() as db:
            since = self._clock(db) - timedelta(seconds=lapsed_s)
            rows = db.execute(sa.select(lease_table).where(lease_table.c.expires_at > since)).mappings()
            return {row["executor"]: row["expires_at"] for row in rows}

    def _clock(self, db: sa.Connection) -> datetime:
        """The database's clock, so that machines need not agree on the time."""
        if self.embedded:
            return datetime.now(UTC)
        return db.execute(sa.select(sa.func.now())).scalar_one().astimezone(UTC)
