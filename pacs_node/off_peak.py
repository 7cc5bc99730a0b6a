"""Which jobs wait for the hours of their route: `hours` of a [[route]]. The settings in force say so, not those of the
time at which a job was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

from config import Config
from config.hours import Hours


class OffPeak:
    """config: the settings in force. now: the time."""

    def __init__(self, config: Callable[[], Config], now: Callable[[], datetime]) -> None:
        self.config, self.now = config, now

    @property
    def _hours(self) -> dict[str, Hours]:
        return {route.name: Hours.of(route.hours) for route in self.config().routes if route.hours}

    @property
    def _zone(self) -> tzinfo | None:
        name = self.config().jobs.time_zone
        return ZoneInfo(name) if name else None

    def closed(self) -> Mapping[str, str]:
        """Routes whose hours are not now -> what their jobs wait for, in words."""
        now, zone = self.now(), self._zone
        return {
            route: _words(hours, hours.changes_at(now, zone), zone)
            for route, hours in self._hours.items()
            if not hours.open_at(now, zone)
        }

    def not_open_since(self, then: datetime) -> frozenset[str]:
        """Routes whose hours were not all the time since then: nobody can say that their jobs take long."""
        now, zone = self.now(), self._zone
        return frozenset(route for route, hours in self._hours.items() if not hours.open_since(then, now, zone))

    def rested_s(self, route: str, then: datetime) -> float:
        """For how much of the time since then the hours of a route were not, seconds: a wait that is meant."""
        hours = self._hours.get(route)
        return hours.closed_s(then, self.now(), self._zone) if hours is not None else 0.0


def _words(hours: Hours, opens: datetime | None, zone: tzinfo | None) -> str:
    when = f", from {opens.astimezone(zone):%Y-%m-%d %H:%M %Z} on" if opens is not None else ""
    return f"waits for the hours of its route, {hours.text}{when}"
