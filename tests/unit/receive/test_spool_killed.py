"""kill -9 at every system call of a write: the instance is there whole, or not at all, and can be sent again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pacs_node.receive.spool import Fate, ReceivedInstance, Spool
from tests.unit.receive.conftest import arrival

CALLS = ("mkdir", "open", "writev", "fsync", "close", "rename")
LAST = 11  # mkdir; open, fsync, close of instances/; open, writev, fsync, close of the file; rename; open, fsync


def keep_until(call: int, when: str, spool: Spool, sent: ReceivedInstance) -> int:
    """Fork a process that keeps `sent` and dies at its `call`-th system call: before it, after it, or half way
    through a write. Returns the signal that ended it, 0 when it lived."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    made = 0

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def made_mortal(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == call and when == "half" and real.__name__ == "writev":
                head, data_set = arguments[1]
                real(arguments[0], [head, data_set[:100]])
            if made == call and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if made == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return made_mortal

    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name)))
    spool.keep(sent)
    os._exit(0)


@pytest.mark.parametrize(
    ("when", "calls"), [("before", range(1, LAST + 1)), ("half", [6]), ("after", range(1, LAST + 1))]
)
def test_killed_at_every_call(tmp_path: Path, image: Dataset, data_set: bytes, when: str, calls: list[int]) -> None:
    there = []
    for call in calls:
        root = tmp_path / f"spool-{call}"
        sent = arrival(image, data_set)
        assert keep_until(call, when, Spool(root, 0), sent) == -signal.SIGKILL, f"call {call} did not kill it"
        restarted = Spool(root, 0)
        found = list(restarted.scan())
        assert [instance.path.read_bytes()[-len(data_set) :] for instance in found] in ([], [data_set])
        assert restarted.keep(sent).fate is (Fate.SAME if found else Fate.NEW)
        assert list((root / "unfinished").iterdir()) == list((root / "unreadable").iterdir()) == []
        there.append(bool(found))
    assert there == sorted(there), "once it is there, it stays"
    assert set(there) == ({False} if when == "half" else {False, True})


def test_the_calls_are_all_there_are(tmp_path: Path, image: Dataset, data_set: bytes) -> None:
    """The last call but one closes the folder; killing after the end must find nothing more to kill at."""
    spool = Spool(tmp_path / "spool", 0)
    assert keep_until(LAST + 2, "before", spool, arrival(image, data_set)) == 0
