"""No alarm at an hour at which a sender was always quiet; one within a bounded time for a sender that stops."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from pacs_node.silence_alarm import LEAST, WEEK, Fallen, fallen_silent, words

MONDAY = datetime(2026, 3, 2)
HOURS = st.sets(st.integers(0, 167), min_size=1, max_size=168)  # of the week


def habit(hours: set[int], an_hour: int, weeks: int, jitter: list[float]) -> list[datetime]:
    """Series of a sender that sends so many in each of these hours of the week, for so many weeks from MONDAY on, never
    at quite the same minute."""
    came = []
    for week in range(weeks):
        for hour in sorted(hours):
            for number in range(an_hour):
                late = jitter[(week * 31 + hour * 7 + number) % len(jitter)]
                minute = 60 * (number + late) / an_hour
                came.append(MONDAY + week * WEEK + timedelta(hours=hour, minutes=minute))
    return sorted(came)


JITTER = st.lists(st.floats(0, 0.99), min_size=1, max_size=20)


@given(HOURS, st.integers(1, 8), st.integers(3, 7), JITTER, st.floats(0, 3 * 168))
def test_no_alarm_at_an_hour_at_which_it_was_always_quiet(
    hours: set[int], an_hour: int, weeks: int, jitter: list[float], later_h: float
) -> None:
    came = habit(hours, an_hour, weeks, jitter)
    now = came[-1] + timedelta(hours=later_h)
    in_the_week = int((now - MONDAY) % WEEK / timedelta(hours=1))
    if in_the_week not in hours and (in_the_week - 1) % 168 not in hours:  # the last hour touches two of the clock
        assert fallen_silent(came, now) is None


@given(HOURS, st.integers(1, 8), st.integers(4, 7), JITTER, st.floats(0, 1))
def test_a_sender_that_stops_is_missed_in_a_bounded_time(
    hours: set[int], an_hour: int, weeks: int, jitter: list[float], part: float
) -> None:
    """At the latest once LEAST + 2 of its busy hours have gone by, or a week."""
    came = habit(hours, an_hour, weeks, jitter)
    stopped = came[: max(len(came) - int(part * len(hours) * an_hour), len(hours) * an_hour * 3 + 1)]
    last, alarms = stopped[-1], []
    busy = 0
    for hour in range(1, 169):
        now = last + timedelta(hours=hour)
        busy += int((now - MONDAY) % WEEK / timedelta(hours=1)) in hours
        if fallen_silent(stopped, now) is not None:
            alarms.append(now)
        if busy >= LEAST + 2:
            assert alarms, (last, now)
            return
    if len(hours) * an_hour > LEAST + 2:
        assert alarms


@given(HOURS, st.integers(1, 8), st.integers(0, 12), JITTER)
def test_one_that_goes_on_as_ever_raises_none(hours: set[int], an_hour: int, weeks: int, jitter: list[float]) -> None:
    came = habit(hours, an_hour, weeks, jitter)
    for number in range(max(0, len(came) - len(hours) * an_hour), len(came)):
        assert fallen_silent(came[:number], came[number] - timedelta(seconds=1)) is None or an_hour == 1


def test_it_says_since_when_and_how_much_is_usual() -> None:
    working = {day * 24 + hour for day in range(5) for hour in range(7, 19)}
    came = habit(working, 6, 5, [0.5])
    stopped = [at for at in came if at < MONDAY + 4 * WEEK + timedelta(hours=9, minutes=41)]
    now = MONDAY + 4 * WEEK + timedelta(hours=11)
    fallen = fallen_silent(stopped, now)
    assert fallen == Fallen(stopped[-1], fallen.an_hour if fallen else 0)
    assert fallen is not None
    since = fallen.since.replace(tzinfo=timezone(timedelta(hours=2)))
    told = words("CT2", "CT", since, fallen.an_hour)
    assert told == "no CT from CT2 since 2026-03-30 07:35 UTC, normally 6 an hour"
    assert words("CT2", "CT", since, 0.2).endswith("UTC, normally 5 a day")


def test_two_weeks_are_too_few_and_one_odd_week_of_four_is_forgiven() -> None:
    working = {hour for day in range(5) for hour in range(day * 24 + 7, day * 24 + 19)}
    now = MONDAY + 5 * WEEK + timedelta(hours=11)
    whole = [at for at in habit(working, 6, 6, [0.5]) if at < MONDAY + 5 * WEEK + timedelta(hours=9)]
    recent = [at for at in whole if at >= MONDAY + 3 * WEEK]
    assert fallen_silent(recent, now) is None
    holiday = [at for at in whole if not MONDAY + 2 * WEEK <= at < MONDAY + 3 * WEEK]
    assert fallen_silent(holiday, now) is not None
    two_of_them = [at for at in holiday if not MONDAY + WEEK <= at < MONDAY + 2 * WEEK]
    assert fallen_silent(two_of_them, now) is None


def test_of_one_that_never_came_or_comes_from_the_future_nothing_is_said() -> None:
    assert fallen_silent([], MONDAY) is None
    assert fallen_silent([MONDAY + WEEK], MONDAY) is None
