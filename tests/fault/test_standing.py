"""No job stands still: whatever its row says, whatever the engine says of it, and whichever worker had it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS, SetEnqueueOptions, SetWorkflowID
from dbos._dbos import _get_dbos_instance

from dicom_sr.findings import Findings
from pacs_node import jobs
from pacs_node.errors import LedgerUnavailable
from pacs_node.ledger.engine import engine_for_jobs
from pacs_node.ledger.tables import job_table
from pacs_node.records import Job
from tests.harness import wait_for
from tests.unit.node.test_jobs import Running, now

# What the engine may say of the workflow of an open job, and which worker it names: w1 is the one that runs here.
ENGINE = [
    ("no workflow", None),
    ("ENQUEUED", None),
    ("PENDING", "w1"),
    ("PENDING", "dead"),
    ("DELAYED", None),
    ("SUCCESS", "w1"),
    ("ERROR", "w1"),
    ("CANCELLED", None),
    ("MAX_RECOVERY_ATTEMPTS_EXCEEDED", "dead"),
]
# What the row of an open job may say, and which worker it names.
ROWS = [("queued", None), ("waiting", "w1"), ("waiting", "dead"), ("running", "w1"), ("running", "dead")]


class Watched(Running):
    """A running node that counts what it infers; rows and workflows can be put into any state."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        super().__init__(folder, url=url)
        self.inferred: list[str] = []
        infer = self.stages.infer

        def counted(job: Job, *asked: Any) -> Findings:
            self.inferred.append(job.id)
            return infer(job, *asked)

        self.stages.infer = counted  # type: ignore[method-assign]
        self.engine.start()
        self.memory, self.schema = engine_for_jobs(self.ledger.url), "" if self.ledger.embedded else "dbos."

    def stop(self) -> None:
        self.stages.release.set()
        self.engine.stop(1)
        self.memory.dispose()
        self.ledger.close()

    def put(self, name: str, row: tuple[str, str | None], engine: tuple[str, str | None]) -> None:
        """A job in the middle of its life, and what the engine remembers of it."""
        attempt = 2 if row[0] == "waiting" else 1
        if engine[0] != "no workflow":
            self.remember(name, attempt, *engine)
        self.close(name, [])
        values = {"state": row[0], "executor": row[1], "attempt": attempt}
        values |= {"not_before": now() - timedelta(seconds=1)} if attempt > 1 else {}
        with self.ledger._begin() as db:  # seen by the sweeper in this state, or not at all
            self.ledger._add_job(db, Job(name, "infer", f"1.{name}", "1.8", 1, "lung-nodule", "r", 5, now(), ("pacs",)))
            db.execute(sa.update(job_table).where(job_table.c.id == name).values(**values))

    def remember(self, name: str, attempt: int, status: str, executor: str | None) -> None:
        """The engine has a workflow of this attempt, in this state."""
        workflow = f"{name}#1.{attempt}"
        with SetWorkflowID(workflow), SetEnqueueOptions(delay_seconds=1e6):
            DBOS.enqueue_workflow("infer", self.engine._run_job, name, 1, attempt)
        self.say(workflow, status, executor)

    def say(self, workflow: str, status: str, executor: str | None) -> None:
        """Let the engine say this of a workflow."""
        with self.memory.begin() as db:
            db.execute(sa.text(SAY.format(self.schema)), {"s": status, "e": executor, "w": workflow})


SAY = "UPDATE {}workflow_status SET status = :s, executor_id = :e WHERE workflow_uuid = :w"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "BEGIN_WITHIN_S", 0.5)
        watched = Watched(tmp_path_factory.mktemp("node"))
        yield watched
        watched.stop()


def every_job_ends(watched: Watched) -> None:
    cases = {f"j{number}": case for number, case in enumerate(product(ROWS, ENGINE))}
    for name, (row, engine) in cases.items():
        watched.put(name, row, engine)

    def standing() -> list[Any]:
        return [
            (cases[name], job.state, job.reason)
            for name in cases
            if (job := watched.ledger.job(name)) and job.state != "done"
        ]

    wait_for(lambda: not standing(), 60, f"all to end, without a restart: {standing()}")
    assert sorted(each for each in watched.inferred if each in cases) == sorted(cases), "each once"


def test_no_job_stands_still_whatever_its_row_and_the_engine_say(watched: Watched) -> None:
    every_job_ends(watched)


def test_what_a_living_worker_runs_is_left_to_it(watched: Watched) -> None:
    watched.ledger.renew_lease("other", 600)
    watched.put("theirs", ("running", "other"), ("PENDING", "other"))
    watched.put("begins", ("queued", None), ("PENDING", "other"))
    watched.put("ours", ("queued", None), ("no workflow", None))
    wait_for(lambda: watched.ledger.job("ours").state == "done", 30, "a job of ours")
    for _ in range(3):
        watched.engine.sweep()
    assert [watched.ledger.job(name).generation for name in ("theirs", "begins")] == [1, 1]
    watched.ledger.give_up_lease("other")
    wait_for(lambda: watched.states() == {"done"}, 30, "the jobs of the worker that is gone")


def test_a_lease_that_goes_on_no_more_has_run_out_whatever_the_clock_says(watched: Watched) -> None:
    """Its worker died before the clock of the database was set back by hours."""
    at = [0.0]
    beside: Any = SimpleNamespace(  # the sweeper of the running node looks, too
        ledger=watched.ledger, monotonic=lambda: at[0], lease_s=30, executor="w1", _leases={}, _absence=(0.0, -1e9)
    )
    watched.ledger.renew_lease("stays", 5 * 3600)
    for living in ({"w1", "stays", "goes on"}, {"w1", "stays", "goes on"}, {"w1", "goes on"}):
        watched.ledger.renew_lease("goes on", 60)
        assert jobs.Engine._living(beside) == living
        at[0] += 40
    for executor in ("stays", "goes on"):
        watched.ledger.give_up_lease(executor)


def test_after_an_absence_the_others_have_as_long_as_a_lease_to_say_that_they_live(watched: Watched) -> None:
    """The database was away, or this worker stood still: of the others nothing was heard, and that says nothing."""
    at, lease_s = [1000.0], 30.0
    beside: Any = SimpleNamespace(
        ledger=watched.ledger, monotonic=lambda: at[0], lease_s=lease_s, executor="w1", _leases={}, _heard=at[0]
    )
    beside._absence = (0.0, -1e9)
    watched.ledger.renew_lease("lapsed", -100)  # a hundred seconds ago

    def swept() -> set[str]:
        jobs.Engine._back(beside)
        return jobs.Engine._living(beside) - {"goes on"}

    assert swept() == {"w1"}
    at[0] += lease_s - 1
    assert swept() == {"w1"}, "no absence yet"
    at[0] += 120
    assert swept() == {"w1", "lapsed"}
    at[0] += lease_s - 1
    assert swept() == {"w1", "lapsed"}
    at[0] += 2
    assert swept() == {"w1"}, "it has had its time"
    at[0] += 40
    assert swept() == {"w1"}, "absent for less than its lease has lapsed: it was dead before"
    watched.ledger.give_up_lease("lapsed")


def test_what_runs_here_is_left_alone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the engine says meanwhile."""
    begun, end = threading.Event(), threading.Event()
    infer = watched.stages.infer

    def slow(job: Job, *asked: Any) -> Findings:
        begun.set()
        assert end.wait(30)
        return infer(job, *asked)

    monkeypatch.setattr(watched.stages, "infer", slow)
    watched.add("long")
    assert begun.wait(30)
    for status in ("SUCCESS", "CANCELLED", "ERROR"):
        with watched.memory.begin() as db:
            db.execute(
                sa.text("UPDATE workflow_status SET status = :s WHERE workflow_uuid = 'long#1.1'"), {"s": status}
            )
        watched.engine.sweep()
    assert watched.ledger.job("long").generation == 1
    end.set()
    wait_for(lambda: watched.ledger.job("long").state == "done", 30, "its end")
    assert watched.inferred.count("long") == 1


@pytest.mark.parametrize("broken", ["the ledger", "the engine", "both"])
@pytest.mark.parametrize("kind", ["infer", "send"])
def test_an_outcome_that_cannot_be_written_for_a_while(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, broken: str, kind: str
) -> None:
    """The disk is full just as a job ends: it ends right once there is room, without a restart."""
    full, tried = threading.Event(), threading.Event()
    system = _get_dbos_instance()._sys_db
    ledger = watched.ledger
    no_room = sa.exc.OperationalError("UPDATE", {}, Exception("database or disk is full"))

    def failing(write: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def maybe(*arguments: Any, **named: Any) -> Any:
            if full.is_set():
                tried.set()
                raise error
            return write(*arguments, **named)

        return maybe

    if broken != "the engine":
        for name in ("finish", "retry_later", "put_back", "take_over", "give_up"):
            monkeypatch.setattr(ledger, name, failing(getattr(ledger, name), LedgerUnavailable("no room")))
    if broken != "the ledger":
        for name in ("update_workflow_outcome", "record_operation_result"):
            monkeypatch.setattr(system, name, failing(getattr(system, name), no_room))
    room = "infer" if kind == "infer" else "deliver"
    work = getattr(watched.stages, room)

    def fills_the_disk(*arguments: Any) -> Any:
        done = work(*arguments)
        if not tried.is_set():
            full.set()
        return done

    monkeypatch.setattr(watched.stages, room, fills_the_disk)
    name = f"{kind} {broken}"
    watched.add(name)
    assert tried.wait(30)
    wait_for(lambda: not watched.engine._here, 30, "the end of the attempt")
    watched.engine.sweeper.wake()
    full.clear()
    wait_for(lambda: watched.states() == {"done"}, 30, f"its end: {watched.ledger.series(f'1.{name}')['jobs']}")
    assert not watched.engine._here
    if kind == "send" or broken == "the engine":  # else only what is kept saves it, and these rooms keep nothing
        assert watched.inferred.count(name) == 1
    wait_for(lambda: watched.engine.sweeper.trouble is None, 30, "a sweeper that is well")


@pytest.mark.parametrize("priority", [1, 5], ids=["STAT", "routine"])
def test_thousands_of_waiting_jobs_hold_up_no_new_one(watched: Watched, priority: int) -> None:
    """Whatever waits, for its destination or for its turn, a new job begins before it is handed on."""
    number, name = 1000, f"new {priority}"
    later = 9 if priority == 5 else 5
    old = now() - timedelta(hours=1)

    def waiting(kind: str, destination: str | None) -> list[Job]:
        return [
            Job(
                f"{kind}{priority}.{n}",
                kind,
                "1.none",
                "1.8",
                1,
                "p",
                "r",
                later,
                old,
                ("pacs",),
                destination=destination,
            )
            for n in range(number)
        ]

    with watched.ledger._begin() as db:
        for job in [*waiting("infer", None), *waiting("send", "dead"), *waiting("confirm", "dead")]:
            watched.ledger._add_job(db, job)
        db.execute(sa.update(job_table).where(job_table.c.kind == "send", OLD).values(state="waiting", not_before=old))
    try:
        watched.add(name, priority=priority)
        wait_for(lambda: watched.states() == {"done"}, 30, f"its end: {watched.ledger.series(f'1.{name}')['jobs']}")
        with watched.memory.begin() as db:
            given = db.scalar(sa.text("SELECT count(*) FROM workflow_status WHERE status = 'ENQUEUED'"))
        assert 0 < given <= 40, "the engine is given a window"
        assert len(watched.ledger.open_jobs()) > 2.5 * number
    finally:
        with watched.ledger._begin() as db:
            db.execute(sa.update(job_table).where(OLD).values(state="superseded"))


OLD = sa.and_(job_table.c.series_uid == "1.none", job_table.c.state.in_(("queued", "waiting")))
