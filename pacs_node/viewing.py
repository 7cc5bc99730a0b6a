"""Files for whoever looks at a series: made once by a process of its own, kept within bounds, gone with the series.

    data_dir/viewing/<digest of the series>/<digest of what is asked>/findings.json, finding-1-1.png, image-42.png
                                                                      volume.json, volume.nii.gz, masks.nii.gz, cine.bin
              (shown beside a later study)                            earlier.json, earlier.nii.gz, ...

They can be made again at any time, so they are neither synced nor backed up. One is made at a time, at the lowest
priority: whoever looks waits, receiving and inference do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from pacs_node.errors import NodeError, Told, TryAgain
from pacs_node.program import answer_of, started
from pacs_node.records import Stored

log = structlog.get_logger()

PROGRAM = Path(__file__).with_name("viewing_process.py")
FORM = 2  # of the files: those of another one are made anew
LONGEST_S = 300.0  # that one process may take
AGAIN_AFTER_S = 60.0  # what could not be made is tried again
PARTS = {
    "findings": "findings.json",
    "volume": "volume.json",
    "earlier": "earlier.json",
}  # what is asked for -> the file that is written last
FOLDER = "viewing"  # below data_dir
UNFINISHED = ".unfinished"


def folder_name(series_uid: str) -> str:
    """Below data_dir: what is kept for who looks at this series."""
    return f"{FOLDER}/{hashlib.sha256(series_uid.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class Asked:
    """What is looked at: the images in use, and the files of the results of each job, in the order of sending.

    beside: the images of a later study that these are shown beside, registered.
    """

    series_uid: str
    images: tuple[Stored, ...]
    results: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    beside: tuple[Stored, ...] = ()

    @property
    def digest(self) -> str:
        told = [FORM, [[str(each.path), each.offset, each.size] for each in self.images]]
        told += [[job, [path.as_posix() for path in paths]] for job, paths in self.results.items()]
        told += [["beside", [[str(each.path), each.offset, each.size] for each in self.beside]]] if self.beside else []
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Made:
    """state: "ready" and where the files lie; "preparing"; "refused" and why, in words."""

    state: str
    folder: Path | None = None
    why: str = ""

    def told(self, part: str) -> dict[str, Any]:
        """{"state", "why"} and, of what is ready, what its JSON says."""
        known: dict[str, Any] = {}
        if self.folder is not None:
            known = json.loads((self.folder / PARTS[part]).read_text(encoding="utf-8"))
        return {"state": self.state, "why": self.why, **known}


class Viewing:
    """Thread-safe.

    unpacked   images as files, for as long as somebody works on them
    here       results of one job where this machine can read them, for as long
    gone       is this series deleted?
    confined   the process gives up what it does not need
    """

    def __init__(
        self,
        data_dir: Path,
        most_bytes: int,
        unpacked: Callable[[str, Sequence[Stored]], AbstractContextManager[list[Path]]],
        here: Callable[[Sequence[Path]], AbstractContextManager[Sequence[Path]]],
        *,
        gone: Callable[[str], bool] = lambda series_uid: False,
        confined: bool = True,
        keep_free_bytes: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.data_dir, self.root, self.most_bytes = data_dir, data_dir / FOLDER, most_bytes
        self.unpacked, self.here, self.gone = unpacked, here, gone
        self.confined, self.keep_free_bytes, self.monotonic = confined, keep_free_bytes, monotonic
        self._pool = ThreadPoolExecutor(1, "viewing")
        self._lock = threading.Lock()
        self._open: dict[tuple[Path, str], Future[None]] = {}
        self._refused: dict[tuple[Path, str], tuple[float, str]] = {}  # until when, and why
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def of(self, asked: Asked, part: str) -> Made:
        """What there is of it now; what there is not begins to be made. part: of PARTS. Raises OSError."""
        folder = self.data_dir / folder_name(asked.series_uid) / asked.digest
        key = folder, part
        if (folder / PARTS[part]).exists():
            os.utime(folder)  # what was looked at last goes last
            return Made("ready", folder)
        with self._lock:
            until, why = self._refused.get(key, (0.0, ""))
            if why and self.monotonic() < until:
                return Made("refused", why=why)
            self._refused.pop(key, None)
            if self._closed:
                return Made("refused", why="the node stops")
            if key not in self._open:
                self._open[key] = self._pool.submit(self._make, asked, part, folder)
        return Made("preparing")

    def wait(self, asked: Asked, part: str, seconds: float) -> Made:
        """As `of`, once it is made or refused, or after so many seconds."""
        deadline = self.monotonic() + seconds
        while (made := self.of(asked, part)).state == "preparing" and self.monotonic() < deadline:
            time.sleep(0.05)
        return made

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, asked: Asked, part: str, folder: Path) -> None:
        why = ""
        try:
            why = self._made(asked, part, folder)
        except (NodeError, OSError) as error:
            why = str(error) if isinstance(error, NodeError) else f"it cannot be prepared: {error.strerror}"
        except Exception as error:  # noqa: BLE001  of a thread that serves everybody who looks: told, and it goes on
            told = Told.of(error)
            log.error("viewing failed", error=told.words, trace=told.trace)
            why = "it cannot be prepared; the log of the node says why"
        finally:
            with self._lock:
                if why:
                    now = self.monotonic()
                    self._refused = {k: kept for k, kept in self._refused.items() if kept[0] > now}
                    self._refused[folder, part] = now + AGAIN_AFTER_S, why
                del self._open[folder, part]

    def _made(self, asked: Asked, part: str, folder: Path) -> str:
        """Make the files; why not, in words, or nothing."""
        if not self._has_room(asked):
            return "the disk has too little room for it: what is received comes first"
        unfinished = self.root / f"{UNFINISHED}-{part}-{folder.name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700, parents=True)
        try:
            name = f"viewing-{folder.name}"
            with (
                self.unpacked(f"{name}.{os.getpid()}", asked.images) as files,
                self.unpacked(f"{name}-beside.{os.getpid()}", asked.beside) as beside,
            ):
                why = self._brought_and_run(asked, part, files, beside, unfinished)
            if not why:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                last = PARTS[part]
                for path in sorted(unfinished.iterdir(), key=lambda each: each.name == last):
                    os.replace(path, folder / path.name)
                if self.gone(asked.series_uid):  # meanwhile: what was deleted is not made again
                    self.forget(asked.series_uid)
                    return "its images were deleted here"
                self._keep_within(self.most_bytes, folder)
            return why
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _brought_and_run(
        self, asked: Asked, part: str, files: Sequence[Path], beside: Sequence[Path], folder: Path
    ) -> str:
        with ExitStack() as stack:  # of each job its own: they lie in folders of their own
            here = {job: stack.enter_context(self.here(paths)) for job, paths in asked.results.items()}
            results = {job: [str(path) for path in paths] for job, paths in here.items()}
            told = {
                "path": sys.path,
                "confine": self.confined,
                "part": part,
                "files": [str(path) for path in files],
                "beside": [str(path) for path in beside],
                "results": results,
                "folder": str(folder),
            }
            return self._run(json.dumps(told), folder)

    def _run(self, told: str, folder: Path) -> str:
        with self._lock:
            if self._closed:
                raise TryAgain("the node stops")
            self._process = started(PROGRAM, TMPDIR=str(folder))  # the one place it may write to
        process = self._process
        try:
            answer = answer_of(process, told, LONGEST_S)
        except subprocess.TimeoutExpired:
            return f"it took longer than {LONGEST_S:g} s to prepare"
        finally:
            self._process = None
        if process.returncode == 0:
            return str(json.loads(answer).get("why", ""))
        log.error("viewing process failed", code=process.returncode)
        killed = process.returncode < 0
        return "it cannot be prepared: its process was ended" if killed else "it cannot be prepared: it cannot be read"

    def _has_room(self, asked: Asked) -> bool:
        """Beside what is kept free for images: for these unpacked, and as files. What can be made again goes first."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed = self.keep_free_bytes + 2 * sum(image.size for image in (*asked.images, *asked.beside))
        if shutil.disk_usage(self.root).free < needed:
            self._keep_within(0)
        return shutil.disk_usage(self.root).free >= needed

    def _keep_within(self, most_bytes: int, newest: Path | None = None) -> None:
        """What was looked at longest ago goes; what has just been made stays, whatever it takes."""
        kept = sorted((path for path in self.root.glob("*/*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in kept}
        over = sum(sizes.values()) - most_bytes
        for path in kept:
            if over <= 0:
                return
            if path != newest:
                shutil.rmtree(path, ignore_errors=True)
                over -= sizes[path]
                with suppress(OSError):
                    path.parent.rmdir()

    def forget(self, series_uid: str) -> None:
        """Of a series that is deleted nothing stays. Raises OSError."""
        folder = self.data_dir / folder_name(series_uid)
        if folder.is_dir():
            shutil.rmtree(folder)

    def clear_unfinished(self) -> None:
        """What a process that was killed has left behind."""
        for path in self.root.glob(f"{UNFINISHED}-*"):
            shutil.rmtree(path, ignore_errors=True)
