"""kill -9 at every system call of a write: the instance is there whole, or not at all, and can be sent again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pacs_node.receive.spool import EARLY, Fate, Spool
from tests.factories import ct_series
from tests.unit.receive.conftest import Arrival, arrival, data_set_of, encoded

CALLS = ("mkdir", "open", "pwritev", "fsync", "fdatasync", "close", "ftruncate")
NEVER = 1 << 30


@pytest.fixture(scope="module")
def large() -> Arrival:
    """Longer than what waits in memory: it is written in two pieces and its head."""
    [image] = ct_series(shape=(1, 256, 256), name="large")
    assert len(encoded(image)) > EARLY
    return arrival(image, encoded(image))


def keep_until(call: int, when: str, spool: Spool, sent: Arrival) -> int:
    """Fork a process that keeps `sent` and dies at its `call`-th system call: before it, after it, or half way
    through a write. Returns the signal that ended it; the number of calls it made, when it lived."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    made = 0

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def made_mortal(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == call and when == "half" and real.__name__ == "pwritev":
                file, views, at = arguments
                whole = b"".join(map(bytes, views))
                real(file, [whole[: len(whole) // 2]], at)
            if made == call and when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if made == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return made_mortal

    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name)))
    sent.brought_to(spool, 1 << 16)
    os._exit(made)


@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("second", [False, True])
def test_killed_at_every_call(tmp_path: Path, image: Dataset, large: Arrival, when: str, second: bool) -> None:
    """second: another image of the series is there already, in a pack that another process has written."""

    def spool(name: str) -> Spool:
        made = Spool(tmp_path / name, 0)
        if second:
            other = arrival(image, encoded(image)).brought_to(made)
            assert other.fate is Fate.NEW
        return made

    last = keep_until(NEVER, when, spool("lived"), large)
    assert last > 5
    there = []
    for call in range(1, last + 1):
        root = tmp_path / f"spool-{call}"
        assert keep_until(call, when, spool(root.name), large) == -signal.SIGKILL, f"call {call} did not kill it"
        restarted = Spool(root, 0)
        found = {each.sop_instance_uid: data_set_of(each) for each in restarted.scan()}
        assert found.pop(str(image.SOPInstanceUID), None) == (encoded(image) if second else None)
        assert list(found.values()) in ([], [large.data_set])
        assert large.brought_to(restarted).fate is (Fate.SAME if found else Fate.NEW)
        assert list((root / "unfinished").iterdir()) == list((root / "unreadable").iterdir()) == []
        there.append(bool(found))
    assert there == sorted(there), "once it is there, it stays"
    assert there[0] is False
    assert there[-1] is True
