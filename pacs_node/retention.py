"""Retention: what may be deleted of what the node keeps, why the rest stays, and that nothing is half gone.

    decided -> rows gone, files written down -> files gone -> gone from the store, where machines have one -> struck out

A node that dies between two of these goes on at its next start, before it looks for images without a row: what has been
decided is not here any more from the second step on, and nothing that comes later goes with it (`Spool.let_go`).
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from config import Config
from config import Retention as Settings
from pacs_node import observe
from pacs_node.durable import remove
from pacs_node.errors import NodeError, StoreAway
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.receive.spool import Spool
from pacs_node.records import OPEN_JOB_STATES, Deletion, Holding, Job
from pacs_node.start_up import FILES_LOCK, exclusively
from pacs_node.store import Store, clear_forgotten
from pacs_node.viewing import folder_name

log = structlog.get_logger()

# Where a fault test may stop the process, in this order for each series
STEPS = ("deleting", "rows gone", "files gone")

LOOK_EVERY_S = 60.0  # at the disk
PASS_EVERY_S = 3600.0  # over all series, for their age; and until what could not free enough is tried again
YOUNG_S = 60.0  # what was kept aside a moment ago stays: the refusal that names it is still to be written down
LONGEST_S = 5.0  # that a stop of the node waits for a part of a pass
CHUNK = 200  # series read at a time
FORECAST_DAYS = 7.0  # that the forecast goes by
GB = 1e9


# ---- decisions: no disk, no clock


def doubts(holding: Holding, folders: Collection[str]) -> Iterator[tuple[str, str]]:
    """What speaks against that all results of a series are where they should be: a word of `without_proof`, and why.

    folders: names of the peers that are folders, where what is stored has arrived.
    """
    if holding.committed_to is not None:
        yield "committed", f"{holding.committed_to} asked for storage commitment of its images and relies on them"
    live = [job for job in holding.jobs if not job.shadow]  # what a shadow says is to be nowhere
    inferences, sends = _by_route(live, "infer"), _by_route(live, "send")
    if not inferences:
        yield "no results", "no route took it"
    for (route, pipeline, _), jobs in inferences.items():
        last, sent_to = jobs[-1], {place for name, by, place in sends if (name, by) == (route, pipeline)}
        if last.state == "failed":
            yield "failed", f"{pipeline} failed: {last.reason}"
        elif not sent_to:
            yield "no results", f"{pipeline}: {last.reason or last.state}"
        elif last.state == "done":
            yield from (("failed", f"nothing was sent to {place}") for place in last.send_to if place not in sent_to)
    for (_, _, place), jobs in sends.items():
        doubt = _doubt(jobs[-1], place or "", holding, folders)
        if doubt is not None:
            yield doubt


def _by_route(jobs: Sequence[Job], kind: str) -> dict[tuple[str, str, str | None], list[Job]]:
    """(route, pipeline, destination) -> its jobs, the oldest first: what the last one says is in force."""
    found: dict[tuple[str, str, str | None], list[Job]] = {}
    for job in jobs:
        if job.kind == kind:
            found.setdefault((job.route, job.pipeline, job.destination), []).append(job)
    return found


def _doubt(send: Job, place: str, holding: Holding, folders: Collection[str]) -> tuple[str, str] | None:
    """None: all that this job sent has arrived."""
    stored = holding.stored.get(send.id, frozenset())
    if send.state != "done" or not stored:
        return "failed", f"its results are not at {place}: {send.reason or send.state}"
    if place in folders or stored <= holding.proven.get(send.id, frozenset()):
        return None
    asked = [job for job in holding.jobs if job.send_job == send.id]
    if any(job.state == "failed" for job in asked):
        return "failed", f"its results did not arrive at {place}: {asked[-1].reason}"
    return "not proven", f"nothing proves that its results arrived at {place}"


def why_it_stays(holding: Holding, settings: Settings, folders: Collection[str]) -> str | None:
    """None: it may go."""
    for job in holding.jobs:
        if job.state in OPEN_JOB_STATES:
            place = f" to {job.destination}" if job.destination else ""
            return f"{job.kind} {job.pipeline}{place} is {job.state}"
    return next((why for kind, why in doubts(holding, folders) if kind not in settings.without_proof), None)


def where_it_is(holding: Holding, folders: Collection[str]) -> str:
    """What is known of the results of a series that goes, in words."""
    open_doubts = [why for _, why in doubts(holding, folders)]
    places = sorted({job.destination or "" for job in holding.jobs if job.kind == "send"})
    return "; ".join(open_doubts) or f"its results arrived at {' and '.join(places)}"


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    total: int
    free: int

    def above(self, used_percent: float, free_gb: float) -> str | None:
        """None, or which of the marks has been passed. 0: there is no such mark."""
        used = 100.0 * (self.total - self.free) / self.total
        if used_percent and used > used_percent:
            return f"{used:.0f} % of the disk are used"
        if free_gb and self.free < free_gb * GB:
            return f"{self.free / GB:.1f} GB are free"
        return None


def why_now(holding: Holding, settings: Settings, now: datetime, full: str | None) -> str | None:
    """What asks for the room of a series that may go; None: nothing does. full: what the disk says."""
    days = (now - holding.last_arrival).total_seconds() / 86400
    if settings.keep_days and days > settings.keep_days:
        return f"its last image came {days:.0f} days before"
    return full


@dataclass(frozen=True)
class Decision:
    holding: Holding
    goes: bool
    why: str
    size: int  # bytes of its images and results

    @property
    def what(self) -> str:
        return f"{self.holding.series_uid}: {self.holding.arrived} images"


@dataclass(frozen=True)
class Aside:
    """A file that was kept aside at receipt, or what could not be read, or why it could not: it goes."""

    what: str  # its name, below the spool
    why: str
    size: int  # bytes
    goes: bool = True


# ---- effects


class Retention:
    """Deletes, in a loop of its own, what the settings say may go; in the process that receives.

    let_go: as Spool.let_go, of every process that receives. settle: returns when the ledger knows of all that has
    arrived. at: called at each of STEPS.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        spool: Spool,
        store: Store,
        let_go: Callable[[str], AbstractContextManager[list[Path] | None]],
        settle: Callable[[], None],
        now: Callable[[], datetime],
        audit: Callable[[str, Mapping[str, object]], None] = observe.audit,
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.config, self.ledger, self.spool, self.store, self.now, self.at = config, ledger, spool, store, now, at
        self.audit = audit
        self.let_go, self.settle = let_go, settle
        self.alone = threading.RLock()  # held from the rows to the files: by whoever deletes, or looks for lost images
        self.data_dir = config.node.data_dir
        self.loop = Loop("retention", self.tick, LOOK_EVERY_S)
        self.short: str | None = None  # why not enough could be deleted, for /health
        self.away: str | None = None  # why what was deleted is still in the store
        self.sizes: Mapping[str, int | None] = dict.fromkeys(KEPT)  # bytes of what is kept, as last measured
        self.full_in_days: float | None = None
        self._next_pass = 0.0  # by the monotonic clock
        self._pass: Iterator[Decision | Aside | None] | None = None  # that has begun and not ended
        self.take_up(config)

    def take_up(self, config: Config) -> None:
        """From the next series on; the next look is a pass."""
        self.settings = config.retention
        self.folders = frozenset(peer.name for peer in config.peers if peer.folder is not None)
        self._next_pass = 0.0

    def tick(self) -> float | None:
        """One look: a pass each hour, or when the disk has passed its mark; a part of it at a time. While nothing more
        is found to delete, all series are looked at each hour, and what was kept aside at each look."""
        late = time.monotonic() >= self._next_pass
        if self._pass is None and not late and self._full(start=True) is None:
            return None
        with exclusively(self.data_dir / FILES_LOCK, wait=False) as mine:
            if not mine:
                return None  # a backup copies the files that its rows name
            if self._pass is None:
                if self.short is not None and not late:
                    return self._more_room()
                self._next_pass = time.monotonic() + PASS_EVERY_S
                self._pass = self.a_pass(clear_away=late)
            until = time.monotonic() + LONGEST_S
            try:
                for _ in self._pass:
                    if time.monotonic() > until:
                        return 0.0
            except BaseException:
                self._pass, self._next_pass = None, 0.0  # it is begun again at the next look
                raise
        self._pass = None
        self.measure()
        return None

    def _more_room(self) -> float | None:
        """Of what has been kept aside since. The seconds until the next look, if it is to come soon."""
        until = time.monotonic() + LONGEST_S
        for _ in self._aside_goes():
            if time.monotonic() > until:
                return 0.0
        if self._full(start=True) is None:
            self.short = None
        return None

    def a_pass(self, *, clear_away: bool = True) -> Iterator[Decision | Aside | None]:
        """Delete what may go and is asked to, the oldest first: each one, and None for each that stays."""
        self.resume()
        if clear_away:
            self._clear_away()
        pressed, stays = self._full(start=True) is not None, list[str]()
        yield from self._aside_goes()
        for decision in self.decisions(lambda: self._full(start=False) if pressed else None, all_of_them=False):
            gone = decision.goes and self._delete(decision)
            if not gone:
                stays.append("something has come for it meanwhile" if decision.goes else decision.why)
            yield decision if gone else None
        still = self._full(start=False) if pressed else None
        self.short = None
        if still is not None:
            why = f": {stays[0]}" if stays else ""
            self.short = f"{still}, and retention finds nothing more to delete; {len(stays)} closed series stay{why}"
        yield from self._elsewhere()

    def _elsewhere(self) -> Iterator[None]:
        """What does not go from the store now goes in a later pass."""
        try:
            yield from finish_elsewhere(self.data_dir, self.ledger, self.store)
        except StoreAway as error:
            self.away = f"what retention deleted is still in the store: {error}"
            log.warning("retention.store-away", error=str(error))
        else:
            self.away = None

    def plan(self) -> Iterator[Decision | Aside]:
        """What a pass would do now, and why what stays stays. Nothing is changed."""
        disk, freed = self._disk(), 0
        pressed = self._full(start=True) is not None

        def full() -> str | None:
            settings = self.settings
            then = Disk(disk.total, disk.free + freed)
            return then.above(settings.stop_used_percent, settings.stop_free_gb) if pressed else None

        for aside in self.aside(full):
            freed += aside.size
            yield aside
        for decision in self.decisions(full, all_of_them=True):
            freed += decision.size if decision.goes else 0
            yield decision

    def aside(self, full: Callable[[], str | None]) -> Iterator[Aside]:
        """What was kept aside or could not be read goes before any series, for nothing is made of it: the oldest
        first, for its age, or as long as the disk asks for room."""
        now, days = self.now(), self.settings.aside_days
        files = [path for kind in ("aside", "unreadable") for path in (self.spool.root / kind).iterdir()]
        for age_days, path in sorted(((_age_days(path, now), path) for path in files), reverse=True):
            if days and age_days > days:
                why = f"after {days} days"
            elif age_days * 86400 > YOUNG_S and (mark := full()) is not None:
                why = f"because {mark}"
            else:
                return  # those that follow are younger
            yield Aside(path.relative_to(self.spool.root).as_posix(), why, _size(path))

    def _aside_goes(self) -> Iterator[Aside]:
        pressed = self._full(start=True) is not None
        for aside in self.aside(lambda: self._full(start=False) if pressed else None):
            now = self.now()
            # first the word: a refusal that names a file that is gone would be worse
            words = f"its bytes were deleted on {now:%Y-%m-%d} by retention, {aside.why}"
            self.ledger.bytes_deleted(aside.what, words, now)
            remove(self.spool.root / aside.what)
            self.audit("refused-bytes-deleted", {"file": aside.what, "bytes": aside.size, "why": aside.why})
            yield aside

    def decisions(self, full: Callable[[], str | None], *, all_of_them: bool) -> Iterator[Decision]:
        """Of each closed series, the oldest first; unless all are asked for, until nothing asks for more room."""
        last: Holding | None = None
        while holdings := self.ledger.holdings(last, CHUNK):
            for holding in holdings:
                asks = why_now(holding, self.settings, self.now(), full())
                if asks is None and not all_of_them:
                    return  # those that follow are younger
                size = holding.size + sum(_size(self.data_dir / name) for name in self._results(holding))
                stays = why_it_stays(holding, self.settings, self.folders)
                if stays is None and asks is not None:
                    yield Decision(holding, True, f"{asks}; {where_it_is(holding, self.folders)}", size)
                else:
                    yield Decision(holding, False, stays or "neither its age nor the disk asks for it", size)
            last = holdings[-1]

    def delete_asked(self, series_uid: str, by: str, *, phantom: bool = False) -> str | None:
        """A person wants a series gone; None, or why it stays: what is not proven to have arrived stays for them, too.
        phantom: nobody waits for its results. Raises OSError, LedgerUnavailable."""
        holding = self.ledger.holding(series_uid)
        if holding is None or holding.state != "closed":
            return "it still receives images" if holding and holding.state == "receiving" else "there is none to delete"
        stays = why_it_stays(holding, self.settings, self.folders)
        if stays is not None and not (phantom and all(job.state not in OPEN_JOB_STATES for job in holding.jobs)):
            return stays
        with exclusively(self.data_dir / FILES_LOCK, wait=False) as mine:
            if not mine:
                return "a backup, or retention, is at work; try again in a while"
            size = holding.size + sum(_size(self.data_dir / name) for name in self._results(holding))
            why = f"{by} asked for it; {where_it_is(holding, self.folders)}"
            gone = self._delete(Decision(holding, True, why, size))
        return None if gone else "something has come for it meanwhile"

    def _delete(self, decision: Decision) -> bool:
        """False: it is worked on after all, or something has come for it."""
        holding = decision.holding
        self.at("deleting")
        said = f"{holding.arrived} images ({in_words(decision.size)} with results) by retention: {decision.why}"
        with self.alone:
            with self.let_go(holding.series_uid) as images:
                if images is None:
                    return False
                self.settle()
                files = [*self._packs(holding, images), *self._results(holding)]
                deletion = self.ledger.delete_series(holding, files, said, self.now())
            if deletion is None:
                return False
            facts = {
                "study": holding.study_uid,
                "series": holding.series_uid,
                "instances": holding.arrived,
                "bytes": decision.size,
            }
            self.audit("instances-deleted", {**facts, "why": decision.why})
            self.at("rows gone")
            _finish_here(deletion, self.data_dir, self.ledger, self.store, self._drop_folder, self.at)
        return True

    def _drop_folder(self, series_uid: str) -> None:
        """Not while one who receives may be about to put a file into it. One that is empty does no harm."""
        with suppress(NodeError), self.let_go(series_uid) as images:
            if images is not None:
                self.spool.drop_folder(series_uid)

    def _packs(self, holding: Holding, here: Sequence[Path]) -> list[str]:
        """Files of the images of a series: those that lie here, and in the store those that the rows name."""
        named = self.ledger.instances(holding.series_uid) if self.store.apart else ()
        paths = {*here, *(each.path for each in named if each.path.is_relative_to(self.data_dir))}
        return sorted(path.relative_to(self.data_dir).as_posix() for path in paths)

    def _results(self, holding: Holding) -> list[str]:
        """Folders of the results of a series, of what of them failed the checks, and of what was made for who looked at
        it, if there are any."""
        names = [f"{kind}/{job.id}" for job in holding.jobs if job.kind == "infer" for kind in ("results", "rejected")]
        there = [name for name in names if self.store.apart or (self.data_dir / name).is_dir()]
        seen = folder_name(holding.series_uid)
        return [*there, *([seen] if (self.data_dir / seen).is_dir() else [])]

    def resume(self) -> None:
        """What has been decided goes from here, whoever decided it. Raises OSError."""
        with self.alone:
            finish_here(self.data_dir, self.ledger, self.store, self._drop_folder, self.at)

    def _clear_away(self) -> None:
        """Timelines of what is gone, and what killed processes left behind."""
        now = self.now()
        if self.settings.timeline_days:
            self.ledger.forget_timelines(now - timedelta(days=self.settings.timeline_days))
        running = {job.id for job in self.ledger.running_jobs()}
        for scratch in (self.data_dir / "work", self.data_dir / "priors"):
            clear_forgotten(scratch, now.timestamp(), running)

    def measure(self) -> None:
        """How much is kept, and when the disk will be full if as much comes as in the last week."""
        self.sizes = {
            kind: sum(_size(path) for path in places(self.data_dir, self.config)) for kind, places in KEPT.items()
        }
        now = self.now()
        came, first = self.ledger.received_since(now - timedelta(days=FORECAST_DAYS))
        days = min(FORECAST_DAYS, max(1.0, (now - first).total_seconds() / 86400)) if first is not None else 0.0
        left = self._disk().free - self.config.receive.keep_free_gb * GB
        self.full_in_days = round(max(0.0, left) / (came / days), 1) if came and days else None

    def _disk(self) -> Disk:
        usage = shutil.disk_usage(self.data_dir)
        return Disk(usage.used + usage.free, usage.free)  # what root has for itself is nobody's

    def _full(self, *, start: bool) -> str | None:
        s = self.settings
        marks = (s.start_used_percent, s.start_free_gb) if start else (s.stop_used_percent, s.stop_free_gb)
        return self._disk().above(*marks)


def finish_here(
    data_dir: Path,
    ledger: Ledger,
    store: Store,
    drop_folder: Callable[[str], None],
    at: Callable[[str], None] = lambda step: None,
) -> None:
    """Whatever has been decided, and is here still, goes. drop_folder: as Spool.drop_folder. Raises OSError."""
    for deletion in ledger.deletions():
        _finish_here(deletion, data_dir, ledger, store, drop_folder, at)


def _finish_here(
    deletion: Deletion,
    data_dir: Path,
    ledger: Ledger,
    store: Store,
    drop_folder: Callable[[str], None],
    at: Callable[[str], None],
) -> None:
    """The files go, for good; then, unless they may be elsewhere too, the row that names them."""
    for name in deletion.files:
        remove(data_dir / name)
    drop_folder(deletion.series_uid)
    at("files gone")
    if not store.apart:
        ledger.deletion_done(deletion)


def finish_elsewhere(data_dir: Path, ledger: Ledger, store: Store) -> Iterator[None]:
    """What has gone here goes from the store, too; then the row that names it. Raises StoreAway."""
    for deletion in ledger.deletions() if store.apart else ():
        for name in deletion.files:
            store.delete(data_dir / name)
        ledger.deletion_done(deletion)
        yield


# what /health and /metrics tell the bytes of -> where it lies
KEPT: Mapping[str, Callable[[Path, Config], Sequence[Path]]] = {
    "images": lambda data_dir, config: [data_dir / "spool" / "instances"],
    "aside": lambda data_dir, config: [data_dir / "spool" / "aside", data_dir / "spool" / "unreadable"],
    "results": lambda data_dir, config: [data_dir / "results", data_dir / "rejected"],
    "database": lambda data_dir, config: _database_files(config.database.url),
}


def _database_files(url: str) -> list[Path]:
    """Of SQLite; of a server it does not tell."""
    if not url.startswith("sqlite:///"):
        return []
    path = Path(url.removeprefix("sqlite:///"))
    return [each for each in path.parent.glob(f"{path.stem}*") if re.fullmatch(r".*\.sqlite(-wal|-shm)?", each.name)]


def _age_days(path: Path, now: datetime) -> float:
    """Since it was last written; of what has gone meanwhile none."""
    try:
        return (now.timestamp() - path.stat().st_mtime) / 86400
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all below a folder; of what is not there, or goes meanwhile, none."""
    with suppress(OSError):
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            return sum(
                _size(Path(each.path)) if each.is_dir(follow_symlinks=False) else each.stat().st_size
                for each in entries
            )
    return 0


def in_words(size: int) -> str:
    """Bytes: 4.3 MB"""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
