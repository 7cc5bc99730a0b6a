"""Hours of the week in local time, as a route says when its jobs may run.

    19:00-07:00                   each day, over midnight
    Mon-Fri 19:00-07:00, Sat-Sun  on weekdays from the evening on, and all of the weekend

Days are those on which a span begins. The clock on the wall counts: where it is set back, an hour is there twice, and
where it is set forward one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY = 24 * 60  # minutes
WEEK = 7 * DAY
AHEAD = timedelta(days=15)  # what has not changed by then, changes never

_DAYS = r"(?P<first>[A-Za-z]+)(?:\s*-\s*(?P<last>[A-Za-z]+))?"
_TIMES = r"(?P<from>\d{1,2}:\d{2})\s*-\s*(?P<to>\d{1,2}:\d{2})"
_PART = re.compile(rf"(?:{_DAYS})?\s*(?:{_TIMES})?")
EXAMPLE = '"19:00-07:00" or "Mon-Fri 19:00-07:00, Sat-Sun"'


@dataclass(frozen=True)
class Hours:
    """When something may run. spans: (begin, end) in minutes of the week from Monday 00:00; an end may lie beyond."""

    text: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text: str) -> Hours:
        """Raises ValueError."""
        return cls(text, tuple(span for part in text.split(",") for span in _spans(part.strip())))

    def open_at(self, now: datetime, zone: tzinfo | None) -> bool:
        """now: aware. zone: None is that of the machine."""
        minute = _second_of_week(now.astimezone(zone)) // 60
        return any(begin <= at < end for begin, end in self.spans for at in (minute, minute + WEEK))

    def changes_at(self, now: datetime, zone: tzinfo | None) -> datetime | None:
        """The first moment after now at which they begin or end; None: never."""
        open_now, at = self.open_at(now, zone), now
        while at < now + AHEAD:
            at = self._next_edge(at, zone)
            if self.open_at(at, zone) != open_now:
                return at
        return None

    def open_since(self, then: datetime, now: datetime, zone: tzinfo | None) -> bool:
        """Were they open all the time from then until now?"""
        if not self.open_at(then, zone):
            return False
        change = self.changes_at(then, zone)
        return change is None or change > now

    def closed_s(self, then: datetime, now: datetime, zone: tzinfo | None) -> float:
        """For how much of the time from then until now they were not, seconds."""
        closed_s, at = 0.0, then
        while at < now:
            change = min(self.changes_at(at, zone) or now, now)
            closed_s += 0.0 if self.open_at(at, zone) else (change - at).total_seconds()
            at = change
        return closed_s

    def _next_edge(self, at: datetime, zone: tzinfo | None) -> datetime:
        """The next begin or end of a span, or the moment before it at which the clock on the wall is set."""
        at = at.replace(microsecond=0)
        local = at.astimezone(zone)
        second, week = _second_of_week(local), WEEK * 60
        ahead_s = min((edge * 60 - second) % week or week for span in self.spans for edge in span)
        if not _is_set(at, ahead_s, zone):
            return at + timedelta(seconds=ahead_s)
        before_s = 0
        while ahead_s - before_s > 1:
            middle_s = (before_s + ahead_s) // 2
            before_s, ahead_s = (before_s, middle_s) if _is_set(at, middle_s, zone) else (middle_s, ahead_s)
        return at + timedelta(seconds=ahead_s)


def _is_set(at: datetime, ahead_s: int, zone: tzinfo | None) -> bool:
    """Has the clock on the wall been set so many seconds later?"""
    return (at + timedelta(seconds=ahead_s)).astimezone(zone).utcoffset() != at.astimezone(zone).utcoffset()


def _second_of_week(local: datetime) -> int:
    return ((local.weekday() * 24 + local.hour) * 60 + local.minute) * 60 + local.second


def _spans(part: str) -> Iterator[tuple[int, int]]:
    """Raises ValueError."""
    said = _PART.fullmatch(part)
    if not part or said is None:
        raise ValueError(f"{part!r} is no span of hours, such as {EXAMPLE}")
    begin, end = (_minute(said["from"]), _minute(said["to"])) if said["from"] else (0, DAY)
    if begin == end:
        raise ValueError(f"{part!r} begins and ends at the same time; all of a day is 00:00-24:00")
    if begin == DAY:
        raise ValueError(f"{part!r} begins at 24:00; write 00:00")
    first = _day(said["first"]) if said["first"] else 0
    last = _day(said["last"]) if said["last"] else first if said["first"] else len(DAYS) - 1
    for number in range((last - first) % len(DAYS) + 1):
        day = (first + number) % len(DAYS) * DAY
        yield day + begin, day + end + (DAY if end < begin else 0)


def _minute(clock: str) -> int:
    hour, minute = map(int, clock.split(":"))
    if minute > 59 or hour * 60 + minute > DAY:
        raise ValueError(f"{clock!r} is no time of a day, 00:00 to 24:00")
    return hour * 60 + minute


def _day(name: str) -> int:
    if name.capitalize() not in DAYS:
        raise ValueError(f"{name!r} is no day; days are {', '.join(DAYS)}")
    return DAYS.index(name.capitalize())
