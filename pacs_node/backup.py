"""A backup of the node while it runs, and the node from a backup.

The database first, at one moment; then every file, of which none that the database names can have gone meanwhile (the
lock that retention needs is held). What comes later is in part of it: an image without a row is taken in by the node
that is restored, as after a crash. The manifest is written last: a folder without one is no backup.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from config import Config
from pacs_node import __version__, pack, settings_file
from pacs_node.durable import sync, write_whole
from pacs_node.errors import LedgerUnavailable, NodeError
from pacs_node.identity import KEY_FILE
from pacs_node.ledger import Ledger
from pacs_node.ledger.copies import (
    DUMP,
    copy_database,
    must_be_empty,
    must_be_known,
    put_back,
    revision_of,
)
from pacs_node.ledger.engine import revisions
from pacs_node.start_up import FILES_LOCK, RESTORING, exclusively
from pacs_node.system import BACKUP

FORM = 1  # of the manifest
MANIFEST, SETTINGS, DATABASE, FILES = "manifest.json", "node.toml", "database", "files"
# below data_dir; what is being worked on is made again
TRAIL = "audit"
KEPT = ("spool/instances", "spool/aside", "spool/unreadable", "results", "rejected", TRAIL, "spool.id", KEY_FILE)


class BackupError(NodeError):
    """No backup, or no restore. The message says why, and what now."""


class Images(Enum):
    copy = "copy"
    link = "link"  # hard links: no room is taken, on the same disk alone
    none = "none"


@dataclass(frozen=True)
class Entry:
    """A file of the backup."""

    path: str  # below its folder
    size: int  # bytes of it that count: of a pack that has grown since, no more
    sha256: str  # of these


@dataclass(frozen=True)
class Manifest:
    form: int
    pacs_node: str  # version
    made_at: str
    ledger_revision: str
    database: str  # sqlite or postgresql
    store: str  # where results lie that are not in it; "": nowhere else
    images: str
    files: tuple[Entry, ...]
    secrets: tuple[str, ...] = ()  # of the settings, that are not in it: variables that stand in their place


# ---- backup


def back_up(config: Config, settings: Path, to: Path, images: Images, now: datetime) -> Manifest:
    """All that a node needs, in the folder `to`, which is made. Raises BackupError, CannotStart, LedgerUnavailable,
    OSError."""
    data_dir, url = config.node.data_dir, config.database.url
    revision = revision_of(url) if data_dir.is_dir() else None
    if revision is None:
        raise BackupError(f"there is no node in {data_dir}: its database has no tables")
    _must_be_room(to, data_dir)
    (to / DATABASE).mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusively(data_dir / FILES_LOCK, wait=True):
        entries = [_entry(path, to) for path in copy_database(url, to / DATABASE)]
        text, secrets = settings_file.kept(settings_file.read(settings))
        write_whole(to / SETTINGS, lambda file: file.write(text.encode()), mode=0o600)
        entries.append(_entry(to / SETTINGS, to))
        for kind in KEPT:
            if kind in ("spool/instances", KEY_FILE) and images is Images.none:  # by the key alone names can be tried
                continue
            link = images is Images.link and kind.startswith("spool/")
            entries += _copied(data_dir, kind, to / FILES, link=link)
    kind = "sqlite" if url.startswith("sqlite") else "postgresql"
    made_at = now.isoformat(timespec="seconds")
    place = store_of(config)
    lacking = tuple(sorted(secrets))
    manifest = Manifest(FORM, __version__, made_at, revision, kind, place, images.value, tuple(entries), lacking)
    text = json.dumps({**asdict(manifest), "files": [asdict(entry) for entry in entries]}, indent=1)
    write_whole(to / MANIFEST, lambda file: file.write(text.encode()), mode=0o600)
    _remember(url, data_dir, revision, now, f"{len(entries)} files, {to.name}")
    return manifest


def _remember(url: str, data_dir: Path, revision: str, now: datetime, text: str) -> None:
    """The pages say when the last backup was made; of one that could not be remembered they do not know."""
    if revision != max(revisions()):
        return  # of an earlier version, which has no place for it
    ledger = Ledger(url, data_dir)
    with suppress(LedgerUnavailable):
        ledger.mark(BACKUP, now, text)
    ledger.close()


def store_of(config: Config) -> str:
    """The bucket that the settings name, in words; "" where machines have data_dir in common."""
    store = config.store
    return "" if store.kind == "folder" else "/".join(filter(None, (f"s3://{store.bucket}", store.prefix)))


def _must_be_room(to: Path, data_dir: Path) -> None:
    if to.resolve().is_relative_to(data_dir):
        raise BackupError(f"{to} lies in data_dir: name a folder elsewhere, on another disk if you can")
    there = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()} if to.exists() else set()
    if there - {f"{DATABASE}/{DUMP}"}:
        raise BackupError(f"{to} is not empty: name a new folder, one for each backup")


def _copied(data_dir: Path, kind: str, to: Path, *, link: bool) -> Iterator[Entry]:
    """Each file below a folder, as it is now. What is being written beside its place is none yet."""
    for path in sorted([data_dir / kind, *(data_dir / kind).rglob("*")]):
        name = path.relative_to(data_dir)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        size = _whole(path)
        target = to / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if link:
            try:
                os.link(path, target)
            except OSError as error:
                raise BackupError(
                    f"{name} cannot be linked to {to} ({(error.strerror or '').lower()}): it must be on the disk of "
                    "data_dir; or take --images copy"
                ) from error
            sha256 = _digest(path, size)
        else:
            sha256 = _copy(path, target, size)
        yield Entry(name.as_posix(), size, sha256)


def _whole(path: Path) -> int:
    """Bytes of a file; of a pack up to the end of its last whole record, behind which the next is being written."""
    if path.suffix != pack.SUFFIX:
        return path.stat().st_size
    return max((record.offset + record.size for record in pack.records(path)), default=0)


def _copy(source: Path, target: Path, size: int) -> str:
    """The first `size` bytes, durably; their SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as read, target.open("wb") as written:
        os.fchmod(written.fileno(), 0o600)  # images, and the key of identity.py
        for some in pack.pieces(read.fileno(), 0, size):
            written.write(some)
            digest.update(some)
        written.flush()
        os.fsync(written.fileno())
    return digest.hexdigest()


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for some in pack.pieces(file.fileno(), 0, size):
            digest.update(some)
    return digest.hexdigest()


def _entry(path: Path, below: Path) -> Entry:
    size = path.stat().st_size
    return Entry(path.relative_to(below).as_posix(), size, _digest(path, size))


# ---- restore


def restore(config: Config, source: Path, now: datetime) -> Manifest:
    """A node that goes on where the backup was made. data_dir (but for an audit trail) and the database must be empty.

    Raises BackupError, CannotStart, LedgerTooOld, LedgerUnavailable, OSError. What was begun is refused by a node until
    it has ended.
    """
    manifest = read_manifest(source)
    data_dir, url = config.node.data_dir, config.database.url
    if (manifest.database == "sqlite") != url.startswith("sqlite"):
        raise BackupError(f"{source} holds a {manifest.database} database, and url in [database] names another kind")
    if data_dir.is_dir() and any(each.name != TRAIL for each in data_dir.iterdir()):
        raise BackupError(f"data_dir {data_dir} is not empty: restore into an empty one, or move it away")
    must_be_known(manifest.ledger_revision)
    must_be_empty(url)
    databases = [entry for entry in manifest.files if entry.path.startswith(f"{DATABASE}/")]
    for entry in manifest.files:  # before anything is written: of what is damaged nothing is restored
        _must_be_sound(source, entry)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_way(data_dir / TRAIL, {PurePosixPath(entry.path).name for entry in manifest.files})
    (data_dir / RESTORING).touch()
    sync(data_dir)
    for entry in manifest.files:
        if _is_kept(entry):
            target = data_dir / entry.path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _copy(_place(source, entry), target, entry.size) != entry.sha256:
                raise BackupError(f"{entry.path} changed while it was copied from {source}; begin again")
    put_back(url, source / DATABASE, [PurePosixPath(entry.path).name for entry in databases])
    ledger = Ledger(url, data_dir)
    try:
        ledger.migrate()
        if manifest.images == Images.none.value:
            ledger.forget_images(f"the images of series were left out of the backup of {manifest.made_at[:10]}", now)
    finally:
        ledger.close()
    for folder in {each for each in data_dir.rglob("*") if each.is_dir()}:
        sync(folder)
    (data_dir / RESTORING).unlink()
    sync(data_dir)
    return manifest


def _make_way(trail: Path, names: set[str]) -> None:
    """What was said of a restore that was refused stays, behind what the backup brings of that day."""
    there = sorted(trail.glob("????-??-??-????.xml"))
    taken = {*names, *(path.name for path in there)}
    for path in there:
        if path.name in names:
            day = path.name[:10]
            last = max(int(name[11:15]) for name in taken if name.startswith(day))
            taken.add(new := f"{day}-{last + 1:04d}.xml")
            os.rename(path, path.with_name(new))


def _is_kept(entry: Entry) -> bool:
    return any(entry.path == kind or entry.path.startswith(f"{kind}/") for kind in KEPT)


def _place(source: Path, entry: Entry) -> Path:
    return source / FILES / entry.path if _is_kept(entry) else source / entry.path


def _must_be_sound(source: Path, entry: Entry) -> None:
    if PurePosixPath(entry.path).is_absolute() or ".." in PurePosixPath(entry.path).parts:
        raise BackupError(f"{source / MANIFEST} names {entry.path!r}, which is no file of a backup")
    path = _place(source, entry)
    if not path.is_file():
        raise BackupError(f"{source} lacks {entry.path}: nothing was restored; take another backup")
    if path.stat().st_size < entry.size or _digest(path, entry.size) != entry.sha256:
        raise BackupError(
            f"{entry.path} of {source} is not what was written: nothing was restored; take another backup"
        )


def read_manifest(source: Path) -> Manifest:
    """Raises BackupError."""
    path = source / MANIFEST
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        if told["form"] != FORM:
            raise BackupError(f"{source} was made by pacs-node {told['pacs_node']}: restore it with that version")
        files = tuple(Entry(str(each["path"]), int(each["size"]), str(each["sha256"])) for each in told["files"])
        return Manifest(**{**told, "files": files, "secrets": tuple(map(str, told.get("secrets", ())))})
    except FileNotFoundError as error:
        raise BackupError(f"{source} is no backup, or one that has not ended: it has no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{path} cannot be read ({type(error).__name__}): take another backup") from error
