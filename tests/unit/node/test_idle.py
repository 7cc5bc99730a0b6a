"""What rests while there is nothing to do, and takes up at once what comes."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event

from pacs_node import intake, jobs
from pacs_node.intake import Intake
from pacs_node.jobs import Pace
from pacs_node.ledger import Ledger
from pacs_node.records import AssociationEnd, Instance
from tests.harness import wait_for
from tests.unit.node.test_jobs import Running

LONG_S = 3600.0  # a rest that nobody ends is longer than any test
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_engine_begins_at_once_after_a_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "DOZE_S", LONG_S)
    running = Running(tmp_path)
    running.engine.start()
    try:
        for name in ("1", "2"):
            wait_for(lambda: running.engine._pace._idle, 20, "the engine to rest")
            running.add(name)
            running.wait(lambda: running.states() == {"done"})
    finally:
        running.engine.stop(1)
        running.ledger.close()


def test_the_engine_asks_its_database_nothing_while_it_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "DOZE_S", LONG_S)
    running = Running(tmp_path)
    asked: list[str] = []
    running.engine.start()
    try:
        event.listen(running.engine._dbos._sys_db.engine, "before_cursor_execute", lambda *said: asked.append(said[2]))

        def nothing_for_a_while() -> bool:
            asked.clear()
            time.sleep(2.5)  # more than twice the longest pause of a loop of the engine's that does not rest
            return not asked

        wait_for(nothing_for_a_while, 30, "rest: something asks without end")
    finally:
        running.engine.stop(1)
        running.ledger.close()


def test_each_poller_is_told_of_each_submission_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "DOZE_S", LONG_S)
    pace, stopped = Pace(), threading.Event()
    pace.set_for(stopped)
    pace.idle(True)
    looks = [0, 0]

    def poll(number: int) -> None:
        while not stopped.wait(0.01):
            looks[number] += 1

    pollers = [threading.Thread(target=poll, args=(number,), daemon=True) for number in (0, 1)]
    for poller in pollers:
        poller.start()
    for submitted in (1, 2, 3):
        pace.submitted()
        wait_for(lambda expected=[submitted] * 2: looks == expected, 20, f"{submitted} looks")  # type: ignore[misc]
    stopped.set()
    pace.end()
    for poller in pollers:
        poller.join(20)
    assert looks == [3, 3], "they looked without a reason"


def test_what_comes_in_a_rest_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "DOZE_S", LONG_S)
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    rows = Intake(ledger, lambda instances: None, lambda step: None)
    rows.loop.start()
    try:
        for number in range(3):
            wait_for(lambda: rows._dozes, 20, "the intake to rest")
            image = f"1.2.{number}"
            rows.stored(Instance(image, "c", "1.2", "1.8", "t", tmp_path / "x", 1, NOW, "a", "CT1"))  # type: ignore[call-arg]
            wait_for(lambda uid=image: ledger.instance(uid), 20, "its row")  # type: ignore[misc]
        wait_for(lambda: rows._dozes, 20, "the intake to rest")
        rows.left(AssociationEnd("a", "CT1", True, NOW))
        wait_for(lambda: ledger.open_series(frozenset())[0].evidence.released, 20, "the sender to have left")
    finally:
        rows.loop.stop()
        ledger.close()


def test_many_associations_of_an_image_each_are_two_transactions(tmp_path: Path) -> None:
    """As many PACS forward. A transaction for each image, and one for each end, took longer than the images to come."""
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    rows, written = Intake(ledger, lambda instances: None, lambda step: None), []
    event.listen(ledger.engine, "commit", lambda _: written.append(1))
    for number in range(200):
        image, whose = f"1.2.{number}", f"a{number}"
        rows.stored(Instance(image, "c", f"1.3.{number}", "1.8", "t", tmp_path / "x", 1, NOW, whose, "CT1"))  # type: ignore[call-arg]
        rows.left(AssociationEnd(whose, "CT1", True, NOW))
    rows.flush()
    assert len(written) <= 4
    series = ledger.open_series(frozenset())
    assert len(series) == 200
    assert all(each.evidence.released for each in series)
    ledger.close()
