"""Where the time of one image goes, in the thread that receives it, over one association: python -m tests.bench.where

Each part is wrapped by a stopwatch, which costs about a microsecond itself. What waits for the sender is told from what
copies its bytes by the processor time of the thread. storescp's time for an image is measured in the same run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from pacs_node import pack
from pacs_node.ledger import Ledger
from pacs_node.receive import spool
from pacs_node.receive.connection import Connection
from pacs_node.receive.upper_layer import UpperLayer
from tests.bench.receive import ROUNDS, Case, make_images, ours, seconds_to_send, serve, storescp
from tests.bench.record import record

CASES = (
    Case("300 of 512 KiB, 1 association", 300, 512, 1),
    Case("5000 of 20 KiB, 1 association", 5000, 100, 1),
)
WAITING, READING = "waiting for the sender", "copying from the socket"
REST = "Python around it"
PART = "part: "  # how a part is called among what the listener cost


class Stopwatch:
    """Seconds by part, of the thread that receives; a part inside another counts once, as itself."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def part(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.spent[name] += took - self._inner.pop()
                self._inner[-1] += took

        return timed

    def reading(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began, busy = time.perf_counter(), time.thread_time()
            try:
                return call(*args)
            finally:
                took, busy = time.perf_counter() - began, time.thread_time() - busy
                self.spent[READING] += busy
                self.spent[WAITING] += took - busy
                self._inner[-1] += took

        return timed

    class Digest:
        """xxHash's object takes no attributes."""

        def __init__(self, stopwatch: Stopwatch, made: Any) -> None:
            self.update = stopwatch.part("checksum", made.update)
            self.intdigest = made.intdigest


def serve_timed(folder: Path, told: Pipe) -> None:
    """The listener of the other benchmark, under the stopwatch; says at its end where the time went."""
    watch = Stopwatch()
    made = pack.xxh3_64

    def timed(of: Any, name: str, part: str) -> None:
        setattr(of, name, watch.part(part, getattr(of, name)))

    timed(pack, "write_at", "write to the page cache")
    timed(pack, "start_writeback", "begin to write back")
    timed(pack.os, "fdatasync", "sync")
    timed(spool.Spool, "check_space", "room on the disk")
    timed(spool.Start, "of", "header")
    timed(spool.Incoming, "_identity", "header")
    timed(spool.Spool, "held", "known already?")
    timed(Ledger, "instance", "known already?")
    timed(Connection, "send", "answer")
    pack.Pack.there = property(watch.part("is the pack there", pack.Pack.there.fget))  # type: ignore[assignment,method-assign,attr-defined,arg-type]
    pack.xxh3_64 = lambda *args: Stopwatch.Digest(watch, made(*args))  # type: ignore[assignment,misc]
    Connection._fill = watch.reading(Connection._fill)  # type: ignore[method-assign]
    UpperLayer._read = watch.part(REST, UpperLayer._read)  # type: ignore[method-assign]
    serve(folder, told, lambda: {f"{PART}{name}": seconds for name, seconds in watch.spent.items()})


def measure(case: Case) -> dict[str, float]:
    """Milliseconds of one image by part, medians of the rounds."""
    found: list[dict[str, float]] = []
    whole: dict[str, list[float]] = {"storescp": [], "ours": []}
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        make_images(base / "images", case)
        for number in range(ROUNDS):
            for name, server in (("storescp", storescp), ("ours", partial(ours, serve=serve_timed))):
                folder = base / f"{name}{number}"
                folder.mkdir()
                with server(folder, case, found if name == "ours" else []) as running:
                    whole[name].append(seconds_to_send(base / "images", running, case))
    names = [name for name in found[0] if name.startswith(PART)]
    parts = {name.removeprefix(PART): statistics.median(each.get(name, 0.0) for each in found) for name in names}
    return {
        **{part: seconds / case.images * 1000 for part, seconds in sorted(parts.items(), key=lambda each: -each[1])},
        **{f"{name}, whole": statistics.median(each) / case.images * 1000 for name, each in whole.items()},
    }


def main() -> None:
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    for case in CASES:
        figures |= {f"{case.name}: {part}, ms": ms for part, ms in measure(case).items()}
    record("where", figures)


if __name__ == "__main__":
    main()
