"""A folder for the time of one job, with images of a patient in it: gone afterwards, even if the process is killed."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

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
    """With what is in it, read-only folders included, the images first. What cannot be removed is no error of the job:
    a container may leave files of another user; the log says so."""
    for within in (folder / "input", folder):
        _open_up(within)
        shutil.rmtree(within, ignore_errors=True)
    if folder.exists():
        log.warning("%s cannot be removed: it holds files of another user", folder)


def _open_up(folder: Path) -> None:
    with suppress(OSError):
        folder.chmod(0o700)
    for root, folders, _ in os.walk(folder):  # from the top: a folder is opened before it is entered
        for each in (Path(root, name) for name in folders):
            if not each.is_symlink():
                with suppress(OSError):
                    each.chmod(0o700)
