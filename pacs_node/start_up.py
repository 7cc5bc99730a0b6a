"""What must hold before a node starts, each with the setting to change when it does not."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from pacs_node.durable import make_folder, sync_name
from pacs_node.errors import (
    AlreadyRunning,
    CannotStart,
)


def keep_private() -> None:
    """From now on, what this process writes is its own user's alone: images, results and the ledger name patients."""
    os.umask(0o077)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # mallopt(3)
ARENAS = 2
LARGE = 1 << 21  # bytes, two PDUs of ours


def give_memory_back(large: int = LARGE) -> None:
    """Threads come and go with associations, and glibc gives each memory of its own, which is not given back: a node of
    106 MB had 89 with two such arenas, and did not grow. And it takes a large block from the system and gives it back,
    until one is given back: blocks of that size, up to 32 MB, are cut from an arena from then on, which keeps them.

    large   bytes, of blocks that are always the system's own
    """
    with suppress(OSError, AttributeError):  # another C library has no such call
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, ARENAS)
        libc.mallopt(M_MMAP_THRESHOLD, large)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * large)


@contextmanager
def listening_on(port_key: str, port: int, host_key: str, host: str, table: str = "node") -> Iterator[None]:
    """Raises CannotStart with the setting to change when a port cannot be listened on."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            why = f"port {port} of {host} is taken by another program: stop that one, or change {port_key} in [{table}]"
        elif number in (errno.EACCES, errno.EPERM):
            why = f"port {port} may not be opened by this user: change {port_key} in [{table}] to one above 1023"
        else:
            said = error.strerror if isinstance(error, OSError) else error
            why = f"{host_key} {host!r} in [node] is no address of this machine ({said}): correct {host_key}"
        raise CannotStart(why) from error


def must_be_writable(data_dir: Path) -> None:
    """Raises CannotStart unless the node can keep things there."""
    try:
        make_folder(data_dir)
        sync_name(data_dir)  # an earlier start may have made it, and been killed
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise CannotStart(
            f"data_dir {data_dir} in [node] cannot be written ({(error.strerror or '').lower()}): "
            "make it a folder that this user may write to, or name another one"
        ) from error


FILES_LOCK = "files.lock"  # below data_dir: held by whoever deletes, or copies, what the ledger names
RESTORING = "restoring"  # there while a restore has not ended


@contextmanager
def exclusively(path: Path, *, wait: bool) -> Iterator[bool]:
    """Nobody else holds this lock meanwhile. False: somebody does, and `wait` says not to wait for it."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def must_be_whole(data_dir: Path) -> None:
    """Raises CannotStart where a restore was begun and has not ended: what is there is a part."""
    if (data_dir / RESTORING).exists():
        raise CannotStart(
            f"data_dir {data_dir} holds a restore that has not ended: wait for it, or empty the folder and begin again"
        )


def hold(path: Path) -> IO[str]:
    """Hold the data folder for one worker. Raises AlreadyRunning."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise AlreadyRunning(
            f"{path.parent} is in use by another worker (process {holder}); "
            "stop it, or use PostgreSQL to run several workers"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


class Settings(Protocol):
    """Of a node's settings, what is asked here."""

    @property
    def others_reach_the_pages(self) -> bool: ...
    @property
    def web(self) -> Any: ...


NO_USERS = (
    "there are no users, and web_host in [node] lets others reach the pages; make the first one: "
    "pacs-node user add NAME --role admin --config node.toml"
)


def needs_users(settings: Settings) -> bool:
    """Could anybody on the network use the pages if there were none?"""
    return settings.others_reach_the_pages and not settings.web.open_to_all


def must_not_be_open(settings: Settings, *, has_users: bool) -> None:
    """Raises CannotStart where anybody on the network could use the pages."""
    if needs_users(settings) and not has_users:
        raise CannotStart(NO_USERS)
