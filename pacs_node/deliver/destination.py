"""What every destination promises, and what an answer to C-STORE means for the job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import Protocol

from pacs_node.errors import GiveUp, TryAgain
from pacs_node.records import Package, Receipt

Now = Callable[[], datetime]


class Destination(Protocol):
    """Where results go. Delivering the same package again does no harm."""

    name: str

    def deliver(self, package: Package, now: Now) -> list[Receipt]:
        """Hand over every object; one Receipt each, all of them stored.

        Raises Deferred when trying again may help, else Undeliverable; both carry the receipts gained so far.
        """


class Deferred(TryAgain):
    """The destination is down, full or busy."""


class Undeliverable(GiveUp):
    """The destination will not take it, however often it is sent."""


class Outcome(Enum):
    STORED = "stored"
    CHANGED = "stored with a change"
    AGAIN = "not now"
    NEVER = "refused"


# first status, last status, outcome, meaning
STATUSES: tuple[tuple[int, int, Outcome, str], ...] = (
    (0x0000, 0x0000, Outcome.STORED, "Success"),  # PS3.4 Table B.2-1, as all without another cite
    (0xB000, 0xB000, Outcome.CHANGED, "Coercion of Data Elements"),
    (0xB006, 0xB006, Outcome.CHANGED, "Elements Discarded"),
    (0xB007, 0xB007, Outcome.CHANGED, "Data Set does not match SOP Class"),
    (0xA700, 0xA7FF, Outcome.AGAIN, "Refused: Out of Resources"),
    (0xA900, 0xA9FF, Outcome.NEVER, "Error: Data Set does not match SOP Class"),
    (0xC000, 0xCFFF, Outcome.NEVER, "Error: Cannot understand"),
    (0x0110, 0x0110, Outcome.AGAIN, "Processing failure"),  # PS3.7 C.5.16
    (0x0111, 0x0111, Outcome.STORED, "Duplicate SOP Instance: it is there already"),  # PS3.7 C.5.5
    (0x0117, 0x0117, Outcome.NEVER, "Invalid SOP Instance"),  # PS3.7 C.5.9
    (0x0122, 0x0122, Outcome.NEVER, "Refused: SOP Class not supported"),  # PS3.7 C.5.6
    (0x0124, 0x0124, Outcome.NEVER, "Refused: Not authorized"),  # PS3.7 C.5.24
    (0x0210, 0x0210, Outcome.AGAIN, "Duplicate invocation"),  # PS3.7 C.5.7
    (0x0211, 0x0211, Outcome.NEVER, "Unrecognized operation"),  # PS3.7 C.5.23
    (0x0212, 0x0212, Outcome.NEVER, "Mistyped argument"),  # PS3.7 C.5.15
    (0x0213, 0x0213, Outcome.AGAIN, "Resource limitation"),  # PS3.7 C.5.20
)


def outcome_of(status: int) -> tuple[Outcome, str]:
    """What a C-STORE status means, and its name. An unknown failure is tried again: the job's attempts are limited."""
    for first, last, outcome, meaning in STATUSES:
        if first <= status <= last:
            return outcome, meaning
    if 0xB000 <= status <= 0xBFFF:  # Warning: PS3.7 C.3
        return Outcome.CHANGED, "a warning that PS3.4 does not list"
    return Outcome.AGAIN, "a failure that PS3.4 does not list"
