"""The form in which each network is served: measured once, written down, and kept while what it rests on is the same.

The same files give the same answer for as long as a choice stands, because nothing is timed again meanwhile. What a
choice rests on is in its key: weights, sizes, processor, threads, versions. Importing this loads no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dicom_sr.typed import WrongType, made

log = logging.getLogger(__name__)

RULES = 1  # of measuring and choosing: another number, and everything is measured again
GAIN = 0.1  # what a less exact form must save of the time of a more exact one
ROUNDS = 3  # of all forms in turn; the least time of each counts


@dataclass(frozen=True)
class Choice:
    """The form of one network on one kind of machine, and what it was chosen by."""

    key: str
    network: str  # "ResidualUNet 3f2a91bc"
    form: str  # "bf16 openvino"
    on: str  # "cpu: AMD EPYC 9654, 2 threads; torch 2.13.0, openvino 2026.1.0"
    seconds: Mapping[str, float]  # form -> least time of a batch
    why_not: Mapping[str, str]  # form -> why it is not served, however fast
    measured_at: str  # ISO 8601


@dataclass
class Choosing:
    """While pipelines are built: the choices that are kept, whether others may be made, and those that were used."""

    kept: Mapping[str, Choice]
    measure: bool = False
    used: list[Choice] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # the form of each network in words, measured or not


# A context, not an argument: pipelines, ours and those of others, make their runtime themselves
_CHOOSING: ContextVar[Choosing | None] = ContextVar("choosing", default=None)


def current() -> Choosing | None:
    return _CHOOSING.get()


@contextmanager
def choosing(kept: Mapping[str, Choice], *, measure: bool = False) -> Iterator[Choosing]:
    """`with choosing(kept) as choices:` around building and warming a pipeline."""
    now = Choosing(kept, measure)
    token = _CHOOSING.set(now)
    try:
        yield now
    finally:
        _CHOOSING.reset(token)


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([RULES, *parts], sort_keys=True, default=str).encode()).hexdigest()[:32]


def timed(
    forms: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The least seconds of each; in turn, so that what else the machine does meets all of them."""
    least: dict[str, float] = {}
    for run in forms.values():
        run()  # libraries choose and allocate on the first call
    for _ in range(ROUNDS):
        for name, run in forms.items():
            began = clock()
            run()
            least[name] = min(least.get(name, float("inf")), clock() - began)
    return least


def best(seconds: Mapping[str, float], exactest_first: Sequence[str]) -> str:
    """The exactest form that no other beats by GAIN."""
    limit = min(seconds.values()) / (1 - GAIN)
    return next(name for name in exactest_first if name in seconds and seconds[name] <= limit)


def load(path: Path | None) -> dict[str, Choice]:
    """The choices that are kept there, by key. What cannot be read is measured again."""
    try:
        told = json.loads(path.read_text()) if path is not None else []
        choices: list[Choice] = [made(Choice, each, {}) for each in told]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, WrongType) as error:
        log.warning("kept forms cannot be read: %s: %s", path, type(error).__name__)
        return {}
    return {choice.key: choice for choice in choices}


def keep(
    path: Path, choices: Sequence[Choice], write: Callable[[Path, bytes], None], *, anew: bool = False
) -> dict[str, Choice]:
    """What is kept now: of two workers who measured the same, the first has chosen. anew: these take its place.

    write: puts bytes into a file, whole. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = load(path)
        new = {choice.key: choice for choice in choices}
        kept = {**before, **new} if anew else {**new, **before}
        if kept != before:
            write(path, json.dumps([asdict(each) for each in kept.values()], indent=1).encode())
    return kept
