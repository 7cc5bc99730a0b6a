"""Job -> Findings: one child process per device, with warm models and a time limit; when it ends, its memory is free.

The child is spawned, never forked (CUDA and threads do not survive a fork). It dies with its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import structlog

from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from models import catalogue
from models.pipeline import Card, Declaration, Prior
from pacs_node.errors import GiveUp, Interrupted, JobError, OutOfMemory, Refused, Told, TryAgain, Unforeseen

log = structlog.get_logger()

Progress = Callable[[float, str], None]

_SPAWN = multiprocessing.get_context("spawn")
_PROGRESS_EVERY_S = 0.5  # at most; a row is written for each


@dataclass(frozen=True)
class Load:
    """Have the pipeline ready, warm. Nobody waits for an answer to that: the job that needs it is told."""

    pipeline: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Describe:
    """The card of the pipeline, loaded."""

    pipeline: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Analyse:
    """The findings in these files of one series."""

    pipeline: str
    options: Mapping[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Compare:
    """What became of the findings since an earlier study."""

    pipeline: str
    findings: Findings
    files: tuple[Path, ...]
    prior: Prior


Request = Load | Describe | Analyse | Compare


class Inference:
    """One device's child process. Thread-safe: one job at a time, the others wait."""

    def __init__(self, device: str, timeout_s: float, pipelines: Mapping[str, str] | None = None) -> None:
        """pipelines: name -> "module:DECLARATION"; when not given, all that are here."""
        self.device, self.timeout_s = device, timeout_s
        self.pipelines = dict(catalogue().targets if pipelines is None else pipelines)
        self._lock = threading.Lock()
        self._child: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._closing = False

    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Progress) -> Findings:
        """Raises Refused (unfit input), TryAgain (the process died), OutOfMemory, GiveUp (no answer in time: it would
        take as long again); Unforeseen for any other error in the process, which does not die of it."""
        return self._ask(Analyse(pipeline, dict(options), tuple(files)), pipeline, self.timeout_s, progress)

    def compare(
        self, pipeline: str, findings: Findings, files: Sequence[Path], prior: Prior, timeout_s: float
    ) -> Comparison:
        """What became of the findings since an earlier study. Raises as `run` does."""
        request = Compare(pipeline, findings, tuple(files), prior)
        return self._ask(request, f"the comparison of {pipeline}", timeout_s, lambda *_: None)

    def card(self, pipeline: str, options: Mapping[str, Any]) -> Card:
        """What `run` would ask now, loaded and warm. Raises as `run` does."""
        return self._ask(Describe(pipeline, dict(options)), pipeline, self.timeout_s, lambda *_: None)

    def version(self, pipeline: str, options: Mapping[str, Any]) -> str:
        """The version of the algorithm that `run` would use now. Raises as `run` does."""
        return self.card(pipeline, options).algorithm.version

    def _ask(self, request: Request, what: str, timeout_s: float, progress: Progress) -> Any:
        with self._lock:
            pipe = self._ready()
            answered = False
            try:
                pipe.send(request)
                kind, content = self._answer(pipe, what, timeout_s, progress)
                answered = True
            except (EOFError, BrokenPipeError, ConnectionResetError) as error:
                if self._closing:
                    raise Interrupted(f"{what} was stopped with the node") from error
                code, how = self._ended()
                kind_of = OutOfMemory if code == -signal.SIGKILL else TryAgain
                raise kind_of(f"the inference process ended while running {what} ({how})") from error
            finally:
                if not answered:
                    self.stop()  # or the next job would be given this one's answer
            if kind == "done":
                return content
            raise self._failure(what, kind, content)

    def _answer(self, pipe: Connection, what: str, timeout_s: float, progress: Progress) -> tuple[str, Any]:
        """The child's last word on the job; its progress on the way. Raises GiveUp when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while pipe.poll(max(0.0, deadline - time.monotonic())):
            kind, content = pipe.recv()
            if kind != "progress":
                return kind, content
            progress(*content)
        raise GiveUp(f"{what} gave no answer within {timeout_s:g} s; its process was ended")

    def warm(self, pipelines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Start the child and load these pipelines with their options, so that the first patient does not wait."""
        with self._lock:
            for name, options in pipelines:
                self._ready().send(Load(name, dict(options)))

    def peak_memory_bytes(self) -> int | None:
        """The most memory that the child has held; None where the system does not say, or there is no child."""
        child = self._child
        try:
            status = Path(f"/proc/{child.pid}/status").read_text() if child is not None else ""
        except OSError:
            return None
        found = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        return int(found.split()[1]) * 1024 if found else None

    def stop(self) -> None:
        """End the child; all memory of the device and the models is given back."""
        child, self._child, self._pipe = self._child, None, None
        if child is not None:
            child.kill()
            child.join()

    def close(self) -> None:
        """The node is stopping: end the child now; whoever waits for it hears Interrupted."""
        self._closing = True
        child = self._child
        if child is not None:
            child.kill()

    def _ready(self) -> Connection:
        if self._closing:
            raise Interrupted("the node is stopping")
        if self._child is None or not self._child.is_alive() or self._pipe is None:
            self.stop()
            ours, theirs = _SPAWN.Pipe()
            self._child = _SPAWN.Process(
                target=_serve, args=(theirs, self.device, self.pipelines), name="inference", daemon=True
            )
            self._child.start()
            theirs.close()
            self._pipe = ours
            log.info("inference process started", device=self.device, pid=self._child.pid)
        return self._pipe

    def _ended(self) -> tuple[int | None, str]:
        """The exit code of the child, and in words."""
        child = self._child
        if child is None:
            return None, "stopped"
        child.join(5)
        code = child.exitcode
        self.stop()
        if code is not None and code < 0:
            hint = "; out of memory?" if code == -signal.SIGKILL else ""
            return code, f"signal {signal.Signals(-code).name}{hint}"
        return code, f"exit code {code}"

    def _failure(self, what: str, kind: str, content: Any) -> JobError:
        if kind == "unfit":
            return Refused(content)
        if kind == "memory":
            self.stop()  # a process that ran out of memory keeps what it had
            return OutOfMemory(f"out of memory on {self.device}: {content}; the inference process was restarted")
        if kind == "unforeseen":
            told, spoilt = content
            if spoilt:
                self.stop()
            return Unforeseen(what, told)
        return GiveUp(content)


def choose_device(wanted: str) -> str:
    """The device for "auto": cuda when there is one, then cpu."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _serve(pipe: Connection, device: str, pipelines: Mapping[str, str]) -> None:
    """The child: answer one request after the other, end with the parent. No error of a request ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    models: _Models | None = None
    while True:
        try:
            request: Request = pipe.recv()
        except EOFError:
            return
        try:
            models = models or _Models(device, pipelines)
            answer = models.answer(request, lambda *said: pipe.send(("progress", said)))
            if not isinstance(request, Load):
                pipe.send(answer)
        except Exception as error:  # noqa: BLE001  the edge of the child: it answers in words instead of dying
            if not isinstance(request, Load):
                # an error on a device may leave that in a state in which nothing works any more
                pipe.send(("unforeseen", (Told.of(error), models is not None and models.on_a_device)))


class _Models:
    """The pipelines of the child, loaded when first asked for."""

    def __init__(self, device: str, pipelines: Mapping[str, str]) -> None:
        self.device, self.pipelines = choose_device(device), pipelines
        self.loaded: dict[str, Any] = {}

    @property
    def on_a_device(self) -> bool:
        return self.device != "cpu"

    def answer(self, request: Request, progress: Progress) -> tuple[str, Any]:
        """(kind, content). Errors that are foreseen are answers, too."""
        import torch

        from models.options import BadOptions, WeightsError
        from models.pipeline import BadOutput, BadPipeline, UnfitInput

        try:
            return "done", self._answer(request, progress)
        except UnfitInput as refusal:
            return "unfit", str(refusal)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return "memory", (str(error).splitlines() or ["no more memory"])[0]
        except (WeightsError, BadOptions, BadOutput, BadPipeline) as error:
            return "failed", str(error)

    def _answer(self, request: Request, progress: Progress) -> Any:
        match request:
            case Load(name, options):
                self.pipeline(name, options)
                return None
            case Describe(name, options):
                return self.pipeline(name, options).card
            case Analyse(name, options, files):
                started = time.monotonic()
                findings = self.pipeline(name, options).run(list(files), _seldom(progress))
                return _timed(findings, time.monotonic() - started, self.device)
            case Compare():
                return self.compare(request)

    def compare(self, request: Compare) -> Comparison:
        from models import comparison
        from models.pipeline import BadPipeline

        compare = comparison(self.declaration(request.pipeline))
        if compare is None:
            raise BadPipeline(f"{request.pipeline} does not compare with earlier studies")
        return compare(request.findings, list(request.files), request.prior)

    def declaration(self, name: str) -> Declaration:
        from models import declaration_at
        from models.options import BadOptions

        if name not in self.pipelines:
            raise BadOptions(f"there is no pipeline '{name}'; there are {', '.join(sorted(self.pipelines))}")
        return declaration_at(self.pipelines[name])

    def pipeline(self, name: str, options: Mapping[str, Any]) -> Any:
        from models import build

        key = f"{name} {sorted(options.items())}"
        if key not in self.loaded:
            loaded = build(self.declaration(name), self.device, options)
            loaded.warm()
            self.loaded[key] = loaded  # only one that is whole: one that could not be warmed is built anew
        return self.loaded[key]


def _seldom(progress: Progress) -> Progress:
    last = 0.0

    def report(fraction: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_EVERY_S:
            last = time.monotonic()
            progress(fraction, text)

    return report


def _timed(findings: Findings, seconds: float, device: str) -> Findings:
    from dataclasses import replace

    return replace(findings, facts={**findings.facts, "seconds": round(seconds, 3), "device": device})


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # whatever is running: nobody waits for the answer any more
