"""What turns images that arrived into series that are worked on: looks round, asks peers, closes what is complete."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from config import Config
from pacs_node.assemble.evidence import expected_count
from pacs_node.errors import LedgerUnavailable, NotJudged, Told, TryAgain
from pacs_node.flow import Flow
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop, describe
from pacs_node.peers import dicom_peer
from pacs_node.records import OpenSeries

log = structlog.get_logger()

ASSEMBLE_EVERY_S = 0.5  # while a series is open
DOZE_S = 5.0  # while none is
FULL_DISK_S = 5.0  # before a series is tried again for which there was no space
RETRY_S = 0.5  # before a series that could not be closed is tried again; each time twice as long
TRIES = 9  # in two minutes; then it is set aside, in the words of its error
SETTLED_S = 2.0  # of silence before the sender is asked: it may still be taking in the series itself


@dataclass(frozen=True)
class Later:
    """A complete series that could not be closed: how often, when it is tried again, and what went wrong."""

    tries: int
    again_at: float  # by the monotonic clock
    error: str


class Assembler:
    """Closes complete series, one at a time, in a loop of its own.

    connected: ids of the associations that are open now. wake: called when there are new jobs. settle: returns when the
    ledger knows of all that has arrived.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        flow: Flow,
        now: Callable[[], datetime],
        connected: Callable[[], frozenset[str]],
        wake: Callable[[], None],
        settle: Callable[[], None],
    ) -> None:
        self.config, self.ledger, self.flow, self.now = config, ledger, flow, now
        self.connected, self.wake, self.settle = connected, wake, settle
        self.loop = Loop("assembler", self._look, DOZE_S)
        self._dozes = False
        self._later: dict[str, Later] = {}  # series that could not be closed
        self.asked: dict[str, int] = {}  # series -> instances that had arrived when its peer was asked
        self.closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="close")
        self.askers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="ask-peer")

    def between_series(self, do: Callable[[], None]) -> None:
        """While no series is judged or closed."""
        self.closer.submit(do).result()

    def shut_down(self) -> None:
        """Once the loop has stopped: what is being closed ends, who is being asked is not waited for."""
        self.closer.shutdown(wait=True)
        self.askers.shutdown(wait=False, cancel_futures=True)

    @property
    def trouble(self) -> str | None:
        """None, or which series cannot be closed now, for /health."""
        later = list(self._later.values())
        return f"{len(later)} complete series cannot be closed: {later[0].error}; it is tried again" if later else None

    def arrived(self) -> None:
        """The ledger has new images."""
        if self._dozes:  # else the loop comes round soon
            self._dozes = False
            self.loop.wake()

    def _look(self) -> float | None:
        """The seconds until the next look, if it is to come soon."""
        self._dozes = True  # before: what comes while we look wakes us
        self._assemble()
        if not self.flow.silence.listens:
            return None
        self._dozes = False
        return ASSEMBLE_EVERY_S

    def _assemble(self) -> None:
        connected = self.connected()  # before: who leaves in between counts as there, not as gone without its images
        self.settle()
        complete = self.flow.complete(connected)
        for gone in self._later.keys() - {series.series_uid for series, _ in complete}:
            del self._later[gone]
        for series, because in complete:
            later = self._later.get(series.series_uid)
            if later is None or later.again_at <= time.monotonic():
                self._close(series, because)
        if self.config.assemble.ask_peer:
            self._ask_peers()
        silent = self.flow.may_be_complete()
        if silent is not None:
            self.closer.submit(self.flow.judge_ahead, silent).result()

    def _close(self, series: OpenSeries, because: str) -> None:
        """One series that cannot be handled must not stop the next: its error is its own."""
        try:
            jobs = self.closer.submit(self.flow.close, series, because).result()
        except LedgerUnavailable:
            raise
        except NotJudged as error:
            self._set_aside(series, because, error)
        except TryAgain as error:  # a full disk: however long it takes
            log.warning("series not closed", series=series.series_uid, error=str(error))
            self._later[series.series_uid] = Later(0, time.monotonic() + FULL_DISK_S, str(error))
        except Exception as error:  # noqa: BLE001 - the edge of one series: of its images nothing is known yet
            tries = self._later[series.series_uid].tries + 1 if series.series_uid in self._later else 1
            if tries > TRIES:
                self._set_aside(series, because, error)
                return
            told = Told.of(error)
            log.error("series not closed", series=series.series_uid, error=told.words, trace=told.trace)
            again_at = time.monotonic() + RETRY_S * 2 ** (tries - 1)
            self._later[series.series_uid] = Later(tries, again_at, describe(error))
        else:
            self._later.pop(series.series_uid, None)
            if jobs:
                self.wake()

    def _set_aside(self, series: OpenSeries, because: str, error: Exception) -> None:
        reason = _not_judged(series.series_uid, error)
        try:
            self.flow.set_aside(series, because, reason)
        except LedgerUnavailable:
            raise
        except Exception as failure:  # noqa: BLE001 - as in _close
            self._later[series.series_uid] = Later(TRIES, time.monotonic() + RETRY_S, describe(failure))
        else:
            self._later.pop(series.series_uid, None)

    def rerun(self, series_uid: str, route: str | None = None) -> str | None:
        """Run a closed series again, or why not. One that cannot even be judged says so, and stops no other."""
        try:
            why_not = self.closer.submit(self.flow.rerun, series_uid, route).result()
        except LedgerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of judging, as in _close
            return _not_judged(series_uid, error)
        if why_not is None:
            self.wake()
        return why_not

    def _ask_peers(self) -> None:
        """How many images has the series? Asked beside the assembler, so that a dead peer holds nothing up."""
        by_title = {peer.ae_title: peer for peer in self.config.peers if peer.host is not None}
        open_series = self.flow.receiving(self.connected())
        self.asked = {each.series_uid: self.asked.get(each.series_uid, 0) for each in open_series}
        for series in open_series:
            evidence = series.evidence
            settled = (self.now() - evidence.last_arrival).total_seconds() >= SETTLED_S
            if not settled or self.asked.get(series.series_uid) == evidence.arrived:
                continue
            peers = [by_title[title] for title in series.calling_aes if title in by_title]
            if peers:
                self.askers.submit(self._ask, peers[0], series)
                self.asked[series.series_uid] = evidence.arrived

    def _ask(self, peer: Any, series: OpenSeries) -> None:
        try:
            asked = dicom_peer(self.config, peer, self.config.receive.acse_timeout_s)
            count = expected_count(asked, series.study_uid, series.series_uid)
            if count is not None:
                self.ledger.expect(series.series_uid, series.evidence.arrived, count, peer.name)
                self.loop.wake()
        except Exception as error:  # noqa: BLE001 - the edge of a thread of its own: what it asks is an aid
            self.asked.pop(series.series_uid, None)
            log.warning("peer not asked", series=series.series_uid, peer=peer.name, error=describe(error))


def _not_judged(series_uid: str, error: BaseException) -> str:
    """The reason, in the error's words; the log has its trace."""
    told = Told.of(error.__cause__ if isinstance(error, NotJudged) and error.__cause__ else error)
    log.error("series could not be judged", series=series_uid, error=told.words, trace=told.trace)
    return f"could not be judged: {told.words}"
