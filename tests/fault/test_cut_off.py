"""The database is away in the middle of what the node does: a whole node, and all is delivered once, without a restart.

Drawn by FAULT_SEED, or always the same statements.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.calls import why_not
from tests.fault.cut_off import CutOff
from tests.fault.nth import TOLD_S, Bench, told_s
from tests.harness import Postgres

SEED, MOST = int(os.environ.get("FAULT_SEED", "1")), 6
WAITED_FOR_S = {"ledger": 30.0, "engine": 10.0}  # for a lock: by ledger/engine.py, and by DBOS


@pytest.fixture(scope="module", autouse=True)
def watched() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CutOff]:
    with Postgres(tmp_path_factory.mktemp("server")) as server, CutOff(server.port) as way:
        server.database("node")
        yield way


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, way: CutOff) -> Iterator[Bench]:
    url = f"postgresql+psycopg://node@127.0.0.1:{way.port}/node?sslmode=disable&gssencmode=disable"
    with Bench(tmp_path_factory.mktemp("cut"), f'[database]\nurl = "{url}"\n') as bench:
        yield bench


@pytest.mark.parametrize("answered", [False, True], ids=["not heard of", "done, and not answered"])
def test_a_connection_is_lost_at_any_statement(bench: Bench, way: CutOff, answered: bool) -> None:
    way.arm()
    bench.whole()
    count, dice, lost = way.counted, random.Random(SEED), 0
    for n in (dice.randint(1, count) for _ in range(MOST)):
        way.arm(n, answered=answered)
        assert (wrong := bench.tried()) is None, f"statement {n} of {count}: {wrong}\n{bench.node.log()}"
        lost += way.lost
    assert lost > MOST / 2, "most of them came to pass"


@pytest.mark.parametrize(("name", "part"), [("node.sqlite", "ledger"), ("node-jobs.sqlite", "engine")])
def test_another_program_holds_a_lock_for_longer_than_it_is_waited_for(tmp_path: Path, name: str, part: str) -> None:
    """As a copy or a repair by hand does."""
    with Bench(tmp_path) as bench:
        other = sqlite3.connect(bench.node.folder / "data" / name, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        since, until = time.monotonic(), list[float]()

        def release() -> None:
            until.append(time.monotonic())
            other.close()

        holding = threading.Timer(WAITED_FOR_S[part] + 5.0, release)
        holding.start()
        try:
            assert (wrong := bench.tried()) is None, f"{wrong}\n{bench.node.log()}"
        finally:
            holding.join()
        said = bench.health.between(since + TOLD_S + told_s(("lock", part)), until[0])
        assert said, "it was asked meanwhile"
        assert "ok" not in said
