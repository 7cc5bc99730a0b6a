"""Users of the pages, their sessions, and the tokens of programs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.accounts import Session, Token, User
from pacs_node.ledger.engine import Database
from pacs_node.ledger.tables import session_table, token_table, user_table


class AccountRows(Database):
    """Who may use the pages."""

    def users(self) -> list[User]:
        with self._reading() as db:
            return [User(**row) for row in db.execute(sa.select(user_table).order_by(user_table.c.name)).mappings()]

    def user(self, name: str) -> User | None:
        with self._reading() as db:
            row = db.execute(sa.select(user_table).where(user_table.c.name == name)).mappings().first()
            return User(**row) if row else None

    def add_user(self, user: User) -> bool:
        """False: there is one of this name."""
        return self._add(user_table, asdict(user))

    def change_user(self, name: str, **values: object) -> bool:
        """False: there is none of this name."""
        with self._begin() as db:
            return bool(db.execute(sa.update(user_table).where(user_table.c.name == name).values(**values)).rowcount)

    def remove_user(self, name: str) -> bool:
        with self._begin() as db:
            return bool(db.execute(sa.delete(user_table).where(user_table.c.name == name)).rowcount)

    def add_session(self, session: Session) -> None:
        self._add(session_table, asdict(session))

    def session(self, key: str) -> Session | None:
        with self._reading() as db:
            row = db.execute(sa.select(session_table).where(session_table.c.key == key)).mappings().first()
            return Session(**row) if row else None

    def session_seen(self, key: str, at: datetime) -> None:
        with self._begin() as db:
            db.execute(sa.update(session_table).where(session_table.c.key == key).values(seen_at=at))

    def end_sessions(self, *, key: str | None = None, user: str | None = None, before: datetime | None = None) -> int:
        """That one; all of a user; those that began before. How many there were."""
        chosen = []
        chosen += [session_table.c.key == key] if key is not None else []
        chosen += [session_table.c.user == user] if user is not None else []
        chosen += [session_table.c.began_at < before] if before is not None else []
        with self._begin() as db:
            return db.execute(sa.delete(session_table).where(sa.and_(*chosen))).rowcount

    def tokens(self) -> list[Token]:
        with self._reading() as db:
            return [Token(**row) for row in db.execute(sa.select(token_table).order_by(token_table.c.name)).mappings()]

    def token(self, digest: str) -> Token | None:
        with self._reading() as db:
            row = db.execute(sa.select(token_table).where(token_table.c.digest == digest)).mappings().first()
            return Token(**row) if row else None

    def add_token(self, token: Token) -> bool:
        """False: there is one of this name."""
        return self._add(token_table, asdict(token))

    def token_used(self, digest: str, at: datetime) -> None:
        with self._begin() as db:
            db.execute(sa.update(token_table).where(token_table.c.digest == digest).values(used_at=at))

    def remove_token(self, name: str) -> bool:
        with self._begin() as db:
            return bool(db.execute(sa.delete(token_table).where(token_table.c.name == name)).rowcount)

    def _add(self, table: sa.Table, row: dict[str, Any]) -> bool:
        with self._begin() as db:
            return bool(db.execute(self._insert(table).values(row).on_conflict_do_nothing()).rowcount)
