"""What a power cut must not undo."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def sync(path: Path) -> None:
    """fsync of a file by name; of a folder, which holds the names of its files: a rename lasts only after it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_name(path: Path) -> None:
    """The name of a file or folder in the folder above it, as far as that one may be read. Raises OSError."""
    with suppress(PermissionError):  # who may not read it has hardly made anything in it
        sync(path.parent)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it, is not there any more, for good. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync(path.parent)


def make_folder(folder: Path, mode: int | None = None) -> None:
    """It is there, for good, and so are those above it that had to be made. Raises OSError.

    mode    permission bits of each that is made; None: what the process's umask leaves
    """
    for each in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        each.mkdir(exist_ok=True)
        if mode is not None:
            each.chmod(mode)
        sync(each.parent)


def write_whole(
    path: Path, write: Callable[[BinaryIO], object], *, replace: bool = True, mode: int | None = None
) -> None:
    """All that `write` puts into the file is at `path`, for good, or nothing of it. Raises OSError.

    It is written beside, under a name that begins with a dot and ends in .part, synced, renamed, and the names of the
    file and of its folder are synced. Folders are made. With `replace` false a file that is there already stays.

    mode    its permission bits, before it has its name; None: what the process's umask leaves
    """
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if replace:
            os.replace(unfinished, path)
        else:
            with suppress(FileExistsError):
                os.link(unfinished, path)  # a link, not a rename: it never replaces
    finally:
        unfinished.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        sync(folder)
