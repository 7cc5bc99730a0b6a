"""One system call fails while a series goes through a whole node: some of all the faults that `make faults` tries.

Drawn by FAULT_SEED, or always the same ones.
"""

from __future__ import annotations

import errno
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.calls import why_not
from tests.fault.nth import DEEDS, HELD_S, Bench, Class, Fault, faults, in_turn, sample, told_s

AT_ONCE = 4  # faults in one series
SEED = int(os.environ.get("FAULT_SEED", "1"))
COUNTED: Counter[Class] = Counter(
    {("sync", "ledger"): 3, ("sync", "pack"): 1, ("send", "honest"): 4, ("thread", "node"): 2, ("write", "log"): 2}
)


LONG_S = told_s(("lock", "engine")) + 4.0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Bench(tmp_path_factory.mktemp("nth")) as bench:
        yield bench


def test_all_that_was_acknowledged_is_delivered_once_whatever_fails(bench: Bench) -> None:
    """In one node that is never started again."""
    drawn = sample(bench.whole(), SEED)
    failed = 0
    for some in (drawn[at : at + AT_ONCE] for at in range(0, len(drawn), AT_ONCE)):
        assert (wrong := bench.tried(*some)) is None, f"{', '.join(map(str, some))}: {wrong}\n{bench.node.log()}"
        failed += bench.reached
    assert failed > len(drawn) / 2, "most of them came to pass"


def test_a_disk_that_is_full_for_some_seconds(bench: Bench) -> None:
    full = [fault for fault in faults(bench.whole()) if len(fault.of) > 1]
    fault = random.Random(SEED).choice(full)
    assert (wrong := bench.tried(fault)) is None, f"{fault}: {wrong}\n{bench.node.log()}"


@pytest.mark.parametrize(
    ("deeds", "part", "n", "error", "for_s"),
    [
        ({"write", "sync"}, "results", 1, errno.ENOSPC, HELD_S),  # more often than an inference whose process dies
        ({"write"}, "work", 1, errno.EIO, 0.0),  # an image is not copied for the inference
        ({"write", "sync"}, "engine", 20, errno.EIO, HELD_S),
        ({"write"}, "log", 1, errno.ENOSPC, HELD_S),
        ({"read"}, "work", 20, errno.EIO, HELD_S),  # the inference process is not given the copy
        ({"open"}, "pack", 4, errno.EIO, HELD_S),  # a series that cannot be copied is judged later, not without images
        ({"name"}, "pack", 1, errno.ENOSPC, HELD_S),
        ({"sync"}, "pack", 1, errno.EIO, HELD_S),  # from here on: /health said "ok" all the while
        ({"accept"}, "sender", 1, errno.EMFILE, HELD_S),
        ({"connect"}, "honest", 1, errno.ECONNREFUSED, HELD_S),
        ({"lock"}, "engine", 5, errno.EAGAIN, LONG_S),
    ],
)
def test_what_was_wrong_once(bench: Bench, deeds: set[str], part: str, n: int, error: int, for_s: float) -> None:
    fault = Fault(frozenset((deed, part) for deed in deeds), n, error, for_s)
    assert (wrong := bench.tried(fault)) is None, f"{wrong}\n{bench.node.log()}"
    assert bench.reached or part == "log"


def test_whatever_failed_every_line_of_the_log_is_one_json_object(bench: Bench) -> None:
    lines = (bench.node.folder / "node.log").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_every_call_of_every_class_is_among_the_faults() -> None:
    found = list(faults(COUNTED))
    assert {(min(each.of), each.n, each.error) for each in found if len(each.of) == 1 and not each.for_s} == {
        (of, n, error) for of, count in COUNTED.items() for n in range(1, count + 1) for error in DEEDS[of[0]][1]
    }
    held = {(min(each.of), each.error) for each in found if each.for_s and len(each.of) == 1}
    assert held == {(of, error) for of in COUNTED if of[0] != "thread" for error in DEEDS[of[0]][1]}


def test_of_each_class_one_fault_comes_before_another_does() -> None:
    found = list(faults(COUNTED))
    ordered = in_turn(found, SEED)
    classes = {each.of for each in found}
    assert Counter(ordered) == Counter(found)
    assert {each.of for each in ordered[: len(classes)]} == classes


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_has_every_class_and_every_error_of_every_deed(seed: int) -> None:
    drawn = sample(COUNTED, seed)
    assert {min(fault.of) for fault in drawn} == COUNTED.keys()
    assert {(min(fault.of)[0], fault.error) for fault in drawn} == {
        (deed, error) for deed, _ in COUNTED for error in DEEDS[deed][1]
    }
    assert all(1 <= fault.n <= COUNTED[min(fault.of)] for fault in drawn)


def test_every_class_fails_with_every_error_over_the_seeds() -> None:
    drawn = {(min(fault.of), fault.error) for seed in range(50) for fault in sample(COUNTED, seed)}
    assert {(of, error) for of in COUNTED for error in DEEDS[of[0]][1]} <= drawn


SOMETHING = frozenset({("write", "results")})


@pytest.mark.parametrize(
    ("of", "error", "said", "moved_at", "wrong"),
    [
        (SOMETHING, errno.EIO, ["ok", "ok", "ok", "ok"], 9.0, True),
        (SOMETHING, errno.EIO, ["ok", "ok", "degraded", "ok"], 9.0, True),  # ok again, while it fails
        (SOMETHING, errno.EIO, ["ok", "ok", "degraded", "trouble"], 9.0, False),
        (SOMETHING, errno.EIO, ["ok", "ok", "no answer: ReadTimeout", "degraded"], 9.0, False),
        (SOMETHING, errno.EIO, ["ok", "ok", "ok", "ok"], 2.5, False),  # nothing waited for it
        (frozenset({("write", "log")}), errno.EIO, ["ok", "ok", "ok", "ok"], 9.0, False),
        (frozenset({("send", "sender")}), errno.EPIPE, ["ok", "ok", "ok", "ok"], 9.0, False),
        (frozenset({("sync", "engine")}), errno.EIO, ["ok", "ok", "ok", "ok"], 9.0, False),  # not for long enough
    ],
)
def test_what_health_says_while_something_fails_is_looked_at(
    tmp_path: Path, of: frozenset[Class], error: int, said: list[str], moved_at: float, wrong: bool
) -> None:
    """Asked each second, from 0.5 s on, while it failed from 0 to 4 s."""
    bench = Bench(tmp_path)
    fault = Fault(of, 1, error, HELD_S)
    bench.health.said = [(at + 0.5, at + 0.6, each, []) for at, each in enumerate(said)]
    assert bool(bench.not_told(fault, [0.1 * number for number in range(41)], moved_at)) == wrong
