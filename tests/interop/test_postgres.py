"""The ledger on a real PostgreSQL: every promise of tests/unit/node/test_ledger.py, and several processes at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import metadata
from tests.harness import ROOT, Postgres
from tests.unit.node.test_ledger import *  # noqa: F403  the same tests, on the ledger below

NUMBER = count(1)
PROCESSES = 3


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def ledger(postgres: Postgres) -> Iterator[Ledger]:
    ledger = Ledger(postgres.database(f"ledger{next(NUMBER)}"))
    ledger.migrate()
    yield ledger
    ledger.close()


def test_three_processes_start_at_once_on_an_empty_database(postgres: Postgres, tmp_path: Path) -> None:
    """All of them have the schema then, and none has seen it half made."""
    url = postgres.database("empty")
    gate = tmp_path / "go"
    code = (
        "import alembic.command, pathlib, time\n"
        "from pacs_node.ledger import Ledger\n"
        f"ledger, gate = Ledger({url!r}), pathlib.Path({str(gate)!r})\n"
        "ledger.engine.connect().close()\n"
        "while not gate.exists(): time.sleep(0.001)\n"
        "ledger.migrate(); print(ledger.counts())"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for _ in range(PROCESSES)]
    time.sleep(4)  # until all of them wait there
    gate.touch()
    ended = [one.communicate(timeout=120) for one in started]
    assert [one.returncode for one in started] == [0] * PROCESSES, ended
    engine = sa.create_engine(url)
    there = sa.inspect(engine)
    assert set(metadata.tables) <= set(there.get_table_names())
    engine.dispose()
