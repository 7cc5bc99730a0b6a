"""A series on disk: its images one after the other in one file, a pack, each in a record that says if it is whole.

    record   a head of 128 bytes, then the image as a DICOM file (PS3.10 7.1), its data set as it came
    head     MAGIC; size and XXH3 of the DICOM file; when it came; the association that brought it; XXH3 of the head

The head is written last, then the file is synced once: one sync keeps an image, whatever its size. A record that was
begun and not ended is cut off again, or, after a power cut, has no head. A pack has one writer, and none after a
restart. An image that lies in a file of its own, as earlier versions wrote them, is read in the same way.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from xxhash import xxh3_64

from pacs_node.errors import may_pass
from pacs_node.records import Stored

log = structlog.get_logger(__name__)

Buffer = bytes | bytearray | memoryview

MAGIC = b"PNPACK1\n"
_FACTS = struct.Struct("<8sQQQ64s24x")  # magic, size, XXH3 of 64 bits, microseconds since 1970, association
_CHECK = struct.Struct("<Q")  # of the facts
HEAD = _FACTS.size + _CHECK.size
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
PIECE = 1 << 20  # bytes read at a time
WRITE_BACK_EVERY = 1 << 17  # bytes
MOST_VECTORS = 512  # of one writev; the system's own limit is 1024
SUFFIX = ".pack"


class Pack:
    """A pack that is being written, one record at a time. Every error of the disk is an OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.end = 0  # of the last whole record
        self.usable = True  # False once it cannot be known what is on the disk
        self.since = 0.0  # nobody has written to it, by the monotonic clock; kept by whoever lends it

    @property
    def there(self) -> bool:
        """Nobody has deleted it or moved it away meanwhile."""
        try:
            named, own = self.path.stat(), os.fstat(self._file)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def begin(self) -> Record:
        return Record(self, self._file)

    def close(self) -> None:
        os.close(self._file)


class Record:
    """A record being written behind the last one. `keep` or `undo` ends it."""

    def __init__(self, pack: Pack, file: int) -> None:
        self.pack, self._file = pack, file
        self.offset = pack.end + HEAD  # of the DICOM file
        self.size, self._digest = 0, xxh3_64()
        self._written_back = 0  # bytes that the disk was told to write
        self._kept = False

    def write(self, *parts: Buffer) -> None:
        write_at(self._file, self.offset + self.size, parts)
        for part in parts:
            self._digest.update(part)
            self.size += len(part)
        if self.size - self._written_back >= WRITE_BACK_EVERY:
            start_writeback(self._file, self.offset + self._written_back, self.size - self._written_back)
            self._written_back = self.size

    @contextmanager
    def mapped(self, skip: int = 0) -> Iterator[memoryview]:
        """What was written, without its first `skip` bytes."""
        with mapped(self._file, self.offset + skip, self.size - skip) as content:
            yield content

    def keep(self, received_at: datetime, association: str) -> None:
        """Durable when it returns."""
        head = _head(self.size, self._digest.intdigest(), received_at, association)
        try:
            write_at(self._file, self.offset - HEAD, [head])
            os.fdatasync(self._file)
            if not self.pack.there:
                raise FileNotFoundError(errno.ENOENT, "deleted while an image was written to it", self.pack.path.name)
        except OSError:
            self.pack.usable = False  # after a failed sync the system may have forgotten what it could not write
            raise
        self.pack.end = self.offset + self.size
        self._kept = True

    def undo(self) -> None:
        """Cut it off again, unless it was kept. Not while it is mapped."""
        if self._kept:
            return
        try:
            os.ftruncate(self._file, self.pack.end)
        except OSError:
            self.pack.usable = False


@dataclass(frozen=True)
class Found:
    """A record of a pack, as its head tells. `whole` is False where the bytes are not those that were written."""

    offset: int
    size: int
    received_at: datetime
    association: str
    whole: bool


def records(path: Path, start: int = 0) -> Iterator[Found]:
    """The records from byte `start` on. What lies between them and is none is passed over: a write cut short.

    Read, not mapped: a pack that is being written may be cut off meanwhile. Raises OSError.
    """
    with path.open("rb", buffering=0) as file:
        at, end = start, os.fstat(file.fileno()).st_size
        while at + HEAD <= end:
            head = _read_head(os.pread(file.fileno(), HEAD, at))
            if head is None or at + HEAD + head[0] > end:
                at = _find(file.fileno(), at + 1, end)
                continue
            size, digest, received_at, association = head
            found = xxh3_64()
            for some in pieces(file.fileno(), at + HEAD, size):
                found.update(some)
            yield Found(at + HEAD, size, received_at, association, found.intdigest() == digest)
            at += HEAD + size


def pieces(file: int, at: int, size: int) -> Iterator[bytes]:
    """Bytes of a file, PIECE at a time; fewer where it ends."""
    end = at + size
    while at < end and (some := os.pread(file, min(PIECE, end - at), at)):
        yield some
        at += len(some)


def content(stored: Stored, most: int = -1) -> bytes:
    """A stored DICOM file, or its first `most` bytes. Raises OSError."""
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        if stored.path.suffix != SUFFIX:
            return file.read(most)
        return file.read(stored.size if most < 0 else min(most, stored.size))


@contextmanager
def mapped_content(stored: Stored) -> Iterator[memoryview]:
    """A stored DICOM file of any size, in memory that the system may take back. Raises OSError.

    Read once before: where the disk does not give it, a map would end the process (SIGBUS).
    """
    with stored.path.open("rb", buffering=0) as file:
        for _ in pieces(file.fileno(), stored.offset, stored.size):
            pass
        with mapped(file.fileno(), stored.offset, stored.size) as content:
            yield content


def is_there(stored: Stored) -> bool:
    try:
        return stored.path.stat().st_size >= stored.offset + stored.size
    except OSError:
        return False


@contextmanager
def unpacked(images: Sequence[Stored], folder: Path, *, whole: bool = False) -> Iterator[list[Path]]:
    """Each image as a file of its own. Those in packs, and with `whole` all, are copied into `folder`, not synced, and
    it is gone afterwards: who must not read the spool may read that. Of one that cannot be read there is no file, or a
    shorter one; with `whole`, only if waiting does not cure that. Raises OSError when there is no space, and for what
    waiting may cure."""
    try:
        files = []
        for number, stored in enumerate(images):
            path = stored.path
            if path.suffix == SUFFIX or (whole and path.parent != folder):  # else it is a copy already
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                path = folder / f"{number:05d}.dcm"
                try:
                    _copy(stored, path)
                except OSError as error:
                    if error.errno in NO_SPACE or (whole and may_pass(error)):
                        raise
                    log.warning("pack.not-copied", file=stored.path.name, offset=stored.offset, error=error.strerror)
            files.append(path)
        yield files
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(stored: Stored, target: Path) -> None:
    with stored.path.open("rb") as source, target.open("wb") as copy:
        at, left = stored.offset, stored.size
        while left:
            copied = os.sendfile(copy.fileno(), source.fileno(), at, left)
            if not copied:
                return
            at, left = at + copied, left - copied


def write_at(file: int, at: int, parts: Sequence[Buffer]) -> None:
    """Hand all parts to the kernel without joining them first."""
    views = [memoryview(part) for part in parts if len(part)]
    while views:
        written = os.pwritev(file, views[:MOST_VECTORS], at)
        at += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views:
            views[0] = views[0][written:]


def _writeback() -> Callable[[int, int, int], object]:
    """sync_file_range(2), of Linux alone: Python has no name for it."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return lambda file, at, size: None
    call.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
    return lambda file, at, size: call(file, at, size, SYNC_FILE_RANGE_WRITE)


SYNC_FILE_RANGE_WRITE = 2  # begin to write, wait for nothing
# while the rest of an image is on its way: the sync that it ends with takes a third of the time; no promise hangs on it
start_writeback = _writeback()


@contextmanager
def mapped(file: int, offset: int, size: int) -> Iterator[memoryview]:
    """Bytes of a file as memory; released at the end, however it comes."""
    if not size:
        yield memoryview(b"")
        return
    before = offset % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(file, before + size, access=mmap.ACCESS_READ, offset=offset - before)
    try:
        with memoryview(mapping) as whole, whole[before:] as content:
            yield content
    finally:
        with suppress(BufferError):  # an error on its way up still holds a piece; it goes with it
            mapping.close()


def _head(size: int, digest: int, received_at: datetime, association: str) -> bytes:
    microseconds = (received_at - EPOCH) // timedelta(microseconds=1)
    facts = _FACTS.pack(MAGIC, size, digest, microseconds, association.encode("ascii"))
    return facts + _CHECK.pack(xxh3_64(facts).intdigest())


def _read_head(head: bytes) -> tuple[int, int, datetime, str] | None:
    """(size, XXH3, when it came, association); None of what is no head."""
    if len(head) < HEAD:
        return None
    facts = head[: _FACTS.size]
    magic, size, digest, microseconds, association = _FACTS.unpack(facts)
    if magic != MAGIC or _CHECK.unpack(head[_FACTS.size :]) != (xxh3_64(facts).intdigest(),):
        return None
    return size, digest, EPOCH + timedelta(microseconds=microseconds), association.rstrip(b"\0").decode("ascii")


def _find(file: int, start: int, end: int) -> int:
    """Where the next head may begin; the end if nowhere."""
    for at in range(start, end, PIECE):
        found = os.pread(file, PIECE + len(MAGIC) - 1, at).find(MAGIC)
        if found >= 0:
            return at + found
    return end


def same(stored: Stored, skip: int, data_set: memoryview) -> bool:
    """Whether a stored DICOM file, without its first `skip` bytes, is a data set. Raises OSError."""
    if stored.size - skip != len(data_set):
        return False
    at = 0
    with stored.path.open("rb", buffering=0) as file:
        for some in pieces(file.fileno(), stored.offset + skip, len(data_set)):
            if some != bytes(data_set[at : at + len(some)]):
                return False
            at += len(some)
    return at == len(data_set)
