"""One system call fails while a series goes through a whole node: some of all the faults that `make faults` tries.

Drawn by FAULT_SEED, or always the same ones.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fault.calls import why_not
from tests.fault.nth import HELD_S, Bench, Class, Fault, faults, sample

SEED, MOST = int(os.environ.get("FAULT_SEED", "1")), 9
COUNTED: Counter[Class] = Counter({("sync", "ledger"): 3, ("send", "honest"): 4, ("thread", "node"): 2})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Bench(tmp_path_factory.mktemp("nth")) as bench:
        yield bench


def test_all_that_was_acknowledged_is_delivered_once_whatever_fails(bench: Bench) -> None:
    """One after the other, in one node that is never started again."""
    drawn = sample(bench.whole(), SEED, MOST)
    failed = 0
    for fault in drawn:
        assert (wrong := bench.tried(fault)) is None, f"{fault}: {wrong}\n{bench.node.log()}"
        failed += bool(bench.failing.hits)
    assert failed > len(drawn) / 2, "most of them came to pass"


@pytest.mark.parametrize(
    ("deeds", "part", "n", "error", "for_s"),
    [
        ({"write", "sync"}, "results", 1, errno.ENOSPC, HELD_S),  # more often than an inference whose process dies
        ({"write"}, "work", 1, errno.EIO, 0.0),  # an image is not copied for the inference
        ({"write", "sync"}, "engine", 20, errno.EIO, HELD_S),
        ({"write"}, "log", 1, errno.ENOSPC, HELD_S),
    ],
)
def test_what_was_wrong_once(bench: Bench, deeds: set[str], part: str, n: int, error: int, for_s: float) -> None:
    fault = Fault(frozenset((deed, part) for deed in deeds), n, error, for_s)
    assert (wrong := bench.tried(fault)) is None, f"{wrong}\n{bench.node.log()}"
    assert bench.failing.hits or part == "log"


def test_whatever_failed_every_line_of_the_log_is_one_json_object(bench: Bench) -> None:
    lines = (bench.node.folder / "node.log").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_every_call_of_every_class_is_among_the_faults() -> None:
    found = list(faults(COUNTED))
    assert {(min(each.of), each.n) for each in found if len(each.of) == 1 and not each.for_s} == {
        (of, n) for of, count in COUNTED.items() for n in range(1, count + 1)
    }
    assert {min(each.of) for each in found if each.for_s} == {("sync", "ledger"), ("send", "honest")}
    assert {min(each.of) for each in sample(COUNTED, 1, 3)} == COUNTED.keys()
