"""A folder for the time of one job, with images of a patient in it: gone afterwards, even if the process is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "pacs-node-job-"
LOCK = ".lock"  # held for as long as the job lives: whoever can take it may remove the folder
JUST_MADE_S = 60.0  # a folder this young may not have its lock yet


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder. Those that killed processes have left behind are removed first."""
    remove_abandoned(Path(tempfile.gettempdir()), time.time())
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            remove(folder)


def remove_abandoned(within: Path, now: float) -> None:
    for folder in within.glob(f"{PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or now - folder.stat().st_mtime < JUST_MADE_S:
                continue
            with (folder / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder)
        except OSError:
            continue  # its job is alive, or another process was faster


def remove(folder: Path) -> None:
    """With what is in it, read-only folders included."""
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
        each.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
