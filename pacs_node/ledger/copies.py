"""The database as a whole: copied while it is in use, and put back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pacs_node.errors import CannotStart, LedgerTooOld, LedgerUnavailable
from pacs_node.ledger.engine import Database, engine_for_jobs, revisions

DUMP = "ledger.pgdump"  # what pg_dump makes of a PostgreSQL database
KNOWN = "there is no program '{0}' here: install PostgreSQL's client programs, or on a machine that has them run\n{1}"


def sqlite_files(url: str) -> list[Path]:
    """The files of the ledger and of the job engine; of a server none."""
    if not url.startswith("sqlite"):
        return []
    engine = engine_for_jobs(url)
    engine.dispose()
    return [Path(each) for each in (sa.make_url(url).database, engine.url.database) if each]


def revision_of(url: str) -> str | None:
    """Of the schema; None where there is no database of a node. Raises LedgerUnavailable."""
    if any(not path.exists() for path in sqlite_files(url)[:1]):
        return None
    database = Database(url, Path("/"))  # no path is asked for
    try:
        return database.schema_revision()
    finally:
        database.close()


def must_be_known(revision: str | None) -> None:
    """Raises LedgerTooOld where a newer node has written the database."""
    if revision is not None and revision not in revisions():
        raise LedgerTooOld(
            f"its database has revision {revision}, which this pacs-node does not know: install a newer one"
        )


def copy_database(url: str, folder: Path) -> list[Path]:
    """The database as it is at one moment, as files in `folder`, while others read and write it."""
    if not url.startswith("sqlite"):
        dump = folder / DUMP
        if not dump.exists():  # made by hand where there is no pg_dump
            _run("pg_dump", ["--format=custom", "--no-owner", f"--file={dump}"], url)
        return [dump]
    copies = []
    for path in sqlite_files(url):
        if path.is_file():
            copies.append(folder / path.name)
            _copy_sqlite(path, copies[-1])
    return copies


def _copy_sqlite(path: Path, to: Path) -> None:
    source, target = (sa.create_engine(f"sqlite:///{each}") for each in (path, to))
    try:
        reading, writing = source.raw_connection(), target.raw_connection()
        try:
            driver: Any = reading.driver_connection
            driver.backup(writing.driver_connection)  # in one step, which in WAL mode holds nobody up
        finally:
            reading.close()
            writing.close()
    except (sa.exc.SQLAlchemyError, source.dialect.loaded_dbapi.Error) as error:
        raise LedgerUnavailable(f"{path.name} cannot be copied to {to}: {error}; see that it is whole") from error
    finally:
        source.dispose()
        target.dispose()


def must_be_empty(url: str) -> None:
    """Raises CannotStart where the settings' database holds something."""
    there = [path for path in sqlite_files(url) if path.exists()]
    if there:
        raise CannotStart(f"{there[0]} is there already: name another database in url of [database], or move it away")
    if not url.startswith("sqlite") and revision_of(url) is not None:
        raise CannotStart("the database that url in [database] names holds a node's tables: name an empty one")


def put_back(url: str, folder: Path, names: Sequence[str]) -> None:
    """The database from its copies; its own place must be empty."""
    if not url.startswith("sqlite"):
        database = sa.make_url(url).database or ""
        _run("pg_restore", ["--no-owner", "--exit-on-error", f"--dbname={database}", str(folder / DUMP)], url)
        return
    ledger_file, engine_file = sqlite_files(url)
    for name in names:
        to = engine_file if name.endswith("-jobs.sqlite") else ledger_file
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, to)
        with to.open("rb") as file:
            os.fsync(file.fileno())


def _run(program: str, words: Sequence[str], url: str) -> None:
    """A client program of PostgreSQL; the password goes by its environment, which other users cannot see."""
    place = sa.make_url(url)
    settings = {"PGHOST": place.host, "PGPORT": place.port, "PGUSER": place.username, "PGPASSWORD": place.password}
    given = {name: str(value) for name, value in settings.items() if value is not None}
    words = [*words, *([place.database or ""] if program == "pg_dump" else [])]
    told = " ".join([*(f"{name}={value}" for name, value in given.items() if name != "PGPASSWORD"), program, *words])
    found = shutil.which(program)
    if found is None:
        raise CannotStart(KNOWN.format(program, told))
    done = subprocess.run([found, *words], env={**os.environ, **given}, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it gave no reason"])[0]
        raise LedgerUnavailable(f"{program} failed ({said}): {told}")
