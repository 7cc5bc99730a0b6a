"""Series are judged ahead: while it is waited whether another image comes, so that closing them takes no time.

Whatever goes wrong here is left to the closing, which judges again and says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import structlog

from pacs_node.errors import Told
from pacs_node.records import Instance, OpenSeries

log = structlog.get_logger()

Judged = TypeVar("Judged")

SILENT_S = 0.5  # of a series, before it is judged
MOST_KEPT = 1 << 26  # bytes of all that is kept: a header of 300 frames takes about 1 MB, a hostile one 30 and more
MORE = 2  # times as many images before it is judged again: one that trickles in costs at most twice as much


@dataclass(frozen=True)
class _Kept(Generic[Judged]):
    arrived: int
    instances: tuple[Instance, ...] = ()
    judged: Judged | None = None  # None: it could not be, or is not kept
    weight: int = 0  # bytes


class Ahead(Generic[Judged]):
    """What was judged of series that are open. Used by one thread at a time, but for `due`.

    judge: of all images of a series; the same answer for the same images until `forget`. weigh: about how many bytes
    an answer takes; more than MOST_KEPT together are not kept.
    """

    def __init__(
        self, judge: Callable[[Sequence[Instance]], Judged], weigh: Callable[[Judged], int] = lambda judged: 0
    ) -> None:
        self._judge, self._weigh = judge, weigh
        self._kept: dict[str, _Kept[Judged]] = {}

    def due(self, open_series: Iterable[OpenSeries], now: datetime) -> OpenSeries | None:
        """One that has been silent for a while, and was not judged as it is. Of the others is nothing kept."""
        is_open = {series.series_uid: series for series in open_series}
        for gone in self._kept.keys() - is_open.keys():
            self._kept.pop(gone, None)
        return next((series for series in is_open.values() if self._is_due(series, now)), None)

    def _is_due(self, series: OpenSeries, now: datetime) -> bool:
        known, evidence = self._kept.get(series.series_uid), series.evidence
        silent_s = (now - evidence.last_arrival).total_seconds()
        return silent_s >= SILENT_S and (known is None or evidence.arrived >= MORE * known.arrived)

    def look(self, series: OpenSeries, instances: Sequence[Instance]) -> None:
        """Judge it, and keep what comes out."""
        self._kept.pop(series.series_uid, None)
        judged, weight = None, 0
        try:
            judged = self._judge(instances)
            weight = self._weigh(judged)
        except Exception as error:  # noqa: BLE001 - nothing hangs on it: closing judges again, and says what it finds
            log.info("series not judged ahead", series=series.series_uid, error=Told.of(error).words)
        if weight + sum(kept.weight for kept in self._kept.values()) > MOST_KEPT:
            judged, weight = None, 0
        self._kept[series.series_uid] = _Kept(series.evidence.arrived, tuple(instances), judged, weight)

    def answer(self, instances: Sequence[Instance]) -> Judged | None:
        """What was judged of exactly these images, if anything was."""
        known = self._kept.get(instances[0].series_uid) if instances else None
        return known.judged if known is not None and known.instances == tuple(instances) else None

    def forget(self) -> None:
        """The rules are others."""
        self._kept.clear()
