"""Hours of routes: by the clock on the wall, held against a second that looks at every minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.hours import DAYS, Hours

# the clock is set by an hour, by half of one, at midnight, never
ZONES = ("Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "America/New_York", "Asia/Kathmandu", "UTC")
CLOCK = st.integers(0, 24 * 60 - 1)
SPANS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), CLOCK, CLOCK, st.sampled_from(["days", "times", "both"])).filter(
        lambda span: span[2] != span[3]
    ),
    min_size=1,
    max_size=3,
)
# around the changes of the clock in all of these zones, and any time at all
CHANGES = [(2026, 3, 29), (2026, 10, 25), (2026, 4, 4), (2026, 10, 3), (2026, 9, 5), (2026, 3, 8), (2026, 11, 1)]
TIMES = st.one_of(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),
    st.builds(
        lambda day, minutes: datetime(*day) + timedelta(minutes=minutes),
        st.sampled_from(CHANGES),
        st.integers(-1500, 2900),
    ),
).map(lambda time: time.replace(tzinfo=UTC))


def written(spans: list[tuple[int, int, int, int, str]]) -> str:
    return ", ".join(
        " ".join(
            ([f"{DAYS[first]}-{DAYS[last]}"] if what != "times" else [])
            + ([f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"] if what != "days" else [])
        )
        for first, last, begin, end, what in spans
    )


def is_open(spans: list[tuple[int, int, int, int, str]], now: datetime, zone: ZoneInfo) -> bool:
    """Said once more: is it today's span, or what yesterday's has left for this morning?"""
    local = now.astimezone(zone)
    clock = local.hour * 60 + local.minute
    for first, last, begin, end, what in spans:
        days = {(first + n) % 7 for n in range((last - first) % 7 + 1)} if what != "times" else set(range(7))
        begins, ends = (0, 1440) if what == "days" else (begin, end)
        today, yesterday = local.weekday() in days, (local.weekday() - 1) % 7 in days
        if begins < ends and today and begins <= clock < ends:
            return True
        if begins > ends and ((today and clock >= begins) or (yesterday and clock < ends)):
            return True
    return False


@settings(deadline=None)
@given(SPANS, TIMES, st.sampled_from(ZONES))
def test_hours_are_open_as_the_clock_on_the_wall_says(
    spans: list[tuple[int, int, int, int, str]], now: datetime, zone: str
) -> None:
    assert Hours.of(written(spans)).open_at(now, ZoneInfo(zone)) == is_open(spans, now, ZoneInfo(zone))


@settings(max_examples=40, deadline=None)
@given(SPANS, TIMES, st.sampled_from(ZONES))
def test_the_next_change_is_the_first_minute_at_which_something_changes(
    spans: list[tuple[int, int, int, int, str]], now: datetime, zone: str
) -> None:
    hours, at = Hours.of(written(spans)), ZoneInfo(zone)
    change = hours.changes_at(now, at)
    open_now = is_open(spans, now, at)
    minute = now.replace(second=0, microsecond=0)
    found = next(
        (
            then
            for then in (minute + timedelta(minutes=n) for n in range(1, 8 * 1440))
            if is_open(spans, then, at) != open_now
        ),
        None,
    )
    assert change == found
    last = (change or now + timedelta(days=2)) - timedelta(seconds=1)
    assert hours.open_since(now, last, at) == open_now
    assert change is None or not hours.open_since(now, change, at)


def test_the_nights_in_which_the_clock_is_set() -> None:
    berlin, hours = ZoneInfo("Europe/Berlin"), Hours.of("02:30-03:30")
    spring = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)  # 01:00; at 02:00 it is 03:00
    assert hours.changes_at(spring, berlin) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert hours.changes_at(spring + timedelta(hours=1), berlin) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    autumn = datetime(2026, 10, 25, 0, 0, tzinfo=UTC)  # 02:00 in summer; at 03:00 it is 02:00
    edges = [autumn]
    for _ in range(4):
        edges.append(hours.changes_at(edges[-1], berlin) or autumn)
    assert [f"{each:%H:%M}" for each in edges[1:]] == ["00:30", "01:00", "01:30", "02:30"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no span of hours, such as"),
        ("19-7", "'19-7' is no span of hours"),
        ("19:00-07:00,", "'' is no span of hours"),
        ("19:00-19:00", "begins and ends at the same time; all of a day is 00:00-24:00"),
        ("24:00-07:00", "begins at 24:00; write 00:00"),
        ("25:00-07:00", "'25:00' is no time of a day"),
        ("19:60-07:00", "'19:60' is no time of a day"),
        ("Mo 19:00-07:00", "'Mo' is no day; days are Mon, Tue"),
        ("Mon-Fry", "'Fry' is no day"),
        ("Mon 19:00", "is no span of hours"),
    ],
)
def test_what_are_no_hours_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        Hours.of(text)


def test_all_the_week_never_changes() -> None:
    assert Hours.of("mon-SUN").changes_at(datetime(2026, 5, 1, tzinfo=UTC), None) is None


@settings(deadline=None, max_examples=40)
@given(
    SPANS, TIMES.map(lambda time: time.replace(second=0, microsecond=0)), st.integers(0, 3000), st.sampled_from(ZONES)
)
def test_what_is_closed_is_every_minute_that_is_not_open(
    spans: list[tuple[int, int, int, int, str]], then: datetime, minutes: int, zone: str
) -> None:
    here = ZoneInfo(zone)
    closed = sum(not is_open(spans, then + timedelta(minutes=each), here) for each in range(minutes))
    now = then + timedelta(minutes=minutes)
    assert Hours.of(written(spans)).closed_s(then, now, here) == 60 * closed
