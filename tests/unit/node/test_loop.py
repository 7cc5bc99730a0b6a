"""A loop outlives its errors, and says that it has some."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from pacs_node.loop import Loop
from tests.harness import wait_for


def test_a_failing_tick_is_not_the_last() -> None:
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) < 3:
            raise RuntimeError("Doe^John is 43")

    loop = Loop("sweeper", tick, 0.02)
    loop.start()
    wait_for(lambda: len(ticks) >= 4 and loop.trouble is None, 10, "ticks after the failing ones")
    loop.stop()
    count = len(ticks)
    assert not loop._thread.is_alive()
    assert len(ticks) == count


def test_one_that_failed_tries_again_long_before_its_interval_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """/health must not say for an hour what was over in a second."""
    monkeypatch.setattr("pacs_node.loop.AGAIN_S", 0.01)
    at: list[float] = []

    def tick() -> None:
        at.append(time.monotonic())
        if len(at) < 5:
            raise ConnectionError("the database does not answer")

    loop = Loop("retention", tick, 3600)
    loop.start()
    wait_for(lambda: len(at) == 5 and loop.trouble is None, 30, "the tick after the failing ones")
    loop.stop()
    waits = [after - before for before, after in itertools.pairwise(at)]
    assert all(wait >= 0.01 * 2**number for number, wait in enumerate(waits)), "a database that is away is not hammered"


def test_trouble_is_told_without_the_error_text() -> None:
    seen = threading.Event()

    def tick() -> None:
        try:
            raise RuntimeError("Doe^John is 43")
        finally:
            seen.set()

    loop = Loop("sweeper", tick, 5)
    loop.start()
    seen.wait(5)
    said = wait_for(lambda: loop.trouble, 5, "trouble")
    loop.stop()
    assert said.startswith("sweeper fails: RuntimeError at test_loop.py:")
    assert "Doe" not in said


def test_one_that_hangs_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    on, now = threading.Event(), [0.0]
    monkeypatch.setattr("pacs_node.loop.time.monotonic", lambda: now[0])
    loop = Loop("sweeper", lambda: None if on.wait(30) else 0.0, 1)
    loop.start()
    now[0] = 6.0
    assert loop.late(7.0) is None
    assert (loop.late(5.0), loop.trouble) == ("sweeper has not come round for 6 s", None)
    on.set()
    loop.stop()
    assert loop.late(5.0) is None


class Unspeakable(Exception):
    """Not even its words can be had."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("what", ["its words", "the log"])
def test_what_cannot_be_told_ends_no_loop(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    if what == "the log":
        monkeypatch.setattr("pacs_node.loop.log.error", full)
    ticks = []

    def tick() -> None:
        ticks.append(1)
        raise Unspeakable if what == "its words" else RuntimeError("the engine is cold")

    loop = Loop("sweeper", tick, 0.02)
    loop.start()
    wait_for(lambda: len(ticks) > 3, 10, "ticks after the failing ones")
    assert loop.trouble is not None
    loop.stop()


def test_a_tick_may_ask_for_the_next_one() -> None:
    ticks = []

    def tick() -> float | None:
        ticks.append(1)
        return 0.01 if len(ticks) < 3 else None

    loop = Loop("sweeper", tick, 600)
    loop.start()
    wait_for(lambda: len(ticks) == 3, 10, "the ticks asked for")
    loop.stop()
