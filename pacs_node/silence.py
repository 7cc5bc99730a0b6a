"""How long each open series has been silent, by a clock that nobody sets.

The wall clock is asked only for what came before this process looked for the first time, or between two looks; what
it says then is cut to what can be: not less than nothing, and not more than the time since the look before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from pacs_node.records import OpenSeries

log = structlog.get_logger()

AHEAD_S = 60.0  # a time so far in the future was not measured by another machine's clock: ours was set back


class Silence:
    """Remembers since when each series has as many images as now."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._since: dict[str, tuple[int, float]] = {}  # series -> its images, and when the last one came
        self._looked: float | None = None

    @property
    def listens(self) -> bool:
        """Whether any series was open at the last look."""
        return bool(self._since)

    def measured(self, open_series: Iterable[OpenSeries], now: datetime) -> list[OpenSeries]:
        """All series that are open now, each with its last arrival as far before `now` as it really was."""
        monotonic, before, self._since = self.monotonic(), self._since, {}
        answer = []
        for series in open_series:
            uid, evidence = series.series_uid, series.evidence
            arrived, since = before.get(uid, (None, 0.0))
            if arrived != evidence.arrived:
                since = monotonic - self._at_first(series, now, monotonic)
            self._since[uid] = evidence.arrived, since
            last = now - timedelta(seconds=monotonic - since)
            answer.append(replace(series, evidence=replace(evidence, last_arrival=last)))
        self._looked = monotonic
        return answer

    def _at_first(self, series: OpenSeries, now: datetime, monotonic: float) -> float:
        """For how many seconds a series had been silent when it was first seen as it is."""
        silent_s = (now - series.evidence.last_arrival).total_seconds()
        if silent_s < -AHEAD_S:
            log.warning("clock was set back", series=series.series_uid, ahead_s=round(-silent_s))
        longest_s = silent_s if self._looked is None else monotonic - self._looked
        return max(0.0, min(silent_s, longest_s))
