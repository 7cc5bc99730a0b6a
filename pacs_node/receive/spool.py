"""The spool: where received instances lie. The folder is the truth, the ledger its index.

    <root>/instances/<series>/<began>.pack     what 0x0000 was answered for: see pack.py
    <root>/instances/<series>/<instance>.dcm   the same, as earlier versions kept it
    <root>/aside/<instance>.<bytes>.dcm        a second data set under a SOP Instance UID that is taken
    <root>/unreadable/<bytes>.dcm, .txt        what could not be read, and why
    <root>/unfinished/                         being written; whatever an interrupted write left here was never promised

<series>, <instance> and <bytes> are SHA-256 digests of the UIDs and of the data set: no text from the network becomes a
file name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import structlog

from pacs_node import pack
from pacs_node.durable import remove, sync
from pacs_node.errors import NotReadable, ReceiveError, SpoolFull, TooLarge, WrongSopClass
from pacs_node.pack import Pack, Record
from pacs_node.receive import part10
from pacs_node.receive.header import Buffer, Identity, Start, identify
from pacs_node.records import Instance, Stored

log = structlog.get_logger(__name__)

GB = 1_000_000_000
LONGEST_HEAD = 4096  # bytes; a head that `part10.encode` wrote takes about 500
EARLY = 1 << 16  # bytes of a data set that wait in memory until it is known which series they belong to
MOST_OPEN = 64  # packs that nobody writes to just now are kept open for the next image ...
UNUSED_S = 20.0  # ... for so long
MOST_FOLDERS = 10_000  # whose names need no further sync: a node that runs for a year has made a million


@dataclass(frozen=True)
class Announced:
    """What a C-STORE and its association say of the data set that comes."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    association: str
    calling_ae: str


class Fate(Enum):
    NEW = "stored"
    SAME = "identical bytes were here already"
    ASIDE = "other bytes are stored under this SOP Instance UID; these are kept aside"


@dataclass(frozen=True)
class Kept:
    """What became of an arrival. `instance` is what the spool holds under this SOP Instance UID: the first one."""

    instance: Instance
    fate: Fate
    aside: Path | None = None
    series_uid: str = ""  # that the arrival itself names: of one kept aside it may be another


class Spool:
    """Keeps instances so that neither a crash nor a power cut loses one that `Incoming.keep` has returned.

    Any number of threads write, each to packs of its own; others may read. find: the instance that the index has under
    a SOP Instance UID. What is kept is remembered here until `indexed` says that the index has it.
    """

    def __init__(
        self,
        root: Path,
        keep_free_gb: float,
        find: Callable[[str], Instance | None] = lambda sop_instance_uid: None,
        largest: int = 1 << 31,  # bytes of a data set
    ) -> None:
        self.root = root
        self.keep_free_gb, self.largest = keep_free_gb, largest
        self._find = find
        self._instances = root / "instances"
        self._aside = root / "aside"
        self._unreadable = root / "unreadable"
        self._unfinished = root / "unfinished"
        for folder in (self._instances, self._aside, self._unreadable, self._unfinished):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(root)
        sync(root.parent)
        self._leftovers = list(self._unfinished.iterdir())
        self._read_through: dict[Path, int] = {}  # packs of which a scan found nothing but images, and their ends
        self._folders_on_disk: dict[str, None] = {}  # whose own names are known to be durable, the latest of them
        self._not_indexed: dict[str, Instance] = {}  # by SOP Instance UID
        self._one_writer_per_instance = tuple(threading.Lock() for _ in range(64))
        self._idle: OrderedDict[str, list[Pack]] = OrderedDict()  # by series; the one used last is last
        self._lent: Counter[str] = Counter()  # packs that are written to now, by series
        self._packs = threading.Lock()
        self._serial = itertools.count()
        self._began = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}"
        self._fails = False  # the disk did, when an image came last
        self._trying = threading.Lock()

    def begin(self, announced: Announced) -> Incoming:
        """A data set is on its way."""
        return Incoming(self, announced)

    def indexed(self, instances: Sequence[Instance]) -> None:
        """The index has them."""
        for instance in instances:
            waiting = self._not_indexed.get(instance.sop_instance_uid)
            if waiting is not None and waiting.stored == instance.stored:  # else it was sent again meanwhile
                del self._not_indexed[instance.sop_instance_uid]

    def scan(
        self,
        known: Mapping[Path, int] | None = None,
        on_damaged: Callable[[Path, str], None] = lambda path, reason: None,
        of_process: int | None = None,
    ) -> Iterator[Instance]:
        """Every stored instance that the index does not know, as at start-up; or of one process that has ended.

        known: of each file, the byte at which what is indexed of it ends. Removes what interrupted writes left behind;
        what cannot be read is copied to unreadable/, and on_damaged is told where and why.
        """
        for leftover in self._leftovers:
            remove(leftover)
        self._leftovers.clear()
        self._read_through.clear()
        known = known or {}
        for folder in self._instances.iterdir():
            for path in sorted(folder.iterdir()):
                if of_process is not None and path.name.split("-")[1:2] != [str(of_process)]:
                    continue  # whoever writes it is at work
                if path.suffix == ".dcm" and path not in known:
                    found = self._own_file(path, on_damaged)
                elif path.suffix == pack.SUFFIX and path.stat().st_size > known.get(path, 0):
                    found = self._rest_of(path, known.get(path, 0), on_damaged)
                else:
                    continue
                try:
                    for instance in found:
                        self._not_indexed[instance.sop_instance_uid] = instance
                        yield instance
                except OSError as error:  # of one file: the others are needed, and it may be read at the next start
                    log.error("spool.file-not-read", file=path.name, error=error.strerror)
                    on_damaged(path, f"it cannot be read: {error.strerror}")

    def _own_file(self, path: Path, on_damaged: Callable[[Path, str], None]) -> Iterator[Instance]:
        state = path.stat()
        try:
            with pack.mapped_content(Stored(path, 0, state.st_size)) as content:
                instance = _read(content, path, 0, datetime.fromtimestamp(state.st_mtime, UTC), "")
            if _digest(instance.sop_instance_uid) != path.stem:
                raise NotReadable(f"{path.name} holds another instance than its name says")
        except NotReadable as error:
            log.warning("spool.file-unreadable", file=path.name, reason=str(error))
            os.rename(path, self._unreadable / path.name)
            on_damaged(self._unreadable / path.name, str(error))
            return
        self._sync_again(path)
        yield instance

    def _rest_of(self, path: Path, start: int, on_damaged: Callable[[Path, str], None]) -> Iterator[Instance]:
        """An earlier process ended before the index had them, or before they were whole."""
        synced, at = False, start
        for record in pack.records(path, start):
            at = record.offset + record.size if record.offset == at + pack.HEAD else -1
            with pack.mapped_content(Stored(path, record.offset, record.size)) as content:
                try:
                    if not record.whole:
                        raise NotReadable(f"the record at byte {record.offset} of {path.name} is damaged")
                    instance = _read(content, path, record.offset, record.received_at, record.association)
                except NotReadable as error:
                    log.warning("spool.record-unreadable", file=path.name, offset=record.offset, reason=str(error))
                    damaged = self._unreadable / f"{hashlib.sha256(content).hexdigest()}.dcm"
                    if not damaged.exists():  # an earlier start has said so
                        self._write(damaged, content)
                        on_damaged(damaged, str(error))
                    at = -1
                    continue
            if not synced:
                self._sync_again(path)
                synced = True
            yield instance
        if at == path.stat().st_size:
            self._read_through[path] = at

    def cut_off(self, known: Mapping[Path, int]) -> None:
        """All that a scan has found is settled: the index has it, or it is kept under the same UID elsewhere. What lies
        behind all that the index has of a pack is removed, or each start would read it and compare it again. Nobody
        writes to these packs any more; one with anything behind that is no whole image stays as it is.

        known: as in `scan`, since then. Which file a path means, the file itself says: rows may name it by another one.
        """
        behind = {path: end for path, end in self._read_through.items() if known.get(path, 0) < end}
        if not behind:
            return
        ends: dict[tuple[int, int], int] = {}
        for path, end in known.items():
            with suppress(FileNotFoundError):  # no longer there: nothing of it can be removed
                state = path.stat()
                ends[state.st_dev, state.st_ino] = max(end, ends.get((state.st_dev, state.st_ino), 0))
        for path, end in behind.items():
            try:
                state = path.stat()
                indexed = ends.get((state.st_dev, state.st_ino), 0)
                if state.st_size != end or indexed >= end:
                    continue
                if indexed:
                    os.truncate(path, indexed)
                    sync(path)
                else:
                    remove(path)
            except OSError as error:  # the next start tries it again
                log.warning("spool.not-cut-off", file=path.name, error=error.strerror)

    def held(self, sop_instance_uid: str) -> Instance | None:
        """What is kept under a UID, if it is there still; None, too, where the index cannot say so now: then `compare`
        settles it. Raises LedgerUnavailable."""
        instance = self._not_indexed.get(sop_instance_uid) or self._find(sop_instance_uid)
        return instance if instance is not None and pack.is_there(instance.stored) else None

    def store(
        self, incoming: Incoming, identity: Identity, received_at: datetime, then: Callable[[Instance], None]
    ) -> Kept:
        """Decide on a data set that is whole and readable, and keep it; durable when this returns, and `then` is told.

        Nothing is deleted between the decision that it is here already and the word to the index (`let_go`).
        """
        digest = hashlib.sha256(identity.sop_instance_uid.encode()).digest()
        with self._one_writer_per_instance[digest[0] % len(self._one_writer_per_instance)]:
            first = self.held(identity.sop_instance_uid)
            if first is not None:
                with incoming.content() as data_set:
                    kept = self._keep_another(incoming.announced, identity, first, data_set)
                then(kept.instance)
                return kept
            record = incoming.record_in(_digest(identity.series_uid))
            record.keep(received_at, incoming.announced.association)
            instance = Instance(
                sop_instance_uid=identity.sop_instance_uid,
                sop_class_uid=identity.sop_class_uid,
                series_uid=identity.series_uid,
                study_uid=identity.study_uid,
                transfer_syntax_uid=incoming.announced.transfer_syntax_uid,
                path=record.pack.path,
                offset=record.offset,
                size=record.size,
                received_at=received_at,
                association=incoming.announced.association,
                calling_ae=incoming.announced.calling_ae,
            )
            self._not_indexed[instance.sop_instance_uid] = instance
            then(instance)
        return Kept(instance, Fate.NEW)

    def _keep_another(self, announced: Announced, identity: Identity, first: Instance, data_set: memoryview) -> Kept:
        """Under a UID that is taken."""
        instance = replace(first, association=announced.association)
        try:
            head = part10.decode(pack.content(first.stored, LONGEST_HEAD))
            same = head.transfer_syntax_uid == announced.transfer_syntax_uid
            same = same and pack.same(first.stored, head.size, data_set)
        except (NotReadable, OSError) as error:  # no fault of who sends it again: his is kept beside it
            log.warning("spool.earlier-unreadable", sop_instance_uid=first.sop_instance_uid, error=str(error))
            same = False
        if same:
            self._sync_again(first.path)
            return Kept(instance, Fate.SAME)
        name = f"{_digest(identity.sop_instance_uid)}.{hashlib.sha256(data_set).hexdigest()}.dcm"
        aside = self._aside / name
        if aside.exists():
            self._sync_again(aside)
        else:
            self._write(aside, _head(announced), data_set)
        log.warning("spool.kept-aside", sop_instance_uid=instance.sop_instance_uid, file=name)
        return Kept(instance, Fate.ASIDE, aside, identity.series_uid)

    def compare(self, first: Instance, second: Instance) -> Kept:
        """Both were kept under one UID: other bytes are kept aside, as they would have been, had the second come later.
        Raises OSError, NotReadable."""
        with pack.mapped_content(second.stored) as content:
            head = part10.decode(content[:LONGEST_HEAD])
            uids = head.sop_class_uid, head.sop_instance_uid
            announced = Announced(*uids, head.transfer_syntax_uid, second.association, second.calling_ae)
            identity = Identity(*uids, second.study_uid, second.series_uid)
            with content[head.size :] as data_set:
                return self._keep_another(announced, identity, first, data_set)

    def keep_unreadable(self, announced: Announced, data_set: memoryview, reason: str) -> Path:
        path = self._unreadable / f"{hashlib.sha256(data_set).hexdigest()}.dcm"
        self._write(path.with_suffix(".txt"), f"{reason}\n".encode())
        self._write(path, _head(announced), data_set)
        return path

    def check_space(self, size: int) -> None:
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize - size < self.keep_free_gb * GB:
            raise SpoolFull(f"{self.root} has less than {self.keep_free_gb:g} GB free; free some space")

    @property
    def trouble(self) -> str | None:
        """None, or why no image can be kept now: once one could not be, the disk is tried until it works again."""
        if not self._fails:
            return None
        with self._trying:
            try:
                self._try()
            except OSError as error:
                return f"images cannot be kept ({error.strerror}): senders are answered 0xA700"
            self._fails = False
            return None

    def _try(self) -> None:
        """All that an image needs, in a folder that is gone afterwards. Raises OSError."""
        folder = self._unfinished / f"{self._began}-trial-{next(self._serial)}"
        folder.mkdir(mode=0o700)
        try:
            trial = Pack(folder / f"trial{pack.SUFFIX}")
            try:
                record = trial.begin()
                record.write(b"\0")
                record.keep(datetime.now(UTC), "")
            finally:
                trial.close()
            sync(folder)
        finally:
            remove(folder)

    def failed(self) -> None:
        """An image was not kept, for an error of the disk."""
        self._fails = True

    def full(self) -> SpoolFull:
        return SpoolFull(f"{self.root} ran full while writing; free some space")

    def borrow(self, series: str) -> Pack:
        """A pack of a series for one writer alone. series: digest of its UID."""
        with self._packs:
            self._lent[series] += 1
            while idle := self._idle.get(series):
                found = idle.pop()
                if found.there:
                    return found
                found.close()
        try:
            return self._new_pack(self._instances / series)
        except BaseException:
            with self._packs:
                self._not_lent(series)
            raise

    def _new_pack(self, folder: Path) -> Pack:
        self._make_durable_folder(folder)
        path = folder / f"{self._began}-{next(self._serial)}{pack.SUFFIX}"
        new = Pack(path)
        try:
            sync(folder)  # its name
        except OSError:
            self.discard(new)
            raise
        return new

    def _not_lent(self, series: str) -> None:
        """With `_packs` held: at once with what becomes of the pack."""
        self._lent[series] -= 1
        if not self._lent[series]:
            del self._lent[series]

    def give_back(self, series: str, used: Pack) -> None:
        with self._packs:
            self._not_lent(series)
            if not used.usable:
                used.close()  # what it holds stays; the next image goes to another
                return
            used.since = time.monotonic()
            self._idle.setdefault(series, []).append(used)
            self._idle.move_to_end(series)
            if sum(map(len, self._idle.values())) > MOST_OPEN:
                oldest = next(series for series, packs in self._idle.items() if packs)
                self._idle[oldest].pop(0).close()
            self._forget_empty()

    def _forget_empty(self) -> None:
        """With `_packs` held."""
        for empty in [series for series, packs in self._idle.items() if not packs]:
            del self._idle[empty]

    def close_unused(self) -> None:
        """Packs that nothing has come for in a while. The next image of such a series goes to another one."""
        before = time.monotonic() - UNUSED_S
        with self._packs:
            for packs in self._idle.values():
                for old in [each for each in packs if each.since < before]:
                    packs.remove(old)
                    old.close()
            self._forget_empty()

    def loose(self) -> Pack:
        """A file for what is not known to belong to any series yet."""
        return Pack(self._unfinished / f"{self._began}-{next(self._serial)}")

    def discard(self, used: Pack) -> None:
        used.close()
        try:
            used.path.unlink(missing_ok=True)
        except OSError as error:  # it promises nothing: the next start clears it away
            log.warning("spool.not-removed", file=used.path.name, error=error.strerror)

    @contextmanager
    def let_go(self, series_uid: str) -> Iterator[list[Path] | None]:
        """The files of a series, to which nobody adds an image any more: the next one goes to a file of its own. None
        while an image of it is being written.

        All that is kept has been told to the index, and until this ends nothing is, of any series.
        """
        series = _digest(series_uid)
        folder = self._instances / series
        with ExitStack() as all_writers:
            for lock in self._one_writer_per_instance:
                all_writers.enter_context(lock)
            with self._packs:
                for idle in self._idle.pop(series, []) if not self._lent[series] else ():
                    idle.close()
                files = None if self._lent[series] else sorted(folder.iterdir()) if folder.is_dir() else []
            yield files

    def drop_folder(self, series_uid: str) -> None:
        """Of a series whose files are gone, for good; not if something has come for it meanwhile. Raises OSError."""
        series = _digest(series_uid)
        folder = self._instances / series
        with self._packs:
            if self._lent[series] or not folder.is_dir():
                return
            sync(folder)  # that the files are gone
            if not any(folder.iterdir()):
                folder.rmdir()
                self._folders_on_disk.pop(str(folder), None)
                sync(self._instances)

    def close(self) -> None:
        """Nobody writes any more."""
        with self._packs:
            for idle in self._idle.values():
                for each in idle:
                    each.close()
            self._idle.clear()

    def _write(self, path: Path, *parts: Buffer) -> None:
        """Put `parts` at `path`, durably: either all of it is there after a power cut, or nothing."""
        self._make_durable_folder(path.parent)
        unfinished = self._unfinished / f"{self._began}-{next(self._serial)}"
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                pack.write_at(file, 0, parts)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(unfinished, path)
            sync(path.parent)  # the rename itself
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise

    def _make_durable_folder(self, folder: Path) -> None:
        if str(folder) not in self._folders_on_disk or not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync(folder.parent)
            with self._packs:
                self._folders_on_disk[str(folder)] = None
                if len(self._folders_on_disk) > MOST_FOLDERS:
                    del self._folders_on_disk[next(iter(self._folders_on_disk))]

    def _sync_again(self, path: Path) -> None:
        """What an earlier process wrote may not have reached the disk before that process ended."""
        sync(path)
        sync(path.parent)
        self._make_durable_folder(path.parent)


class Incoming:
    """A data set on its way in. `write` raises nothing; what went wrong is said by `keep`. `keep` or `drop` ends it.

    Its first bytes wait in memory until they say which series they belong to; from then on it is written as it comes.
    """

    def __init__(self, spool: Spool, announced: Announced) -> None:
        self.announced = announced
        self.size = 0  # bytes that have come
        self._spool = spool
        self._early = bytearray()
        self._start: Start | None = None
        self._record: Record | None = None
        self._series: str | None = None  # the one whose pack that record is in, by digest; None: in a loose file
        self._begun: list[tuple[Record, str | None]] = []  # every record that was begun for it
        self._head = _head(announced)
        self._failed: Exception | None = None

    def write(self, fragment: Buffer) -> None:
        self.size += len(fragment)
        if self._failed is not None:
            return
        try:
            if self.size > self._spool.largest:
                raise TooLarge(
                    f"the data set is longer than {self._spool.largest >> 20} MiB: largest_mb in [receive] says so"
                )
            if self._record is not None:
                self._record.write(fragment)
                return
            self._early += fragment
            if len(self._early) >= EARLY:
                self._place()
        except (ReceiveError, OSError) as error:
            self._failed = error
            self.drop()

    def keep(self, now: Callable[[], datetime], then: Callable[[Instance], None] = lambda instance: None) -> Kept:
        """Durable when it returns. then: told of the instance before another one can be written behind it, so that an
        index which goes by what it is told knows of each pack up to some byte, and nothing beyond.

        Raises SpoolFull, TooLarge, LedgerUnavailable and OSError when nothing was kept; NotReadable or WrongSopClass
        once the bytes are in unreadable/.
        """
        try:
            if self._failed is not None:
                raise self._failed
            self._spool.check_space(self.size)
            try:
                identity = self._identity()
                _check_against_command(identity, self.announced)
            except (NotReadable, WrongSopClass) as error:
                with self.content() as data_set:
                    error.kept = self._spool.keep_unreadable(self.announced, data_set, str(error))
                raise
            return self._spool.store(self, identity, now(), then)
        except OSError as error:
            self._spool.failed()
            if error.errno in pack.NO_SPACE:
                raise self._spool.full() from error
            raise
        finally:
            self.drop()

    def drop(self) -> None:
        """What is not kept leaves nothing behind."""
        self._record = None
        while self._begun:
            record, series = self._begun.pop()
            record.undo()
            if series is None:
                self._spool.discard(record.pack)
            else:
                self._spool.give_back(series, record.pack)

    def record_in(self, series: str) -> Record:
        """Its record in a pack of the series that it turned out to belong to."""
        if self._record is None or self._series != series:
            with self.content() as data_set:
                self._begin(series).write(self._head, data_set)
        assert self._record is not None
        return self._record

    def _begin(self, series: str | None) -> Record:
        record = (self._spool.borrow(series) if series is not None else self._spool.loose()).begin()
        self._begun.append((record, series))
        self._record, self._series = record, series
        return record

    def _place(self) -> None:
        """It is long: from here on it goes to its file as it comes."""
        self._spool.check_space(len(self._early))
        self._start = Start.of(self._early, self.announced.transfer_syntax_uid)
        uid = self._start.series_uid
        self._begin(_digest(uid) if uid is not None else None).write(self._head, self._early)
        self._early.clear()

    @property
    def largest(self) -> int:
        """Bytes of a data set that is taken in."""
        return self._spool.largest

    @contextmanager
    def content(self) -> Iterator[memoryview]:
        """All that has come."""
        if self._record is None:
            yield memoryview(self._early)
        else:
            with self._record.mapped(len(self._head)) as data_set:
                yield data_set

    def _identity(self) -> Identity:
        known = self._start.identity(self.size) if self._start is not None else None
        if known is not None:
            return known
        with self.content() as data_set:
            return identify(data_set, self.announced.transfer_syntax_uid)


def _head(announced: Announced) -> bytes:
    return part10.encode(
        announced.sop_class_uid, announced.sop_instance_uid, announced.transfer_syntax_uid, announced.calling_ae
    )


def _check_against_command(identity: Identity, announced: Announced) -> None:
    """PS3.7 9.1.1.1: what the C-STORE command names and what the data set holds must be one and the same."""
    if identity.sop_class_uid != announced.sop_class_uid:
        wrong: ReceiveError = WrongSopClass(
            f"SOPClassUID is {identity.sop_class_uid}, the command says {announced.sop_class_uid}"
        )
    elif identity.sop_instance_uid != announced.sop_instance_uid:
        wrong = NotReadable(
            f"SOPInstanceUID is {identity.sop_instance_uid}, the command says {announced.sop_instance_uid}"
        )
    else:
        return
    wrong.series_uid = identity.series_uid
    raise wrong


def _read(content: memoryview, path: Path, offset: int, received_at: datetime, association: str) -> Instance:
    """The Instance that a stored DICOM file is. Raises NotReadable."""
    head = part10.decode(content[:LONGEST_HEAD])
    identity = identify(content[head.size :], head.transfer_syntax_uid)
    return Instance(
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=identity.sop_class_uid,
        series_uid=identity.series_uid,
        study_uid=identity.study_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
        path=path,
        offset=offset,
        size=len(content),
        received_at=received_at,
        association=association,
        calling_ae=head.source_ae,
    )


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode("ascii")).hexdigest()
