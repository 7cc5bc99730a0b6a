"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEW = ".new-"  # folders that are still being filled
LOCK = ".filling.lock"  # held by whoever fills a folder beside it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write: at the end of the block it takes the place of `path`; an error or a kill leaves the former."""
    new = path.with_name(path.name + ".new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A kill while writing leaves the former file, never half of the new one."""
    with replacing(path) as new:
        new.write_text(text, "utf-8")


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A new folder that becomes `folder` at the end of the block, unless another process was faster.

    An error removes it. What killed processes have left beside `folder` is swept, as soon as nobody fills one there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / LOCK).open("a+") as lock:
        with suppress(BlockingIOError):  # somebody is filling one: theirs is not to be told from what the killed left
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.parent.glob(f"{NEW}*"):
                shutil.rmtree(left, ignore_errors=True)
        fcntl.flock(lock, fcntl.LOCK_SH)  # shared: others may fill theirs, and nobody sweeps
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=NEW))
        try:
            yield new
            if not folder.exists():
                os.replace(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
