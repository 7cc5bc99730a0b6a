"""The ledger on a real PostgreSQL: every promise of tests/unit/node/test_ledger.py, and several processes at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa

from models.phantoms import breast_ultrasound
from pacs_node import jobs
from pacs_node.ledger import Ledger
from pacs_node.ledger.tables import metadata
from tests.fault.test_standing import Watched, every_job_ends
from tests.harness import ROOT, NodeProcess, Postgres, storescu, wait_for
from tests.unit.node.test_ledger import *  # noqa: F403  the same tests, on the ledger below
from tests.unit.node.test_turns import (  # noqa: F401  and these
    test_a_single_series_does_not_wait_for_the_thousands_of_another,
    test_several_workers_begin_every_job,
    test_the_ledger_keeps_the_same_order,
    test_turns_that_nobody_takes_are_given_again,
)

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


SETTINGS = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 1.0
[database]
url = "{url}"
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast ultrasound"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
"""


def test_two_workers_share_the_jobs_and_one_alone_ends_them(postgres: Postgres, tmp_path: Path) -> None:
    """A listener without work, two workers, one of which is killed: every series has its result, and each image sent
    twice is one image."""
    node = NodeProcess(tmp_path / "node", SETTINGS.format(url=postgres.database("shared")))
    command = [sys.executable, "-m", "pacs_node.cli", "worker", "--config", str(node.config)]
    workers = []
    try:
        with node.start("--no-work"), (tmp_path / "workers.log").open("wb") as log:
            workers += [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for _ in range(2)]

            def answered(number: int) -> str:
                folder = tmp_path / f"us{number}"
                sent = breast_ultrasound(folder, seed=number, images=2, patient_id=f"PHANTOM-PG-{number}")
                for _ in range(2):
                    storescu(node, tmp_path / f"us{number}")
                uid = str(pydicom.dcmread(sent.files[0], stop_before_pixels=True).SeriesInstanceUID)
                why = f"a result of series {number}\n{node.log()}\n{(tmp_path / 'workers.log').read_text()[-3000:]}"
                facts = wait_for(lambda: node.finished(uid), 180, why)
                assert [job["state"] for job in facts["jobs"]] == ["done"] * len(facts["jobs"]), facts["jobs"]
                assert facts["instances"] == 2
                return uid

            first = [answered(1), answered(2)]
            workers[0].kill()
            workers[0].wait()
            first.append(answered(3))
            studies = {str(pydicom.dcmread(path).StudyInstanceUID) for path in (tmp_path / "node").rglob("*SR*.dcm")}
            assert len(studies) == len(first)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_no_job_stands_still_there_either(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all one whose worker was killed between the engine's row and ours."""
    monkeypatch.setattr(jobs, "BEGIN_WITHIN_S", 0.5)
    watched = Watched(tmp_path, postgres.database("standing"))
    try:
        every_job_ends(watched)
    finally:
        watched.stop()
