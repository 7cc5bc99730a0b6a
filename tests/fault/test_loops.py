"""Every loop outlives each of its calls failing, in every way; once that is over the work gets done, no restart."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOS

from config import load
from models import catalogue
from pacs_node import assembler, jobs
from pacs_node.errors import LedgerUnavailable
from pacs_node.node import Node
from pacs_node.records import Instance, Refusal
from tests.factories import us_image
from tests.fault.test_standing import Watched
from tests.harness import wait_for

ERRORS: list[Exception] = [
    OSError(errno.ENOSPC, "No space left on device"),
    sqlite3.OperationalError("database or disk is full"),
    sa.exc.OperationalError("INSERT", {}, Exception("disk I/O error")),
    sa.exc.IntegrityError("INSERT", {}, Exception("FOREIGN KEY constraint failed")),
    LedgerUnavailable("the database does not answer"),
    RuntimeError("can't start new thread"),
]


class Failing:
    """In the place of an object; one of its methods fails as long as it should."""

    def __init__(self, whole: Any) -> None:
        self._whole, self._fails, self._error, self.failed = whole, "", Exception(), 0
        self.called: set[str] = set()

    def fail(self, name: str, error: Exception) -> None:
        self._fails, self._error, self.failed = name, error, 0

    def mend(self) -> None:
        self._fails = ""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._whole, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            self.called.add(name)
            if name == self._fails:
                self.failed += 1
                raise self._error
            return value(*arguments, **named)

        return call


# ---------------------------------------------------------------------------------------------------- the assembler

TOML = """
[node]
data_dir = "data"
[assemble]
quiet_s = 0.05
quiet_unreleased_s = 0.05
ask_peer = true
[[peer]]
name = "us"
ae_title = "US1"
host = "127.0.0.1"
port = 9
may_send = true
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = { Modality = "US" }
pipeline = "breast-us"
send_to = ["results"]
"""
OF_LEDGER = ("open_series", "instances", "revision", "deleted", "waiting_in_study", "close_series", "expect")
OF_ROOMS = ("unpacked", "headers", "judge", "matches", "share")


class Assembling:
    """A node whose assembler and list of refusals run; no listener, no jobs."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.toml").write_text(TOML)
        self.folder = folder
        self.node = Node(load(folder / "node.toml", catalogue()))
        self.node.ledger.migrate()
        self.ledger, self.rooms = Failing(self.node.ledger), Failing(self.node.stages)
        self.node.flow.ledger = self.node.assembler.ledger = self.node.ledger = self.ledger  # type: ignore[assignment]
        self.node.flow.stages = self.rooms
        for loop in (self.node.assembler.loop, self.node._refusals):
            loop._every_s = 0.02
            loop.start()

    def receive(self, name: str) -> str:
        image = us_image(name=name)
        path = self.folder / f"{name}.dcm"
        image.save_as(path, enforce_file_format=True)
        uids = [str(image[k].value) for k in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")]
        instance = Instance(*uids, "1.2.840.10008.1.2.1", path, 1, datetime.now(UTC), "a", "US1")  # type: ignore[call-arg]
        self.ledger._whole.take_in(instance)
        return uids[2]

    def closed(self, uid: str) -> bool:
        facts = self.ledger._whole.series(uid)
        return facts is not None and facts["state"] == "closed" and facts["verdict"]["fit"] and len(facts["jobs"]) == 1


@pytest.fixture(scope="module")
def assembling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assembling]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembler, "RETRY_S", 0.0)
        patch.setattr(assembler, "TRIES", 900)
        patch.setattr(assembler, "SETTLED_S", 0.0)
        patch.setattr(assembler, "expected_count", lambda *asked: 1)
        assembling = Assembling(tmp_path_factory.mktemp("node"))
        yield assembling
        assembling.node.stop()


@pytest.mark.parametrize("name", [*OF_LEDGER, *OF_ROOMS])
def test_the_assembler_closes_what_is_complete_after_any_call_has_failed(assembling: Assembling, name: str) -> None:
    part = assembling.ledger if name in OF_LEDGER else assembling.rooms
    uid = ""
    for error in ERRORS if name in OF_LEDGER else ERRORS[:1]:  # other errors in a room are its images' own
        part.fail(name, error)
        if name == "expect":  # an aid: silence closes the series as well, and then nobody asks again
            uid = assembling.receive(f"{name} {ERRORS.index(error)}")
            wait_for(lambda: part.failed, 20, f"{error!r}")
        else:
            uid = uid or assembling.receive(name)
            wait_for(lambda: part.failed > 1 and assembling.node.trouble(), 20, f"{error!r}, and /health saying so")
            assert not assembling.closed(uid)
    part.mend()
    wait_for(lambda: assembling.closed(uid), 20, f"its end: {assembling.ledger._whole.series(uid)}")
    wait_for(lambda: not assembling.node.trouble(), 20, f"a node that is well: {assembling.node.trouble()}")


def test_these_are_all_calls_of_the_assembler(assembling: Assembling) -> None:
    uid = assembling.receive("all")
    wait_for(lambda: assembling.closed(uid), 20, "its end")
    assert assembling.ledger.called - {"take_in", "note_refusal"} == set(OF_LEDGER)
    assert assembling.rooms.called - {"decide"} == set(OF_ROOMS), "one that cannot be decided on is set aside"


def test_no_refusal_is_forgotten_because_it_could_not_be_noted(assembling: Assembling) -> None:
    reasons = {f"reason {number}" for number in range(3)}
    for reason in reasons:
        assembling.ledger.fail("note_refusal", ERRORS[0])
        assembling.node._refused(Refusal("unreadable", datetime.now(UTC), "CT1", "127.0.0.1", reason))
    for error in ERRORS:
        assembling.ledger.fail("note_refusal", error)
        wait_for(lambda: assembling.ledger.failed > 3 and assembling.node.trouble(), 20, f"{error!r}")
    assembling.ledger.mend()
    wait_for(
        lambda: reasons <= {each["reason"] for each in assembling.ledger._whole.refusals(100)}, 20, "all of them noted"
    )


# ------------------------------------------------------------------------------------------------------ the sweeper

OF_SWEEPER = (
    *("renew_lease", "living", "end_impossible_waits", "running_jobs", "number_running", "due_jobs", "job", "due_now"),
    *("take_over", "put_back", "pauses"),
)
OF_ENGINE = ("list_workflows", "enqueue_workflow")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    watched = Watched(tmp_path_factory.mktemp("node"))
    watched.engine.ledger = Failing(watched.ledger)  # type: ignore[assignment]
    yield watched
    watched.stop()


def work_for_every_call(watched: Watched, name: str) -> None:
    watched.stages.down.add("pacs")
    watched.add(f"{name} waits")  # its send: due_now once its wait is over
    watched.put(f"{name} gone", ("running", "dead"), ("PENDING", "dead"))  # take_over
    watched.put(f"{name} unwritten", ("queued", None), ("ERROR", "w1"))  # put_back


@pytest.mark.parametrize("name", [*OF_SWEEPER, *OF_ENGINE])
def test_the_sweeper_gets_everything_done_after_any_call_has_failed(
    watched: Watched, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part: Any = watched.engine.ledger if name in OF_SWEEPER else Failing(DBOS)
    part.fail(name, ERRORS[0])
    with monkeypatch.context() as failing:
        if name in OF_ENGINE:
            failing.setattr(jobs, "DBOS", part)
        work_for_every_call(watched, name)
        for error in ERRORS:
            part.fail(name, error)

            def failed() -> bool:
                watched.engine.wake()
                return part.failed > 1 and watched.engine.sweeper.trouble is not None

            wait_for(failed, 20, f"{error!r}, and /health saying so")
        part.mend()
        watched.stages.down.clear()
        wait_for(lambda: watched.states() == {"done"}, 20, "all to end")
        wait_for(lambda: watched.engine.sweeper.trouble is None, 20, "a sweeper that is well")


def test_these_are_all_calls_of_the_sweeper(watched: Watched) -> None:
    assert watched.engine.ledger.called == set(OF_SWEEPER)  # type: ignore[attr-defined]
