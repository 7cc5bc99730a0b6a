"""The connection to the database: SQLite in the embedded default, PostgreSQL for several workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from pacs_node.errors import LedgerTooOld, LedgerUnavailable
from pacs_node.ledger.tables import event_table

MIGRATIONS = Path(__file__).with_name("migrations")
# A server whose machine is gone says nothing: when it is given up, in the words of libpq (its manual, 32.1.2)
GONE_AFTER = {
    "connect_timeout": 5,  # s
    "tcp_user_timeout": 10_000,  # ms that what we sent is not acknowledged; the system's own would be 15 minutes
    "keepalives_idle": 5,  # s, and the two below: while we wait for its answer
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
AT_ONCE = 500  # values in one statement: SQLite takes 999 parameters, if it is old


def portions(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many as one statement may name, again and again."""
    yield from (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


class Database:
    """A database with the ledger's tables: its schema, its transactions, and the story of each series.

    root: the data folder on this machine. What lies in it is named by its place there: another machine has another one.
    """

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root
        try:
            self.engine = _engine(url)
        except (sa.exc.ArgumentError, ImportError) as error:  # NoSuchModuleError is an ArgumentError
            raise LedgerUnavailable(
                "url in [database] names no database that can be used: it begins with sqlite:/// or postgresql+psycopg://"
            ) from error
        self._reader = self.engine.execution_options(reading=True)
        self.embedded = self.engine.dialect.name == "sqlite"

    def migrate(self) -> None:
        """Bring the schema up to date (Alembic). Raises LedgerTooOld when the database is newer than this node."""
        if self._is_up_to_date():
            return
        from alembic import command  # 10 MB, for one start in many
        from alembic.config import Config as AlembicConfig

        settings = AlembicConfig()
        settings.set_main_option("script_location", str(MIGRATIONS))
        settings.attributes["engine"], settings.attributes["root"] = self.engine, self.root
        try:
            command.upgrade(settings, "head")
        except command.util.CommandError as error:
            raise LedgerTooOld(
                f"{self.engine.url.render_as_string()}: {error}; "
                "the database was written by a newer pacs-node: install that version or another database"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            said = (
                str(error.orig).strip().splitlines()[0] if isinstance(error, sa.exc.DBAPIError) else "it gave an error"
            )
            raise LedgerUnavailable(
                f"{self.engine.url.render_as_string()} cannot be used ({said}): start the database, or correct url in "
                "[database]; without a database of your own, see that data_dir holds a whole node.sqlite"
            ) from error

    def _is_up_to_date(self) -> bool:
        try:
            with self._reader.begin() as db:
                return db.scalars(sa.text("SELECT version_num FROM alembic_version")).all() == [max(revisions())]
        except sa.exc.SQLAlchemyError:  # an empty database, or one that does not answer: `migrate` finds out
            return False

    def schema_revision(self) -> str | None:
        """What the schema was brought up to; None: there is none."""
        with self._reading() as db:
            if not sa.inspect(db).has_table("alembic_version"):
                return None
            return db.scalar(sa.text("SELECT version_num FROM alembic_version"))

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        with self._answering(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """For what is only read: waits for no writer, and holds none up."""
        with self._answering(), self._reader.begin() as connection:
            yield connection

    def _has(self, query: str, value: str) -> bool:
        """Whether there is a row; past SQLAlchemy, which takes ten times as long as SQLite to answer."""
        driver = self.engine.dialect.loaded_dbapi
        try:
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(query + ("?" if self.embedded else "%s"), (value,))
                return cursor.fetchone() is not None
            finally:
                connection.close()
        except (driver.Error, sa.exc.SQLAlchemyError) as error:
            raise self._away() from error

    def _away(self) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"the database does not answer; start it or free its disk: {self.engine.url.render_as_string()}"
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError) as error:
            raise self._away() from error
        except sa.exc.DatabaseError as error:
            if type(error) is not sa.exc.DatabaseError:
                raise  # of what was asked
            raise self._away() from error  # SQLite's "malformed": also of a page that the disk did not give just now

    def _place(self, path: Path) -> str:
        """What a row says of a path."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def _path(self, place: str) -> Path:
        return self.root / place  # what is absolute stays so

    def _insert(self, table: sa.Table) -> Any:
        return (sqlite if self.embedded else postgresql).insert(table)

    def _note(self, db: sa.Connection, series_uid: str, now: datetime, event: str, text: str) -> None:
        db.execute(sa.insert(event_table).values(series_uid=series_uid, at=now, event=event, text=text))


def revisions() -> set[str]:
    """Those of the schema that this node knows; the greatest is the newest."""
    return {path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def _engine(url: str) -> sa.Engine:
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True, connect_args=GONE_AFTER)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver starts no transaction of its own; `begin` below does
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
        connection.execute("PRAGMA busy_timeout=30000")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")  # writers queue here, not at COMMIT

    return engine


def engine_for_jobs(url: str) -> sa.Engine:
    """An engine for the job engine's own tables: a second SQLite file beside the ledger, or the same PostgreSQL."""
    if not url.startswith("sqlite"):
        return _engine(url)
    path = Path(sa.make_url(url).database or "node.sqlite")
    engine = sa.create_engine(f"sqlite:///{path.with_name(path.stem + '-jobs.sqlite')}")

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine
