"""The spool: where received instances lie. The folder is the truth, the ledger its index.

    <root>/instances/<series>/<instance>.dcm   what 0x0000 was answered for
    <root>/aside/<instance>.<bytes>.dcm        a second data set under a SOP Instance UID that is taken
    <root>/unreadable/<bytes>.dcm, .txt        what could not be read, and why
    <root>/unfinished/                         being written; whatever an interrupted write left here was never promised

<series>, <instance> and <bytes> are SHA-256 digests of the UIDs and of the data set: no text from the network becomes a
file name.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import structlog

from pacs_node.durable import sync
from pacs_node.errors import NotReadable, ReceiveError, SpoolFull, WrongSopClass
from pacs_node.receive import part10
from pacs_node.receive.header import Buffer, Identity, identify
from pacs_node.records import Instance

log = structlog.get_logger(__name__)

GB = 1_000_000_000
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
LONGEST_HEAD = 4096  # bytes; a head that `part10.encode` wrote takes about 500


@dataclass(frozen=True)
class ReceivedInstance:
    """One data set as a sender handed it over, with what the command and the association said about it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: Buffer
    association: str
    calling_ae: str
    received_at: datetime  # UTC


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
    """Keeps instances so that neither a crash nor a power cut loses one that `keep` has returned.

    One process writes, from any number of threads; others may read.
    """

    def __init__(self, root: Path, keep_free_gb: float) -> None:
        self.root = root
        self.keep_free_gb = keep_free_gb
        self._instances = root / "instances"
        self._aside = root / "aside"
        self._unreadable = root / "unreadable"
        self._unfinished = root / "unfinished"
        for folder in (self._instances, self._aside, self._unreadable, self._unfinished):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(root)
        self._leftovers = list(self._unfinished.iterdir())
        self._folders_on_disk: set[Path] = set()  # whose own names are known to be durable
        self._series_of = {  # digest of SOP Instance UID -> digest of series UID
            bytes.fromhex(file.stem): folder.name
            for folder in self._instances.iterdir()
            for file in folder.glob("*.dcm")
        }
        self._one_writer_per_instance = tuple(threading.Lock() for _ in range(64))
        self._serial = itertools.count()

    def keep(self, arrival: ReceivedInstance) -> Kept:
        """Write, fsync, rename, fsync the folder; then return.

        Raises SpoolFull before anything is written, NotReadable or WrongSopClass after the bytes are in unreadable/.
        """
        self._check_space(len(arrival.data_set))
        try:
            identity = identify(arrival.data_set, arrival.transfer_syntax_uid)
            _check_against_command(identity, arrival)
        except (NotReadable, WrongSopClass) as error:
            error.kept = self._keep_unreadable(arrival, str(error))
            raise
        sha256 = hashlib.sha256(arrival.data_set).hexdigest()
        digest = hashlib.sha256(identity.sop_instance_uid.encode()).digest()
        with self._one_writer_per_instance[digest[0] % len(self._one_writer_per_instance)]:
            first = self._path_of(digest)
            if first is not None:
                return self._keep_another(arrival, identity, first, sha256)
            return self._keep_first(arrival, identity, sha256, digest)

    def scan(
        self,
        known: Container[Path] = frozenset(),
        on_damaged: Callable[[Path, str], None] = lambda path, reason: None,
    ) -> Iterator[Instance]:
        """Every stored instance whose path is not `known`, made durable anew, as at start-up. Removes what interrupted
        writes left behind; a file that cannot be read goes to unreadable/, and on_damaged is told where and why."""
        for leftover in self._leftovers:
            leftover.unlink(missing_ok=True)
        self._leftovers.clear()
        for folder in self._instances.iterdir():
            for path in folder.glob("*.dcm"):
                if path in known:
                    continue
                try:
                    instance = _read(path, association="")
                except NotReadable as error:
                    log.warning("spool.file-unreadable", file=path.name, reason=str(error))
                    os.rename(path, self._unreadable / path.name)
                    on_damaged(self._unreadable / path.name, str(error))
                    continue
                self._sync_again(path)
                yield instance

    def _path_of(self, digest: bytes) -> Path | None:
        """Where the instance lies, if it is here."""
        series = self._series_of.get(digest)
        if series is None:
            return None
        path = self._instances / series / f"{digest.hex()}.dcm"
        return path if path.exists() else None

    def _keep_first(self, arrival: ReceivedInstance, identity: Identity, sha256: str, digest: bytes) -> Kept:
        series = _digest(identity.series_uid)
        path = self._instances / series / f"{digest.hex()}.dcm"
        size = self._write(path, _head(arrival), arrival.data_set)
        self._series_of[digest] = series
        instance = Instance(
            sop_instance_uid=identity.sop_instance_uid,
            sop_class_uid=identity.sop_class_uid,
            series_uid=identity.series_uid,
            study_uid=identity.study_uid,
            transfer_syntax_uid=arrival.transfer_syntax_uid,
            path=path,
            sha256=sha256,
            size=size,
            received_at=arrival.received_at,
            association=arrival.association,
            calling_ae=arrival.calling_ae,
        )
        return Kept(instance, Fate.NEW)

    def _keep_another(self, arrival: ReceivedInstance, identity: Identity, first: Path, sha256: str) -> Kept:
        instance = _read(first, arrival.association)
        if (instance.sha256, instance.transfer_syntax_uid) == (sha256, arrival.transfer_syntax_uid):
            self._sync_again(first)
            return Kept(instance, Fate.SAME)
        aside = self._aside / f"{first.stem}.{sha256}.dcm"
        if aside.exists():
            self._sync_again(aside)
        else:
            self._write(aside, _head(arrival), arrival.data_set)
        log.warning("spool.kept-aside", sop_instance_uid=instance.sop_instance_uid, file=aside.name)
        return Kept(instance, Fate.ASIDE, aside, identity.series_uid)

    def _keep_unreadable(self, arrival: ReceivedInstance, reason: str) -> Path:
        path = self._unreadable / f"{hashlib.sha256(arrival.data_set).hexdigest()}.dcm"
        self._write(path.with_suffix(".txt"), f"{reason}\n".encode())
        self._write(path, _head(arrival), arrival.data_set)
        return path

    def _check_space(self, size: int) -> None:
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize - size < self.keep_free_gb * GB:
            raise SpoolFull(f"{self.root} has less than {self.keep_free_gb:g} GB free; free some space")

    def _write(self, path: Path, *parts: Buffer) -> int:
        """Put `parts` at `path`, durably: either all of it is there after a power cut, or nothing. Returns the size."""
        self._make_durable_folder(path.parent)
        unfinished = self._unfinished / f"{os.getpid()}-{next(self._serial)}"
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                size = _write_all(file, parts)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(unfinished, path)
            sync(path.parent)  # the rename itself
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno in NO_SPACE:
                raise SpoolFull(f"{self.root} ran full while writing; free some space") from error
            raise
        return size

    def _make_durable_folder(self, folder: Path) -> None:
        if folder not in self._folders_on_disk:
            folder.mkdir(mode=0o700, exist_ok=True)
            sync(folder.parent)
            self._folders_on_disk.add(folder)

    def _sync_again(self, path: Path) -> None:
        """A file that an earlier process renamed may not have reached the disk before that process ended."""
        sync(path)
        sync(path.parent)
        self._make_durable_folder(path.parent)


def _head(arrival: ReceivedInstance) -> bytes:
    return part10.encode(
        arrival.sop_class_uid, arrival.sop_instance_uid, arrival.transfer_syntax_uid, arrival.calling_ae
    )


def _check_against_command(identity: Identity, arrival: ReceivedInstance) -> None:
    """PS3.7 9.1.1.1: what the C-STORE command names and what the data set holds must be one and the same."""
    if identity.sop_class_uid != arrival.sop_class_uid:
        wrong: ReceiveError = WrongSopClass(
            f"SOPClassUID is {identity.sop_class_uid}, the command says {arrival.sop_class_uid}"
        )
    elif identity.sop_instance_uid != arrival.sop_instance_uid:
        wrong = NotReadable(
            f"SOPInstanceUID is {identity.sop_instance_uid}, the command says {arrival.sop_instance_uid}"
        )
    else:
        return
    wrong.series_uid = identity.series_uid
    raise wrong


def _read(path: Path, association: str) -> Instance:
    """The Instance that a stored file is. Raises NotReadable."""
    content = path.read_bytes()
    head = part10.decode(content[:LONGEST_HEAD])
    data_set = memoryview(content)[head.size :]
    identity = identify(data_set, head.transfer_syntax_uid)
    if _digest(identity.sop_instance_uid) != path.stem:
        raise NotReadable(f"{path.name} holds another instance than its name says")
    return Instance(
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=identity.sop_class_uid,
        series_uid=identity.series_uid,
        study_uid=identity.study_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
        path=path,
        sha256=hashlib.sha256(data_set).hexdigest(),
        size=len(content),
        received_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        association=association,
        calling_ae=head.source_ae,
    )


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode("ascii")).hexdigest()


def _write_all(file: int, parts: tuple[Buffer, ...]) -> int:
    """Hand all parts to the kernel without joining them first."""
    views = [memoryview(part) for part in parts]
    size = 0
    while views:
        written = os.writev(file, views)
        size += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]
    return size
