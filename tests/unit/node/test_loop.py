"""A loop outlives its errors, and says that it has some."""

from __future__ import annotations

import threading

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
