"""Durable jobs on the real engine and a real SQLite file. The rooms are small, but answer or refuse as rooms do."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from dicom_sr.findings import Algorithm, Findings
from pacs_node import pack
from pacs_node.errors import GiveUp, Interrupted, LedgerUnavailable, Refused, TryAgain
from pacs_node.flow import Flow, RetryPolicy
from pacs_node.jobs import Engine
from pacs_node.ledger import Ledger
from pacs_node.records import Edition, Instance, Job, Package, Receipt, Result, Stored, Verdict

NOTHING_FOUND = Findings("lung-nodule", "volume", (), (), Algorithm("a", "1"))


def now() -> datetime:
    return datetime.now(UTC)


class ScriptedRooms:
    """Rooms whose answers a test writes down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: list[tuple[str, str]] = []
        self.down: set[str] = set()
        self.hanging: set[str] = set()
        self.refuse = False
        self.release = threading.Event()

    def share(self, instances: Sequence[Instance]) -> None:
        pass

    def unpacked(
        self, name: str, images: Sequence[Stored], *, whole: bool = False
    ) -> AbstractContextManager[list[Path]]:
        return pack.unpacked(images, self.folder / "work")

    def infer(
        self, job: Job, images: Sequence[Stored], files: list[Path], progress: Callable[[float, str], None]
    ) -> Findings:
        if self.refuse:
            raise Refused("gantry tilt of 12.0 degrees")
        progress(0.5, "half")
        return NOTHING_FOUND

    def sources(self, files: list[Path]) -> AbstractContextManager[Callable[[], list[Dataset]]]:
        return nullcontext(list)

    def compare(self, job: Job, findings: Findings, files: list[Path]) -> Findings:
        return findings

    def is_shadow(self, route: str) -> bool:
        return False

    def places(self, findings: Findings, files: Mapping[str, Path]) -> None:
        return None

    def reports_not_run(self, job: Job) -> bool:
        return False

    def encode(self, job: Job, findings: Findings, sources: Sequence[Dataset], edition: Edition) -> list[Result]:
        return [Result(f"2.{job.id}", "1.2.840.10008.5.1.4.1.1.88.34", self.folder / job.id)]

    def deliver(self, destination: str, package: Package) -> list[Receipt]:
        if destination in self.hanging:
            self.release.wait(30)
        if destination in self.down:
            raise TryAgain(f"{destination} does not answer")
        if destination == "deaf":
            raise GiveUp("called AE title not recognized")
        self.sent += [(destination, path.name) for path in package.paths]
        return [Receipt(path.name, True, 0, "0x0000 Success", now()) for path in package.paths]

    def arrival_check(self, destination: str) -> None:
        return None


class Running:
    def __init__(self, folder: Path, *, attempts: int = 50, url: str | None = None, infer_slots: int = 1) -> None:
        self.ledger = Ledger(url or f"sqlite:///{folder}/node.sqlite", folder)
        self.ledger.migrate()
        self.stages = ScriptedRooms(folder)
        quick = RetryPolicy(0.05, 0.2, attempts)
        self.flow = Flow(self.ledger, self.stages, {"infer": quick, "send": quick}, poison_limit=5, now=now,
                         jitter=random.Random(1), executor="w1")  # fmt: skip
        self.engine = Engine(self.ledger, self.flow, executor="w1", infer_slots=infer_slots, send_slots=1, sweep_s=0.2,
                             lease_s=30, poison_limit=5, poll_s=0.05, now=now)  # fmt: skip

    def add(self, name: str, *, send_to: tuple[str, ...] = ("pacs",), priority: int = 5, sender: str = "CT1") -> None:
        job = Job(name, "infer", f"1.{name}", "1.8", 1, "lung-nodule", "r", priority, now(), send_to, sender=sender)
        self.close(name, [job])

    def close(self, name: str, jobs: list[Job]) -> None:
        series = f"1.{name}"
        self.ledger.take_in(Instance(f"{series}.1", "c", series, "1.8", "t", Path("/x"), 1, now(), "a", "CT1"))
        assert self.ledger.close_series(
            series, arrived=1, because="quiet", modality="CT", description="", revision=1, now=now(),
            verdict=Verdict(True, "fit", use=(f"{series}.1",)), rules=[], jobs=jobs,
        )  # fmt: skip

    def wait(self, until: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, [
                self.ledger.series(s["series_uid"]) for s in self.ledger.series_list(9)
            ]
            time.sleep(0.05)

    def states(self) -> set[str]:
        return {job["state"] for one in self.ledger.series_list(99) for job in one["jobs"]}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    running.engine.start()
    yield running
    running.stages.release.set()
    running.engine.stop(1)
    running.ledger.close()


def test_a_job_runs_and_its_results_go_to_every_destination(running: Running) -> None:
    running.add("7", send_to=("pacs", "archive"))
    running.wait(lambda: len(running.stages.sent) == 2)
    running.wait(lambda: running.states() == {"done"})
    facts = running.ledger.series("1.7")
    assert sorted(job["destination"] or "" for job in facts["jobs"]) == ["", "archive", "pacs"]
    assert [job["receipts"][0]["text"] for job in facts["jobs"] if job["kind"] == "send"] == ["0x0000 Success"] * 2


def test_a_refusal_is_an_end_with_a_reason(running: Running) -> None:
    running.stages.refuse = True
    running.add("7")
    running.wait(lambda: running.states() == {"refused"})
    assert running.ledger.series("1.7")["jobs"][0]["reason"] == "gantry tilt of 12.0 degrees"


def test_a_dead_destination_never_delays_another(running: Running) -> None:
    running.stages.hanging.add("dead")
    running.stages.down.add("dead")
    for name in "12345":
        running.add(name, send_to=("dead", "pacs"))
    running.wait(lambda: len([s for s in running.stages.sent if s[0] == "pacs"]) == 5)
    assert not running.stages.release.is_set()


def test_down_then_up(running: Running) -> None:
    running.stages.down.add("pacs")
    running.add("7")
    running.wait(
        lambda: any(job["state"] == "waiting" and job["attempts"] > 2 for job in running.ledger.series("1.7")["jobs"])
    )
    running.stages.down.clear()
    running.wait(lambda: running.states() == {"done"})
    assert len(running.stages.sent) == 1


def test_what_cannot_be_cured_is_not_repeated_until_asked(running: Running) -> None:
    running.add("7", send_to=("deaf",))
    running.wait(lambda: "failed" in running.states())
    [send] = [job for job in running.ledger.series("1.7")["jobs"] if job["kind"] == "send"]
    assert (send["attempts"], send["reason"]) == (1, "called AE title not recognized")
    assert running.ledger.run_again(send["id"], now())
    running.wait(
        lambda: running.ledger.job(send["id"]).generation == 2 and running.ledger.job(send["id"]).state == "failed"
    )


class Gate:
    """Every inference notes that it has begun, and waits."""

    def __init__(self, running: Running) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()
        infer = running.stages.infer

        def slow(job: Job, *asked: Any) -> Findings:
            self.begun.append(job.id)
            self.gate.wait(20)
            return infer(job, *asked)

        running.stages.infer = slow  # type: ignore[method-assign]


def test_stat_overtakes_routine_and_senders_take_turns(running: Running) -> None:
    order = Gate(running)
    running.add("first")
    running.wait(lambda: order.begun == ["first"])
    for name in ("second", "third"):
        running.add(name)
    running.add("single", sender="CT2")
    running.add("stat", priority=1)
    time.sleep(0.6)  # the engine has looked at them
    order.gate.set()
    running.wait(lambda: len(order.begun) == 5)
    assert order.begun == ["first", "stat", "single", "second", "third"]


def test_what_is_not_urgent_waits_for_the_hours_of_its_route(running: Running) -> None:
    """A STAT job behind it has run, twice, and no worker has begun with it."""
    closed = {"r": "waits for 19:00"}
    running.flow.closed = lambda: closed
    running.add("routine")
    for name in ("stat", "another"):
        running.add(name, priority=1)
        running.wait(lambda name=name: running.ledger.job(name).state == "done")
    waits = running.ledger.job("routine")
    assert (waits.state, waits.generation, waits.attempt) == ("queued", 1, 1)
    closed.clear()
    running.wait(lambda: running.states() == {"done"})


def test_a_job_of_a_dead_worker_waits_for_the_hours_of_its_route_too(running: Running) -> None:
    closed = {"r": "waits for 19:00"}
    running.add("routine")
    running.wait(lambda: running.states() == {"done"})
    running.flow.closed = lambda: closed
    running.add("left")
    assert running.ledger.begin(running.ledger.job("left"), "gone", now())
    running.wait(lambda: running.ledger.job("left").state == "queued")
    running.add("stat", priority=1)
    running.wait(lambda: running.ledger.job("stat").state == "done")
    assert running.ledger.job("left").state == "queued"
    closed.clear()
    running.wait(lambda: running.states() == {"done"})


def test_as_many_inferences_run_as_there_are_devices(tmp_path: Path) -> None:
    running = Running(tmp_path, infer_slots=2)
    order = Gate(running)
    running.engine.start()
    try:
        for name in "1234":
            running.add(name)
        running.wait(lambda: len(order.begun) == 2)
        time.sleep(0.6)
        assert (sorted(order.begun), running.ledger.number_running("infer")) == (["1", "2"], 2)
        order.gate.set()
        running.wait(lambda: running.states() == {"done"})
    finally:
        order.gate.set()
        running.engine.stop(1)
        running.ledger.close()


def test_the_engine_may_lose_its_memory(tmp_path: Path) -> None:
    """The job row is the truth: with the engine's own file gone, everything still runs."""
    first = Running(tmp_path)
    first.stages.down.add("pacs")
    first.engine.start()
    first.add("7")
    first.wait(lambda: any(job["state"] == "waiting" for job in first.ledger.series("1.7")["jobs"]))
    first.engine.stop(1)
    first.add("8")
    assert first.ledger.begin(first.ledger.job("8"), "w1", now())  # it was killed while this ran
    for file in tmp_path.glob("node-jobs.sqlite*"):
        file.unlink()
    second = Running(tmp_path)
    second.engine.start()
    try:
        second.wait(lambda: second.states() == {"done"})
        assert len(second.stages.sent) == 2
        taken = [event["text"] for event in second.ledger.series("1.8")["timeline"] if event["event"] == "taken over"]
        assert taken == ["infer lung-nodule: the node ended while it ran"]
    finally:
        second.engine.stop(1)


def test_the_engine_forgets_what_ended_long_ago_and_the_ledger_does_not(running: Running) -> None:
    running.add("7")
    running.wait(lambda: len(running.stages.sent) == 1 and running.states() == {"done"})

    def remembered(state: str = "%") -> int:
        with closing(sqlite3.connect(running.stages.folder / "node-jobs.sqlite")) as db:
            return int(db.execute("SELECT count(*) FROM workflow_status WHERE status LIKE ?", [state]).fetchone()[0])

    running.wait(lambda: remembered("SUCCESS") == 2)
    running.engine.forget_finished()
    assert remembered() == 2, "they are of today"
    running.engine.now = lambda: now() + timedelta(days=2)
    running.engine.forget_finished()
    running.engine.now = now
    assert remembered() == 0
    running.add("8")
    running.wait(lambda: len(running.stages.sent) == 2 and running.states() == {"done"})


def test_gives_up_after_the_last_attempt(tmp_path: Path) -> None:
    running = Running(tmp_path, attempts=3)
    running.stages.down.add("pacs")
    running.engine.start()
    try:
        running.add("7")
        running.wait(lambda: "failed" in running.states())
        [send] = [job for job in running.ledger.series("1.7")["jobs"] if job["kind"] == "send"]
        assert send["reason"] == "gave up after 3 attempts: pacs does not answer"
    finally:
        running.engine.stop(1)


def test_a_stopping_node_puts_its_job_back_and_counts_nothing(running: Running) -> None:
    infer = running.stages.infer

    def cut_short(job: Job, *asked: Any) -> Findings:
        if job.generation == 1:
            raise Interrupted("stopped with the node")
        assert (job.attempt, job.crashes) == (1, 0)
        return infer(job, *asked)

    running.stages.infer = cut_short  # type: ignore[method-assign]
    running.add("7")
    running.wait(lambda: running.states() == {"done"})
    assert running.ledger.job("7").generation == 2


def test_a_ledger_that_cannot_be_written_is_not_taken_for_deaths_of_the_worker(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than a worker may die: the job runs all the same once the ledger is back."""
    begun: list[str] = []
    begin = running.ledger.begin

    def counted(job: Job, *said: Any) -> bool:
        begun.append(job.id)
        return begin(job, *said)

    def away(*arguments: object, **named: object) -> None:
        raise LedgerUnavailable("the disk of the ledger is full")

    monkeypatch.setattr(running.ledger, "begin", counted)
    with monkeypatch.context() as full:
        full.setattr(running.ledger, "finish", away)
        full.setattr(running.ledger, "retry_later", away)
        running.add("7")
        running.wait(lambda: len(begun) > 7)
    running.wait(lambda: running.states() == {"done"})


def test_backoff_doubles_with_jitter_and_is_bounded() -> None:
    policy = RetryPolicy(10, 900, 100)
    jitter = random.Random(3)
    for attempt in range(1, 60):
        ceiling = min(900, 10 * 2 ** (attempt - 1))
        assert ceiling / 2 <= policy.delay_s(attempt, jitter) <= ceiling
