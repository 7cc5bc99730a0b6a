"""A series closes on evidence, in words, and never sooner for weaker evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacs_node.assemble.series import Close, Wait, decide
from pacs_node.records import Evidence

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAITS = {"quiet_s": 10.0, "quiet_unreleased_s": 60.0, "max_wait_s": 900.0}

RELEASED = Evidence(last_arrival=NOON, arrived=85, released=True)
CONNECTED = Evidence(last_arrival=NOON, arrived=85, open_associations=frozenset({"a1"}))
BROKEN_OFF = Evidence(last_arrival=NOON, arrived=85)
COMPLETE = replace(CONNECTED, expected=85, expected_from="pacs")
MORE = replace(RELEASED, expected=84)
SHORT = replace(RELEASED, arrived=87, expected=100, expected_from="pacs")
ONE = replace(RELEASED, arrived=1)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("evidence", "closes_after_s", "because"),
    [
        (RELEASED, 10, "85 images arrived, the sender released its association, and nothing came for 10 s"),
        (ONE, 10, "1 image arrived, the sender released its association, and nothing came for 10 s"),
        (CONNECTED, 60, "85 images arrived, the sender is still connected, and nothing came for 60 s"),
        (
            BROKEN_OFF,
            60,
            "85 images arrived, the sender broke off without releasing its association, and nothing came for 60 s",
        ),
        (SHORT, 900, "87 of 100 images that pacs announced arrived, and nothing came for 900 s"),
        (COMPLETE, 0, "all 85 images that pacs announced arrived"),
        (MORE, 0, "all 84 images that the sending peer announced arrived, and 1 more"),
    ],
)
def test_what_closes_a_series_and_when(evidence: Evidence, closes_after_s: float, because: str) -> None:
    assert decide(evidence, after(closes_after_s), **WAITS) == Close(because)
    if closes_after_s:
        early = decide(evidence, after(closes_after_s - 0.001), **WAITS)
        assert isinstance(early, Wait)
        assert early.until == after(closes_after_s)


def test_waiting_says_what_it_waits_for() -> None:
    waiting = decide(SHORT, after(1), **WAITS)
    assert waiting == Wait(
        after(900), "87 of 100 images that pacs announced arrived; closes after 900 s without another"
    )


def test_a_longer_quiet_time_is_never_undercut_by_weaker_evidence() -> None:
    waits = {"quiet_s": 100.0, "quiet_unreleased_s": 60.0, "max_wait_s": 5.0}
    for evidence in (CONNECTED, BROKEN_OFF, SHORT):
        waiting = decide(evidence, NOON, **waits)
        assert isinstance(waiting, Wait)
        assert waiting.until == after(100)


counts = st.integers(1, 500)
evidences = st.builds(
    Evidence,
    last_arrival=st.integers(0, 10_000).map(after),
    arrived=counts,
    open_associations=st.frozensets(st.sampled_from("abc")),
    released=st.booleans(),
    expected=st.none() | counts,
    expected_from=st.none() | st.just("pacs"),
)
waits_of_any_length = st.fixed_dictionaries({key: st.floats(0.1, 5000) for key in WAITS})
moments = st.floats(-100, 30_000).map(after)


@given(evidences, waits_of_any_length, moments, st.floats(0, 10_000))
def test_once_closed_it_stays_closed(evidence: Evidence, waits: dict[str, Any], now: datetime, later: float) -> None:
    if isinstance(decide(evidence, now, **waits), Close):
        assert decide(evidence, now + timedelta(seconds=later), **waits) == decide(evidence, now, **waits)


@given(evidences, waits_of_any_length, moments)
def test_it_closes_exactly_when_it_said(evidence: Evidence, waits: dict[str, Any], now: datetime) -> None:
    decision = decide(evidence, now, **waits)
    if isinstance(decision, Wait):
        assert now < decision.until
        assert isinstance(decide(evidence, decision.until, **waits), Close)
        assert isinstance(decide(evidence, decision.until - timedelta(microseconds=1), **waits), Wait)


@given(evidences, waits_of_any_length, moments)
def test_never_within_the_quiet_time_unless_complete(evidence: Evidence, waits: dict[str, Any], now: datetime) -> None:
    complete = evidence.expected is not None and evidence.arrived >= evidence.expected
    quiet = timedelta(seconds=waits["quiet_s"])
    assert isinstance(decide(evidence, now, **waits), Close) >= complete
    if not complete and now < evidence.last_arrival + quiet:
        assert isinstance(decide(evidence, now, **waits), Wait)


@given(evidences, waits_of_any_length, moments, st.floats(0, 1000))
def test_another_image_never_closes_an_uncounted_series(
    evidence: Evidence, waits: dict[str, Any], now: datetime, later: float
) -> None:
    """A newer last arrival can only postpone."""
    newer = replace(
        evidence,
        last_arrival=evidence.last_arrival + timedelta(seconds=later),
        arrived=evidence.arrived + 1,
        expected=None,
    )
    if isinstance(decide(replace(evidence, expected=None), now, **waits), Wait):
        assert isinstance(decide(newer, now, **waits), Wait)


@given(evidences, waits_of_any_length, moments)
def test_release_never_waits_longer_than_a_sender_still_connected(
    evidence: Evidence, waits: dict[str, Any], now: datetime
) -> None:
    connected = replace(evidence, open_associations=frozenset({"a"}))
    released = replace(evidence, open_associations=frozenset(), released=True)
    if isinstance(decide(connected, now, **waits), Close):
        assert isinstance(decide(released, now, **waits), Close)


@given(evidences, waits_of_any_length, moments, st.integers(-10_000, 10_000))
def test_only_differences_of_time_matter(
    evidence: Evidence, waits: dict[str, Any], now: datetime, shift_s: int
) -> None:
    shift = timedelta(seconds=shift_s)
    shifted = decide(replace(evidence, last_arrival=evidence.last_arrival + shift), now + shift, **waits)
    assert type(shifted) is type(decide(evidence, now, **waits))
