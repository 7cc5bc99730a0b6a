"""Which job of a queue is next: STAT before routine, the senders in turn, and none waits for ever.

A queue is a kind of job and a destination. In each class of priority a job has a turn: one behind the last of the same
sender, and none before the turn that is on. So a sender with ten thousand series has one in each round, and the single
series of another is in the round that is on (start-time fair queueing: Goyal, Vin and Cheng, 1996). What more urgent
jobs overtake for too long gets one start of every EVERY; but a shadow is owed none, however long it waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pacs_node.records import NEXT, PRIORITY_NAMES, SHADOW, Job, moment

EVERY = 4  # starts: one of so many is for a job that has been overtaken for too long


@dataclass(frozen=True)
class Next:
    """A waiting job in its place, and why it is there."""

    job: Job
    why: str


def turn_of(on: int, latest: int | None) -> int:
    """The turn of a new job. on: the turn that has come last; latest: of the sender's jobs of this class."""
    return on if latest is None else max(on, latest + 1)


def in_order(
    waiting: Iterable[Job], overtaken: Mapping[int, int], now: datetime, overtaken_s: float, most: int
) -> list[Next]:
    """The first `most` of the jobs that wait in one queue, as they will begin if no other comes.

    overtaken   priority -> how many more urgent jobs have begun since one of this class did
    """
    classes: dict[int, deque[Job]] = {}
    for job in sorted(waiting, key=lambda each: (each.turn, each.created_at, each.id)):
        classes.setdefault(job.priority, deque()).append(job)
    behind, found = dict(overtaken), list[Next]()
    long_ago = now - timedelta(seconds=overtaken_s)
    while classes and len(found) < most:
        first = min(classes)
        # counted for all classes at once: several that are owed one share the starts
        may = all(behind.get(each, 0) >= EVERY - 1 for each in {*behind, *classes} if first < each < SHADOW)
        may = may and first != NEXT  # a person wants that one first
        less = [(each, jobs[0]) for each, jobs in classes.items() if first < each < SHADOW]
        owed = [each for each, oldest in less if may and oldest.created_at <= long_ago]
        chosen = min(owed, key=lambda each: (classes[each][0].created_at, each), default=first)
        job = classes[chosen].popleft()
        found.append(Next(job, _why(job, owed=bool(owed))))
        behind = begun(behind, chosen, classes)
        if not classes[chosen]:
            del classes[chosen]
    return found


def begun(overtaken: Mapping[int, int], priority: int, classes: Iterable[int]) -> dict[int, int]:
    """How often each class was overtaken, after a job of this priority has begun."""
    after = {each: overtaken.get(each, 0) + (each > priority) for each in {*overtaken, *classes}}
    return after | {priority: 0}


def _why(job: Job, *, owed: bool) -> str:
    kind = PRIORITY_NAMES.get(job.priority, f"priority {job.priority}")
    if owed:
        since = moment(job.created_at)
        return f"{kind}, waiting since {since}: one start of {EVERY} is for what more urgent jobs overtake"
    if job.priority == NEXT:
        return "next, because a person wants it so"
    return f"{kind}, turn {job.turn} of {job.sender or 'what is run again'}"
