"""The devices that inferences run on: a child process for each that the settings name, and who may begin on which.

A job begins where nothing runs, if the memory that it is expected to take is free beside what runs; what has not been
measured yet, or ran out before, has the machine for itself. They begin in the order in which they ask, so a large one
is not passed by small ones for ever. A device that fails again and again rests, while others work.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from models.forms import Choice, keep
from models.pipeline import Card, Prior
from pacs_node.durable import write_whole
from pacs_node.errors import Interrupted, JobError, OutOfMemory, Refused, TimedOut, TryAgain, Unforeseen
from pacs_node.infer import MOST_OF_MEMORY, Inference, Progress
from pacs_node.memory import Peaks, free_bytes, machine_bytes
from pacs_node.records import Pause, device_pauses

log = structlog.get_logger()

SICK_AFTER = 3  # failures in a row that may be the device's
REST_S, LONGEST_REST_S = 60.0, 900.0  # then; twice as long with each further one
LOOK_EVERY_S = 0.5  # whether there is room now: memory becomes free without a word
MOST_OF_DEVICE = 0.9  # of a CUDA device's memory; drivers need some


@dataclass(frozen=True)
class Need:
    """What an inference will take, as far as that is known."""

    main: int = 0  # bytes
    device: int = 0  # bytes of a CUDA device
    alone: str = ""  # "machine" or "device": nothing else may run there meanwhile
    why_alone: str = ""
    afresh: bool = False  # in a process that has held no other model


@dataclass(eq=False)
class Device:
    """One child process, and what runs on it."""

    name: str  # "cpu", "cuda:0"
    inference: Inference
    need: Need | None = None  # of what runs; None: nothing does
    does: str = ""
    failures: int = 0  # in a row
    failure: str = ""  # the last
    rests_until: float = 0.0  # of a clock that nobody sets
    paused: bool = False  # by a person: nothing begins on it that could begin on another

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    def is_apart(self, other: Device) -> bool:
        """Whether they are two CUDA devices: those have no memory of their own in common."""
        return self.kind == other.kind == "cuda" and self.name != other.name


class Devices:
    """All devices of this worker. Thread-safe: as many jobs at a time as there are devices and memory for."""

    def __init__(
        self,
        names: Sequence[str],
        timeout_s: float,
        pipelines: Mapping[str, str] | None = None,
        *,
        memory_gb: float = 0.0,
        confined: bool = True,
        peaks: Peaks | None = None,
        forms_at: Path | None = None,
        reads: Sequence[Path] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """memory_gb: for all of them together; 0: as MOST_OF_MEMORY says. forms_at: where the forms of networks are
        kept, see models/forms.py. reads: as Inference takes it."""
        self.memory_bytes = int(memory_gb * 1e9) or int(MOST_OF_MEMORY * machine_bytes())
        self.peaks, self.forms_at, self.monotonic = peaks or Peaks(), forms_at, monotonic
        threads = _threads(list(names).count("cpu"))
        self.all = [
            Device(
                name,
                Inference(
                    name,
                    timeout_s,
                    pipelines,
                    memory_gb=self.memory_bytes / 1e9,
                    confined=confined,
                    threads=threads,
                    beside=partial(self._held_beside, number),
                    forms_at=forms_at,
                    reads=reads,
                ),
            )
            for number, name in enumerate("cuda:0" if each == "cuda" else each for each in names)
        ]
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._closing = self._preparing = False

    def _held_beside(self, number: int) -> list[int]:
        """Bytes that the processes of the other devices hold."""
        return [other.inference.held() for other in (*self.all[:number], *self.all[number + 1 :])]

    # ---- what is asked of them

    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Progress) -> Findings:
        """As Inference.run does, on the device that is fit for it; waits for that."""
        task = task_of(pipeline, options)
        with self._on_one(task, pipeline, len(files), lambda words: progress(0.0, words)) as device:
            return device.inference.run(pipeline, options, files, progress)

    def compare(
        self, pipeline: str, findings: Findings, files: Sequence[Path], prior: Prior, timeout_s: float
    ) -> Comparison:
        with self._on_one(f"compare {pipeline}", f"the comparison of {pipeline}", len(files)) as device:
            return device.inference.compare(pipeline, findings, files, prior, timeout_s)

    def card(self, pipeline: str, options: Mapping[str, Any]) -> Card:
        with self._on_one(None, pipeline, 0) as device:
            return device.inference.card(pipeline, options)

    def version(self, pipeline: str, options: Mapping[str, Any]) -> str:
        return self.card(pipeline, options).algorithm.version

    def warm(self, pipelines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        for device in self.all:
            device.inference.warm(pipelines)

    def prepare(self, pipelines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """As `warm`; and what is not known yet of the forms of their networks is measured first. Jobs wait for that:
        they would disturb it, and be answered in another form than the next ones."""
        self._preparing = True
        threading.Thread(target=self._prepare, args=(pipelines,), name="prepare", daemon=True).start()

    def _prepare(self, pipelines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        try:
            for device, name, options in ((d, *each) for d in self.all for each in pipelines):
                try:
                    self.tune(device, name, options)
                except Interrupted:
                    return
                except JobError as error:  # the job that needs it is told, by itself
                    log.warning("pipeline not warmed", pipeline=name, device=device.name, error=str(error))
        finally:
            with self._changed:
                self._preparing = False
                self._changed.notify_all()

    def tune(self, device: Device, pipeline: str, options: Mapping[str, Any], *, anew: bool = False) -> list[Choice]:
        """The forms of its networks that are kept from now on. anew: even where others were kept."""
        measured = device.inference.tune(pipeline, options)
        if not measured or self.forms_at is None:
            return []
        try:
            kept = keep(self.forms_at, measured, _write, anew=anew)
        except OSError as error:  # what is not written down does not count: the next start would choose again
            log.warning("forms of networks not kept", error=error.strerror)
            device.inference.stop()
            return []
        if any(kept[choice.key] != choice for choice in measured):  # another worker has chosen meanwhile
            device.inference.stop()
        return [kept[choice.key] for choice in measured]

    def heed(self, pauses: Sequence[Pause], machine: str) -> int:
        """Take up which devices are paused; how many are not."""
        with self._changed:
            for device in self.all:
                device.paused = bool(device_pauses(pauses, device.name, machine))
            self._changed.notify_all()
            return sum(not device.paused for device in self.all)

    def stop(self) -> None:
        for device in self.all:
            device.inference.stop()

    def close(self) -> None:
        """The node is stopping: whoever waits for a device or an answer hears Interrupted."""
        self._closing = True
        for device in self.all:
            device.inference.close()
        with self._changed:
            self._changed.notify_all()

    def facts(self) -> list[dict[str, Any]]:
        """Each device, as plain values: what runs there, what it holds, and what ails it."""
        with self._changed:
            now = self.monotonic()
            return [
                {
                    "device": device.name,
                    "state": "running"
                    if device.need is not None
                    else "paused"
                    if device.paused
                    else "resting"
                    if device.rests_until > now
                    else "idle",
                    "does": device.does,
                    "loaded": device.inference.loaded(),
                    "held_mb": device.inference.held() >> 20,
                    "memory_mb": device.inference.device_bytes >> 20,
                    "failures": device.failures,
                    "failure": device.failure,
                }
                for device in self.all
            ]

    def trouble(self) -> list[str]:
        """Devices that rest, in words."""
        now = self.monotonic()
        return [
            f"device {device.name} has failed {device.failures} times in a row and is left alone for"
            f" {device.rests_until - now:.0f} s; the last: {device.failure}"
            for device in self.all
            if device.rests_until > now
        ]

    # ---- who may begin where

    @contextmanager
    def _on_one(
        self, task: str | None, name: str, files: int, tell: Callable[[str], None] = lambda words: None
    ) -> Iterator[Device]:
        """A device for as long as the work lasts. task: None for what takes no memory worth speaking of."""
        device = self._take(task, name, files, tell)
        try:
            yield device
        except BaseException as error:
            with self._changed:
                self._heed(device, task, files, error)
                self._give_back(device)
            raise
        with self._changed:
            device.failures = 0
            if task is not None:
                took = device.inference.most_held, device.inference.most_on_device
                self.peaks.note(f"{task} on {device.kind}", files, *took)
            self._give_back(device)

    def _take(self, task: str | None, name: str, files: int, tell: Callable[[str], None]) -> Device:
        mine, told = object(), ""
        with self._changed:
            self._waiting.append(mine)
            try:
                while True:
                    if self._closing:
                        raise Interrupted("the node is stopping")
                    why = "it is measured how networks are served best"
                    if not self._preparing:
                        why = "other jobs asked before it"
                    if self._waiting[0] is mine and not self._preparing:
                        found, why = self._fit(task, files)
                        if found is not None:
                            self._begin(found, self._need(task, found, files), name)
                            return found
                    if why != told:
                        told = why
                        self._changed.release()  # the page of a job may wait for the ledger: that holds up no other
                        try:
                            tell(f"waits: {why}")
                        finally:
                            self._changed.acquire()
                    self._changed.wait(LOOK_EVERY_S)
            finally:
                self._waiting.remove(mine)
                self._changed.notify_all()

    def _need(self, task: str | None, device: Device, files: int) -> Need:
        if task is None:
            return Need()
        expected = self.peaks.expected(f"{task} on {device.kind}", files)
        if expected is None:
            return Need(alone="machine", why_alone="its memory has not been measured yet")
        if expected.ran_out:
            alone = "device" if expected.ran_out == "device" else "machine"
            return Need(alone=alone, why_alone="there was too little memory for it before", afresh=True)
        return Need(expected.main, expected.device)

    def _fit(self, task: str | None, files: int) -> tuple[Device | None, str]:
        """A device that it may begin on now; or why there is none."""
        now = self.monotonic()
        left = [device for device in self.all if not device.paused] or self.all  # what has begun ends, on any
        well = [device for device in left if device.rests_until <= now]
        # all are ill: the job that comes tries the one that has rested longest
        usable = well or sorted(left, key=lambda device: device.rests_until)[:1]
        reasons = ["every device is at work"]
        # first those on which least runs: they have most memory
        for device in sorted(usable, key=lambda each: (len(self._with(each)), each.failures)):
            if device.need is None:
                why_not = self._why_no_room(device, self._need(task, device, files))
                if why_not is None:
                    return device, ""
                reasons.append(why_not)
        return None, reasons[-1]

    def _with(self, device: Device) -> list[Device]:
        """What runs on the same device, or shares its memory."""
        return [other for other in self.all if other.need is not None and not other.is_apart(device)]

    def _why_no_room(self, device: Device, need: Need) -> str | None:
        running, same = [other for other in self.all if other.need is not None], self._with(device)
        if need == Need() or not running:
            return None
        if need.alone and (same if need.alone == "device" else running):
            return f"{need.why_alone}, so nothing may run beside it"
        for other in running:
            if other.need is not None and (other.need.alone == "machine" or (other.need.alone and other in same)):
                return f"nothing may run beside {other.does}: {other.need.why_alone}"
        return self._why_no_main(device, need, running) or self._why_none_on(device, need, same)

    def _why_none_on(self, device: Device, need: Need, same: Sequence[Device]) -> str | None:
        """Of a CUDA device that is named more than once."""
        total = device.inference.device_bytes
        wanted = need.device + sum(other.need.device for other in same if other.need is not None)
        if not same or not total or wanted <= MOST_OF_DEVICE * total:
            return None
        return f"{wanted / 1e9:.1f} GB of {device.name} would be needed, it has {total / 1e9:.1f} GB"

    def _why_no_main(self, device: Device, need: Need, running: Sequence[Device]) -> str | None:
        at_work = [(other.inference.held(), other.need.main) for other in running if other.need is not None]
        all_in_all = need.main + sum(max(held, main) for held, main in at_work)
        if all_in_all > self.memory_bytes:
            return f"{all_in_all / 1e9:.1f} GB would be needed, it may be {self.memory_bytes / 1e9:.1f} GB (memory_gb)"
        more = max(0, need.main - device.inference.held()) + sum(max(0, main - held) for held, main in at_work)
        warm = sum(other.inference.held() for other in self.all if other.need is None and other is not device)
        if more > free_bytes() + warm:
            return (
                f"{more / 1e9:.1f} GB more would be needed than is held, {(free_bytes() + warm) / 1e9:.1f} GB are free"
            )
        return None

    def _begin(self, device: Device, need: Need, name: str) -> None:
        if need.afresh:
            device.inference.stop()
        device.need, device.does = need, name
        device.inference.most_held = device.inference.most_on_device = 0
        # models that are warm elsewhere are given up, the largest first, where they are in the way
        wanted = self.memory_bytes if need.afresh else need.main
        idle = [other for other in self.all if other.need is None]
        for other in sorted(idle, key=lambda each: -each.inference.held()):
            allowed = self.memory_bytes - sum(each.inference.held() for each in self.all)
            if wanted - device.inference.held() <= min(allowed, free_bytes()) or not other.inference.held():
                return
            log.info("warm models given up for memory", device=other.name)
            other.inference.stop()

    def _heed(self, device: Device, task: str | None, files: int, error: BaseException) -> None:
        """What a failure says of the device, and of the memory that such a job takes."""
        if isinstance(error, OutOfMemory) and task is not None:
            what = "device" if error.of_device and device.kind == "cuda" else "main"
            self.peaks.note_ran_out(f"{task} on {device.kind}", files, what)
        if isinstance(error, Refused):
            device.failures = 0
        elif isinstance(error, TryAgain | TimedOut) or (device.kind == "cuda" and isinstance(error, Unforeseen)):
            self._has_failed(device, str(error))

    def _give_back(self, device: Device) -> None:
        device.need, device.does = None, ""
        self._changed.notify_all()

    def _has_failed(self, device: Device, words: str) -> None:
        device.failures, device.failure = device.failures + 1, words
        if device.failures >= SICK_AFTER and len(self.all) > 1:
            rest_s = min(LONGEST_REST_S, REST_S * 2 ** min(device.failures - SICK_AFTER, 10))
            device.rests_until = self.monotonic() + rest_s
            log.error("device rests", device=device.name, seconds=rest_s, failures=device.failures, last=words)


def task_of(pipeline: str, options: Mapping[str, Any]) -> str:
    """What takes as much memory for as many files."""
    told = json.dumps(dict(options), sort_keys=True, default=str)
    return f"{pipeline} {hashlib.sha256(told.encode()).hexdigest()[:8]}" if options else pipeline


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda file: file.write(content))


def _threads(children: int) -> int | None:
    """Of each child, where several share the processor."""
    return max(1, len(os.sched_getaffinity(0)) // children) if children > 1 else None
