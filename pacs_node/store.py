"""What the machines of one node have in common: images of closed series, and results.

SharedFolder   one data folder, on one machine or on shared storage: everything is at hand everywhere
ObjectStore    a data folder on each machine, and a bucket with the S3 API between them

Files have their names below the data folder, on every machine and in the bucket. An object is there whole or not at
all; it is written again only by what says the same or, of a pack, more.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog

from pacs_node import pack
from pacs_node.durable import remove
from pacs_node.errors import CannotStart, StoreAway
from pacs_node.records import Stored

log = structlog.get_logger(__name__)

CONNECT = timedelta(seconds=5)
SILENCE = timedelta(seconds=30)  # the longest wait for a piece of an answer
REQUEST = timedelta(minutes=10)
RETRIES = 2  # of one request, within seconds; the job itself is tried again
RETRY_FOR = timedelta(seconds=10)
PART = 8 << 20  # bytes of a part of an upload
AT_ONCE = 64 << 20  # bytes of images that are fetched together
FORGOTTEN_S = 86_400.0


class Store(Protocol):
    """Where machines find what another one has received or made. All paths are below the data folder.

    Each of them raises StoreAway, and may be called again.
    """

    apart: bool  # what is shared lies elsewhere than here

    def share(self, path: Path, size: int) -> None:
        """The first `size` bytes of a file are at hand on every machine when this returns. Raises OSError."""

    def at_hand(self, images: Sequence[Stored], folder: Path) -> list[Stored]:
        """The same images, where this machine can read them: as they lie here, else copied into `folder`.

        One that is neither here nor shared stays as it is: whoever reads it says so.
        """

    def held(self, images: Sequence[Stored]) -> set[Stored]:
        """Those of them that are here or shared."""

    def folder(self, path: Path, scratch: Path) -> AbstractContextManager[Path]:
        """A folder of results with all that is shared of it. What is written into it is shared at the end, if no error
        comes; what is deleted in it is not. It lies below `scratch`, or where it always lies."""

    def bring(self, path: Path) -> None:
        """A folder with all that is shared of it, at its place here. Raises OSError."""

    def delete(self, path: Path) -> None:
        """A file, or a folder with all that is in it: of this machine, and of what is shared. One that is not there is
        no error. Another machine's own copy of a pack that it received stays."""

    def tried(self) -> None:
        """Write, read and delete something small. Raises StoreAway with what is wrong and what to do."""


class SharedFolder:
    """The data folder itself is what all machines have in common, or there is one machine alone."""

    apart = False

    def share(self, path: Path, size: int) -> None:
        """It is there already."""

    def at_hand(self, images: Sequence[Stored], folder: Path) -> list[Stored]:
        return list(images)

    def held(self, images: Sequence[Stored]) -> set[Stored]:
        return {image for image in images if pack.is_there(image)}

    @contextmanager
    def folder(self, path: Path, scratch: Path) -> Iterator[Path]:
        yield path

    def bring(self, path: Path) -> None:
        """It is there already."""

    def delete(self, path: Path) -> None:
        remove(path)

    def tried(self) -> None:
        """`check` tries the data folder itself."""


@dataclass(frozen=True)
class Bucket:
    """Where an object store is, and as whom we talk to it. The secret is in no representation of it."""

    name: str
    endpoint: str | None  # None: the service of AWS in this region
    region: str
    prefix: str  # of every name in it
    access_key_id: str | None  # None: from the environment, or the machine's own role
    secret_access_key: str | None = field(repr=False)
    certificates: bytes | None = field(repr=False)  # that may have signed its own; None: whom the machine trusts

    def __str__(self) -> str:
        return f"the store s3://{self.name}" + (f" at {self.endpoint}" if self.endpoint else f" in {self.region}")


class ObjectStore:
    """A bucket with the S3 API. `root` is this machine's data folder."""

    apart = True

    def __init__(self, bucket: Bucket, root: Path) -> None:
        """Raises CannotStart where the library is not installed."""
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            why = "kind = 's3' in [store] needs the package obstore: pip install 'pacs-node[s3]'"
            raise CannotStart(why) from error
        self.bucket, self.root, self._api = bucket, root, obstore
        client: dict[str, Any] = {"connect_timeout": CONNECT, "read_timeout": SILENCE, "timeout": REQUEST}
        client |= {"allow_http": True} if bucket.endpoint and bucket.endpoint.startswith("http://") else {}
        client |= {"root_certificate": bucket.certificates} if bucket.certificates else {}
        known = {
            "endpoint": bucket.endpoint,
            "access_key_id": bucket.access_key_id,
            "secret_access_key": bucket.secret_access_key,
        }
        self._store = S3Store(
            bucket.name,
            region=bucket.region,
            **{name: value for name, value in known.items() if value is not None},  # type: ignore[arg-type]
            client_options=client,  # type: ignore[arg-type]
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_FOR},
        )

    def share(self, path: Path, size: int) -> None:
        key = self._key(path)
        if (self._size(key) or 0) < size:
            self._put(key, path, size)

    def at_hand(self, images: Sequence[Stored], folder: Path) -> list[Stored]:
        here = list(images)
        for path, numbers in self._elsewhere(images):
            for batch in _batches(images, numbers):
                pieces = self._pieces(self._key(path), [images[number] for number in batch])
                for number, piece in zip(batch, pieces, strict=True):
                    if len(piece) == images[number].size:
                        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                        copy = folder / f"{number:05d}.dcm"
                        copy.write_bytes(piece)
                        here[number] = Stored(copy, 0, images[number].size)
        return here

    def held(self, images: Sequence[Stored]) -> set[Stored]:
        found = {image for image in images if pack.is_there(image)}
        for path, numbers in self._elsewhere(images):
            size = self._size(self._key(path)) or 0
            found |= {images[number] for number in numbers if images[number].offset + images[number].size <= size}
        return found

    @contextmanager
    def folder(self, path: Path, scratch: Path) -> Iterator[Path]:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_forgotten(scratch, time.time())
        local = Path(tempfile.mkdtemp(prefix=f"results-{path.name}-", dir=scratch))
        try:
            key = self._key(path)
            self._fetch(key, local)
            before = _written(local)
            yield local
            for file, state in _written(local).items():
                if before.get(file) != state:
                    self._put(f"{key}/{file.relative_to(local).as_posix()}", file, state[0])
        finally:
            shutil.rmtree(local, ignore_errors=True)

    def bring(self, path: Path) -> None:
        self._fetch(self._key(path), path)

    def delete(self, path: Path) -> None:
        key = self._key(path)
        names = [key, *self._names(key)]
        with self._answering():
            self._api.delete(self._store, names)
        remove(path)

    def tried(self) -> None:
        key = self._named(f"check/{uuid.uuid4().hex}")
        with self._answering():
            self._api.put(self._store, key, b"pacs-node check")
        with self._answering():
            self._api.get(self._store, key).bytes()
            self._names(self._named("check"))
            self._api.delete(self._store, [key])

    def _elsewhere(self, images: Sequence[Stored]) -> Iterator[tuple[Path, list[int]]]:
        """Of the images that are not here: the file that each lies in, and which of them lie there, in its order."""
        missing: dict[Path, list[int]] = {}
        for number, image in enumerate(images):
            if image.path.is_relative_to(self.root) and not pack.is_there(image):
                missing.setdefault(image.path, []).append(number)
        for path, numbers in missing.items():
            yield path, sorted(numbers, key=lambda number: images[number].offset)

    def _key(self, path: Path) -> str:
        return self._named(path.relative_to(self.root).as_posix())

    def _named(self, name: str) -> str:
        return f"{self.bucket.prefix}/{name}" if self.bucket.prefix else name

    def _size(self, key: str) -> int | None:
        """Bytes of an object; None: there is none."""
        with self._answering():
            try:
                return int(self._api.head(self._store, key)["size"])
            except FileNotFoundError:
                return None

    def _names(self, key: str) -> list[str]:
        """Of all objects below a folder."""
        with self._answering():
            return sorted(str(each["path"]) for some in self._api.list(self._store, key) for each in some)

    def _fetch(self, key: str, folder: Path) -> None:
        for name in self._names(key):
            file = folder / name.removeprefix(f"{key}/")
            with self._answering():
                content = self._api.get(self._store, name).bytes()
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.write_bytes(content)

    def _put(self, key: str, path: Path, size: int) -> None:
        """Whole or not at all: an upload in parts is there once it is completed. Raises OSError of the file."""
        with path.open("rb", buffering=0) as file, self._answering():
            if size <= PART:
                content = file.read(size)
                _must_be_whole(path, len(content), size)
                self._api.put(self._store, key, content)
                return
            _must_be_whole(path, path.stat().st_size, size)
            self._api.put(self._store, key, pack.pieces(file.fileno(), 0, size), chunk_size=PART)
        # whoever cut the file short meanwhile has cut the object short
        _must_be_whole(path, self._size(key) or 0, size)

    def _pieces(self, key: str, images: Sequence[Stored]) -> Sequence[Any]:
        """The bytes of images that lie in one object; nothing of those that are not there."""
        with self._answering():
            try:
                starts, sizes = [each.offset for each in images], [each.size for each in images]
                return self._api.get_ranges(self._store, key, starts=starts, lengths=sizes)
            except FileNotFoundError as error:
                if NO_BUCKET in str(error):
                    raise
                log.warning("store.not-there", key=key)
                return [b""] * len(images)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except self._api.exceptions.BaseError as error:
            raise StoreAway(f"{self.bucket} {_words(error, self.bucket)}") from error


NO_BUCKET = "NoSuchBucket"
# the code of an error of the S3 API -> what it means, and what to do
CODES: Mapping[str, str] = {
    "AccessDenied": "denies access: let the key read, write, list and delete there, and see that there is the bucket",
    "SignatureDoesNotMatch": "does not take the secret key: correct secret_access_key_file in [store]",
    "InvalidAccessKeyId": "does not know the key: correct access_key_id in [store]",
    NO_BUCKET: "has no such bucket: make it, or correct bucket in [store]",
    "RequestTimeTooSkewed": "has another time: set the clock of this machine",
    "AuthorizationHeaderMalformed": "does not take the signature: correct region in [store]",
    "InsufficientStorage": "is full: free some space there",
}
STATUS = re.compile(r"status code: (\d{3}[^:\n<]*)")
CODE = re.compile(r"<Code>(\w+)</Code>")


def _words(error: BaseException, bucket: Bucket) -> str:
    """What it means, and what to do: never the text of the answer, which may quote a name or a key."""
    text = str(error)
    code, status = CODE.search(text), STATUS.search(text)
    if code and code[1] in CODES:
        return CODES[code[1]]
    if code or status:
        said = f"{status[1].strip() if status else ''} {code[1] if code else ''}".strip()
        if said.startswith("403"):
            return CODES["AccessDenied"]
        return f"answers {said}: see to it there"
    if "error sending request" in text or "timed out" in text:
        return f"does not answer: start it, or correct {'endpoint' if bucket.endpoint else 'region'} in [store]"
    if "redential" in text:
        return "has no key for it: set access_key_id and secret_access_key_file in [store], or the environment's"
    return f"cannot be used ({type(error).__name__}): see endpoint, region and bucket in [store]"


def _must_be_whole(path: Path, there: int, size: int) -> None:
    if there < size:
        raise OSError(5, f"{path.name} has {there} bytes of {size}", path.name)


def _batches(images: Sequence[Stored], numbers: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for number in numbers:
        if batch and size + images[number].size > AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += images[number].size
    if batch:
        yield batch


def _written(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every whole file below a folder, with its size and time."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def clear_forgotten(scratch: Path, now: float, running: Collection[str] = ()) -> None:
    """What processes left behind that were killed: nobody else's work takes a day. now: seconds since 1970. running:
    jobs whose own work stays however long it takes."""
    for each in scratch.glob("*"):
        with suppress(OSError):
            if each.name.partition(".")[0] not in running and now - each.stat().st_mtime > FORGOTTEN_S:
                log.info("left behind, removed", folder=f"{scratch.name}/{each.name}")
                remove(each)
