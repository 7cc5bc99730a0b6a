"""Something done again and again in a thread of its own, which outlives its own errors and tells about them."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog

from pacs_node.errors import NodeError, Told

log = structlog.get_logger()

OVERDUE = 5  # intervals without a finished tick (and at least OVERDUE_S) are trouble
OVERDUE_S = 60.0
SAID_AGAIN_S = 60.0  # a loop that goes on failing alike says so this often
AGAIN_S = 1.0  # after its first failure a loop tries again so soon, then twice as late each time, up to its interval


class Loop:
    """Calls `tick` every `every_s` seconds; sooner when woken, or when the tick answers after how many seconds.

    One that raises is logged, and the next one comes soon: the trouble may be over long before the interval is.
    """

    def __init__(self, name: str, tick: Callable[[], float | None], every_s: float) -> None:
        self.name, self._tick, self._every_s = name, tick, every_s
        self._stop, self._wake = threading.Event(), threading.Event()
        self._ticker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._thread = threading.Thread(target=self._run, name=f"{name}-loop", daemon=True)
        self._failure: str | None = None
        self._failures = 0  # since a tick succeeded
        self._said: tuple[str, float] | None = None  # what was logged last of its failing, and when
        self._last = time.monotonic()

    def start(self) -> None:
        self._last = time.monotonic()
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """Returns when the tick in hand has ended."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._ticker.shutdown(wait=True)

    @property
    def trouble(self) -> str | None:
        """None, or what is wrong, in words, for /health."""
        if self._failure is not None:
            return self._failure
        return self.late(max(OVERDUE_S, OVERDUE * self._every_s))

    def late(self, after_s: float) -> str | None:
        """None, or that no tick has ended for longer than this."""
        silent_s = time.monotonic() - self._last
        if self._thread.is_alive() and silent_s > after_s:
            return f"{self.name} has not come round for {silent_s:.0f} s"
        return None

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            wait_s = self._every_s
            try:
                sooner_s = self._ticker.submit(self._tick).result()
                if sooner_s is not None:
                    wait_s = min(wait_s, max(0.0, sooner_s))
            except Exception as error:  # noqa: BLE001 - the edge of the loop: it goes on, and /health says what fails
                self._failed(error)
                wait_s = min(wait_s, AGAIN_S * 2 ** min(self._failures, 20))
                self._failures += 1
            else:
                self._failures = 0
                self._recovered()
            self._last = time.monotonic()
            self._wake.wait(wait_s)

    def _failed(self, error: Exception) -> None:
        self._failure = f"{self.name} fails: {describe(error)}"
        with suppress(Exception):  # whatever the error holds: what tells of it must not end the loop
            told = Told.of(error)
            now = time.monotonic()
            if self._said is not None and self._said[0] == told.words and now - self._said[1] < SAID_AGAIN_S:
                return
            self._said = told.words, now
            trace = {} if isinstance(error, NodeError) else {"trace": told.trace}  # ours say all in their words
            log.error("loop failed, goes on", loop=self.name, error=told.words, **trace)

    def _recovered(self) -> None:
        self._failure = None
        if self._said is not None:
            self._said = None
            with suppress(Exception):  # as above
                log.info("loop is well again", loop=self.name)


def describe(error: BaseException) -> str:
    """Kind and place of an error, for /health, which anybody may read. The log has its words."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {last[0].filename.rpartition('/')[2]}:{last[0].lineno}" if last else ""
    return f"{type(error).__name__}{place}"
