"""The status table against PS3.4 Table B.2-1 and PS3.7 Annex C, read by hand."""

from itertools import pairwise

import pytest

from pacs_node.deliver.destination import STATUSES, Deferred, Outcome, Undeliverable, outcome_of
from pacs_node.errors import GiveUp, TryAgain

BY_HAND = {
    0x0000: Outcome.STORED,
    0xB000: Outcome.CHANGED,
    0xB006: Outcome.CHANGED,
    0xB007: Outcome.CHANGED,
    0xB123: Outcome.CHANGED,
    0xA700: Outcome.AGAIN,
    0xA701: Outcome.AGAIN,
    0xA7FF: Outcome.AGAIN,
    0xA900: Outcome.NEVER,
    0xA9FF: Outcome.NEVER,
    0xC000: Outcome.NEVER,
    0xC211: Outcome.NEVER,
    0xCFFF: Outcome.NEVER,
    0x0122: Outcome.NEVER,
    0x0124: Outcome.NEVER,
    0x0213: Outcome.AGAIN,
    0x0110: Outcome.AGAIN,
    0xA801: Outcome.AGAIN,  # in no table
    0x0001: Outcome.AGAIN,  # in no table for C-STORE
}


@pytest.mark.parametrize("status", BY_HAND, ids=lambda status: f"0x{status:04X}")
def test_each_status(status: int) -> None:
    outcome, meaning = outcome_of(status)
    assert outcome is BY_HAND[status]
    assert meaning


def test_no_status_has_two_meanings() -> None:
    ranges = sorted((first, last) for first, last, _, _ in STATUSES)
    assert all(first <= last for first, last in ranges)
    assert all(last < following for (_, last), (following, _) in pairwise(ranges))


def test_the_consequences_are_those_the_jobs_know() -> None:
    assert issubclass(Deferred, TryAgain)
    assert issubclass(Undeliverable, GiveUp)
    assert Deferred("down").receipts == ()
