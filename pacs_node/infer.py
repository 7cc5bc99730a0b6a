"""Job -> Findings: one child process per device, with warm models and a time limit; when it ends, its memory is free.

The child is a program of its own, never forked (CUDA and threads do not survive a fork), and dies with its parent. It
is confined (`confine.py`), and what it says are plain messages (`messages.py`): nothing of it runs in the parent.
Pipelines that start programs of other makers have a child of their own, for those need what they need.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from config.secrets import environment_without_secrets
from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from dicom_sr.typed import WrongType, made, plain
from models import catalogue, declaration_at, forms
from models.forms import Choice
from models.pipeline import Card, Declaration, Prior
from pacs_node.errors import (
    DISK_ERRORS,
    GiveUp,
    Interrupted,
    JobError,
    OutOfMemory,
    ProcessDied,
    Refused,
    TimedOut,
    Told,
    TryAgain,
    Unforeseen,
)
from pacs_node.memory import machine_bytes
from pacs_node.messages import BadMessage, Late, Messages

log = structlog.get_logger()

Progress = Callable[[float, str], None]
Identity = tuple[int, int] | None  # of a file or folder: device and inode; None: it is not there

PROGRAM = Path(__file__).with_name("inference_process.py")
MOST_OF_MEMORY = 0.9  # of the machine, or the container, where the settings name no limit
LONGEST_WORDS, LONGEST_TRACE = 4000, 40_000  # characters of what the child says of an error
ENDS_WITHIN_S = 5.0  # a child that has closed its end
_PROGRESS_EVERY_S = 0.5  # at most; a row is written for each


@dataclass(frozen=True)
class Load:
    """Have the pipeline ready, warm. Nobody waits for an answer to that: the job that needs it is told."""

    pipeline: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Tune:
    """Have the pipeline ready; where no form is kept for a network of it, measure which is the fastest."""

    pipeline: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Tuned:
    """The forms that were chosen, now or before; of networks that have several."""

    choices: tuple[Choice, ...]


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


Request = Load | Tune | Describe | Analyse | Compare

REQUESTS: dict[str, type[Request]] = {kind.__name__: kind for kind in (Load, Tune, Describe, Analyse, Compare)}
ANSWERS: dict[type[Request], type] = {Tune: Tuned, Describe: Card, Analyse: Findings, Compare: Comparison}


# What the child says besides an answer


@dataclass(frozen=True)
class Begun:
    """The first it says. lacking: what it could not give up."""

    lacking: tuple[str, ...]


@dataclass(frozen=True)
class At:
    fraction: float
    text: str


@dataclass(frozen=True)
class Took:
    """The most memory of a CUDA device that the job has held, and how much that has. Before the answer."""

    device: int  # bytes
    of: int


@dataclass(frozen=True)
class Unfit:
    words: str


@dataclass(frozen=True)
class NoMemory:
    words: str


@dataclass(frozen=True)
class Failed:
    """Foreseen, and no fault of the images."""

    words: str


@dataclass(frozen=True)
class DiskFails:
    """Waiting may cure it."""

    words: str


@dataclass(frozen=True)
class Broken:
    """By an error that nobody foresaw. spoilt: nothing may work any more on its device."""

    words: str
    trace: str
    spoilt: bool


Said = Begun | At | Took | Unfit | NoMemory | Failed | DiskFails | Broken
SAID: dict[str, type[Said]] = {
    kind.__name__: kind for kind in (Begun, At, Took, Unfit, NoMemory, Failed, DiskFails, Broken)
}
ANSWER = "Answer"


class Child:
    """A running child process, and the parent's ends of what joins them."""

    def __init__(
        self,
        device: str,
        pipelines: Mapping[str, str],
        *,
        confined: bool,
        programs: bool,
        threads: int | None = None,
        forms_at: Path | None = None,
        reads: Mapping[Path, Identity] | None = None,
    ) -> None:
        """threads: of the processor; None: what its libraries choose, all of them. forms_at: where the forms of
        networks are kept. reads: what it needs to read besides libraries; None: whatever it may"""
        ours, theirs = socket.socketpair()
        line, self._life_line = os.pipe()
        environment = environment_without_secrets()
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        told = {
            "path": sys.path,
            "messages": theirs.fileno(),
            "life_line": line,
            "device": device,
            "pipelines": dict(pipelines),
            "confine": confined,
            "programs": programs,
            "forms": None if forms_at is None else str(forms_at),
            "reads": None if reads is None else [str(path) for path in reads],
        }
        self.reads = reads
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), json.dumps(told)],
                pass_fds=(theirs.fileno(), line),
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        finally:
            theirs.close()
            os.close(line)
        self.messages = Messages(ours)
        self.begun = False
        self.loaded: set[str] = set()  # pipelines that it holds, warm
        log.info("inference process started", device=device, pid=self.process.pid)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def memory_bytes(self, *fields: str) -> int | None:
        """The sum of these lines of its status; None where the system does not say."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        found = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.partition(":")[0] in fields]
        return sum(found) if found else None

    def end(self) -> None:
        """Kill it; all memory of the device and the models is given back. Harmless when it has ended."""
        self.process.kill()
        self.process.wait()
        self.messages.end.close()
        line, self._life_line = self._life_line, -1
        if line >= 0:
            os.close(line)

    def ended(self) -> tuple[int, str]:
        """Of one that has closed its end: its exit code, and in words."""
        try:
            code = self.process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            return 0, "it closed its end and stayed"
        if code < 0:
            hint = "; out of memory?" if code == -signal.SIGKILL else ""
            return code, f"signal {signal.Signals(-code).name}{hint}"
        return code, f"exit code {code}"


class Inference:
    """The child processes of one device. Thread-safe: one job at a time, the others wait."""

    def __init__(
        self,
        device: str,
        timeout_s: float,
        pipelines: Mapping[str, str] | None = None,
        *,
        memory_gb: float = 0.0,
        confined: bool = True,
        threads: int | None = None,
        beside: Callable[[], Sequence[int]] = lambda: (),
        forms_at: Path | None = None,
        reads: Sequence[Path] | None = None,
    ) -> None:
        """pipelines: name -> "module:DECLARATION"; when not given, all that are here. memory_gb: 0: as MOST_OF_MEMORY
        says. threads: of the processor. beside: what the processes of other devices hold, bytes. forms_at: where
        the forms of networks are kept; None: they are as a rule. reads: folders in which the images lie: a confined
        child reads nothing else, but for libraries and what options name; None: whatever it may."""
        self.device, self.timeout_s, self.confined = device, timeout_s, confined
        self.memory_bytes = int(memory_gb * 1e9) or int(MOST_OF_MEMORY * machine_bytes())
        self.pipelines = dict(catalogue().targets if pipelines is None else pipelines)
        self.threads, self.beside, self.forms_at = threads, beside, forms_at
        self.most_held = self.most_on_device = 0  # bytes, since somebody set them to 0
        self.device_bytes = 0  # of the CUDA device; 0: not known yet
        self._lock = threading.Lock()
        self._folders = [*(reads or ()), *([forms_at.parent] if forms_at is not None else ())]
        self._reads = None if reads is None else set(self._folders)
        self._children: dict[bool, Child] = {}  # by whether it starts programs of others
        self._closing = False

    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Progress) -> Findings:
        """Raises Refused (unfit input), ProcessDied, OutOfMemory, GiveUp (no answer in time: it would
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

    def tune(self, pipeline: str, options: Mapping[str, Any]) -> tuple[Choice, ...]:
        """The forms of its networks, measured where none are kept; it is loaded and warm then. Raises as `run` does."""
        request = Tune(pipeline, dict(options))
        told: Tuned = self._ask(request, f"measuring {pipeline}", self.timeout_s, lambda *_: None)
        return told.choices

    def version(self, pipeline: str, options: Mapping[str, Any]) -> str:
        """The version of the algorithm that `run` would use now. Raises as `run` does."""
        return self.card(pipeline, options).algorithm.version

    def _ask(self, request: Request, what: str, timeout_s: float, progress: Progress) -> Any:
        with self._lock:
            deadline = time.monotonic() + timeout_s
            if not isinstance(request, Compare):
                self._will_read(request.options)
            child = self._ready(request.pipeline)
            child.messages.meanwhile = lambda: self._within_memory(child, what)
            answered = False
            try:
                _send_request(child.messages, request, deadline)
                said = self._answer(child, request, deadline, progress)
                answered = True
                if not isinstance(said, Said):
                    child.loaded.add(request.pipeline)
                self.most_held = max(self.most_held, self.held(child))
            except Late as late:
                raise TimedOut(f"{what} gave no answer within {timeout_s:g} s; its process was ended") from late
            except BadMessage as bad:
                raise GiveUp(f"{what} failed: what its process answered cannot be used: {bad}; it was ended") from bad
            except (EOFError, BrokenPipeError, ConnectionResetError) as error:
                if self._closing:
                    raise Interrupted(f"{what} was stopped with the node") from error
                code, how = child.ended()
                kind = OutOfMemory if code == -signal.SIGKILL else ProcessDied
                raise kind(f"the inference process ended while running {what} ({how})") from error
            finally:
                child.messages.meanwhile = lambda: None
                if not answered:
                    self.stop()  # or the next job would be given this one's answer
            if isinstance(said, Said):
                raise self._failure(what, said)
            return said

    def _answer(self, child: Child, request: Request, deadline: float, progress: Progress) -> Any:
        """What the child answers, or its last word on the job; its progress on the way. Raises Late, BadMessage."""
        heard = -math.inf
        while True:
            told, arrays = child.messages.receive(deadline)
            said = _read(told, arrays, ANSWERS.get(type(request)))
            if isinstance(said, Begun):
                if child.begun:
                    raise BadMessage("it begins twice")
                child.begun = True
                if said.lacking:
                    log.warning("inference process not confined", lacking=[each[:200] for each in said.lacking[:10]])
            elif isinstance(said, Took):
                self.most_on_device, self.device_bytes = max(self.most_on_device, said.device), said.of
            elif not isinstance(said, At):
                return said
            elif time.monotonic() - heard >= _PROGRESS_EVERY_S / 2:
                heard = time.monotonic()
                progress(min(max(0.0, said.fraction), 1.0), said.text[:200])  # a NaN is nothing

    def _within_memory(self, child: Child, what: str) -> None:
        """Before the kernel ends it, or something else in its place. Raises OutOfMemory."""
        held, others = self.held(child), self.beside()
        self.most_held = max(self.most_held, held)
        if held > self.memory_bytes:
            raise OutOfMemory(
                f"{what} took {held / 1e9:.1f} GB of memory, more than {self.memory_bytes / 1e9:.1f} GB (memory_gb in"
                " [infer]); its process was ended"
            )
        if held + sum(others) > self.memory_bytes and held >= max(others):
            raise OutOfMemory(
                f"{what} took {held / 1e9:.1f} GB of memory beside {sum(others) / 1e9:.1f} GB of other inferences, more"
                f" than {self.memory_bytes / 1e9:.1f} GB together (memory_gb in [infer]); its process was ended"
            )

    def held(self, child: Child | None = None) -> int:
        """Bytes that a child, or all of them, hold now and share with nobody."""
        children = list(self._children.values()) if child is None else [child]
        return sum(each.memory_bytes("RssAnon", "RssShmem") or 0 for each in children)

    def loaded(self) -> list[str]:
        """Pipelines that a living child has run, and holds for the next job."""
        return sorted({name for child in list(self._children.values()) for name in child.loaded if child.is_alive})

    def warm(self, pipelines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Start the child and load these pipelines with their options, so that the first patient does not wait."""
        with self._lock:
            for _, options in pipelines:
                self._will_read(options)
            for name, options in pipelines:
                child = self._ready(name)
                try:
                    _send_request(child.messages, Load(name, dict(options)), time.monotonic() + self.timeout_s)
                except (Late, OSError) as error:  # the job that needs it is told, by the next process
                    log.warning("pipeline not warmed", pipeline=name, error=type(error).__name__)

    def peak_memory_bytes(self) -> int | None:
        """The most memory that a child has held; None where the system does not say, or there is none."""
        peaks = [child.memory_bytes("VmHWM") for child in self._children.values()]
        return max((peak for peak in peaks if peak is not None), default=None)

    def stop(self) -> None:
        """End the children; all memory of the device and the models is given back."""
        while self._children:
            self._children.popitem()[1].end()

    def close(self) -> None:
        """The node is stopping: end the children now; whoever waits for one hears Interrupted."""
        self._closing = True
        for child in list(self._children.values()):
            child.process.kill()

    def _ready(self, pipeline: str) -> Child:
        if self._closing:
            raise Interrupted("the node is stopping")
        programs = self._starts_programs(pipeline)
        child = self._children.get(programs)
        reads = None if programs else self._readable()
        if child is None or not child.is_alive or child.reads != reads:
            if child is not None:
                self._children.pop(programs).end()
            child = Child(
                self.device,
                self.pipelines,
                confined=self.confined,
                programs=programs,
                threads=self.threads,
                forms_at=self.forms_at,
                reads=reads,
            )
            self._children[programs] = child
            if self._closing:  # since it was looked at: `close` has not seen this one
                self.stop()
                raise Interrupted("the node is stopping")
        return child

    def _will_read(self, options: Mapping[str, Any]) -> None:
        """What a pipeline is told may name its weights. A child cannot be given more to read: another takes its
        place."""
        if self._reads is not None:
            self._reads |= set(places_in(options))

    def _readable(self) -> dict[Path, Identity] | None:
        if self._reads is None:
            return None
        for folder in self._folders:
            with suppress(OSError):  # the job that finds it missing is told
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {path: _identity(path) for path in self._reads}

    def _starts_programs(self, pipeline: str) -> bool:
        """Whether it does; a pipeline that cannot be loaded says so in the child."""
        try:
            return declaration_at(self.pipelines[pipeline]).options.starts_programs
        except Exception:  # noqa: BLE001  the edge of another's package
            return False

    def _failure(self, what: str, said: Said) -> JobError:
        match said:
            case Unfit(words):
                return Refused(words)
            case NoMemory(words):
                self.stop()  # a process that ran out of memory keeps what it had
                words = f"out of memory on {self.device}: {words}; the inference process was restarted"
                return OutOfMemory(words, of_device=True)
            case Broken(words, trace, spoilt):
                if spoilt:
                    self.stop()
                return Unforeseen(what, Told(words, trace))
            case Failed(words):
                return GiveUp(words)
            case DiskFails(words):
                self.stop()  # it may be the descriptors of that process that have run out
                return TryAgain(f"{what}: {words}")
            case _:
                raise AssertionError(said)


def places_in(value: Any) -> Iterator[Path]:
    """Files and folders that options name by absolute paths."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from places_in(each)
    elif isinstance(value, str) and len(path := Path(value).parts) > 1 and path[0] == "/":
        yield Path(value)


def _identity(path: Path) -> Identity:
    """Another one when it was made anew: what a child may read it may by this."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _send_request(messages: Messages, request: Request, deadline: float) -> None:
    arrays: list[Any] = []
    told = plain(request, arrays)
    messages.send([type(request).__name__, told], arrays, deadline)


def _read(told: Any, arrays: Mapping[str, Any], answer: type | None) -> Any:
    """What the child says, as one of SAID or as the answer that was asked for. Raises BadMessage."""
    if not isinstance(told, list) or len(told) != 2 or not isinstance(told[0], str):
        raise BadMessage("it is none of ours")
    kind, content = told
    wanted = answer if kind == ANSWER else SAID.get(kind)
    if wanted is None:
        raise BadMessage(f"it is called {kind[:40]!r}")
    try:
        return made(wanted, content, arrays)
    except (WrongType, RecursionError) as error:
        raise BadMessage(str(error)[:200]) from error


def choose_device(wanted: str) -> str:
    """The device for "auto": cuda when there is one, then cpu."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


# ------------------------------------------------------------------------------------------------- in the child


def serve(
    descriptor: int, device: str, pipelines: Mapping[str, str], lacking: Sequence[str], forms_at: str | None = None
) -> None:
    """The child: answer one request after the other, end with the parent. No error of a request ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    messages = Messages(socket.socket(fileno=descriptor))
    _say(messages, Begun(tuple(lacking)))
    models: _Models | None = None
    while True:
        try:
            (name, told), arrays = messages.receive()
        except EOFError:
            return
        request: Request = made(REQUESTS[name], told, arrays)
        try:
            models = models or _Models(device, pipelines, forms_at)
            answer = models.answer(request, lambda said: _say(messages, said))
            if not isinstance(request, Load):
                _say(messages, answer)
        except Exception as error:  # noqa: BLE001  the edge of the child: it answers in words instead of dying
            if not isinstance(request, Load):
                told_of = Told.of(error)
                # an error on a device may leave that in a state in which nothing works any more
                spoilt = models is not None and models.on_a_device
                _say(messages, Broken(told_of.words[:LONGEST_WORDS], told_of.trace[-LONGEST_TRACE:], spoilt))


def _say(messages: Messages, said: Any) -> None:
    """One of SAID, or an answer. Raises TypeError and ValueError for an answer that holds what nobody can send."""
    kind = type(said).__name__
    arrays: list[Any] = []
    told = [kind if kind in SAID else ANSWER, plain(said, arrays)]
    try:
        messages.send(told, arrays)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the answer holds what cannot be sent: {error}") from error


class _Models:
    """The pipelines of the child, loaded when first asked for."""

    def __init__(self, device: str, pipelines: Mapping[str, str], forms_at: str | None = None) -> None:
        self.device, self.pipelines = choose_device(device), pipelines
        self.kept = forms.load(Path(forms_at)) if forms_at else {}
        self.loaded: dict[str, tuple[Any, forms.Choosing]] = {}

    @property
    def on_a_device(self) -> bool:
        return self.device != "cpu"

    def answer(self, request: Request, say: Callable[[Said], None]) -> Any:
        """What was asked for, or one of SAID: errors that are foreseen are answers, too."""
        from models.options import BadOptions, WeightsError
        from models.pipeline import BadOutput, BadPipeline, UnfitInput

        try:
            return self._answer(request, say)
        except UnfitInput as refusal:
            return Unfit(str(refusal)[:LONGEST_WORDS])
        except _out_of_memory() as error:
            return NoMemory((str(error).splitlines() or ["no more memory"])[0][:LONGEST_WORDS])
        except (WeightsError, BadOptions, BadOutput, BadPipeline, OSError) as error:
            of_disk = error if isinstance(error, OSError) else error.__cause__
            if isinstance(of_disk, OSError) and of_disk.errno in DISK_ERRORS:
                return DiskFails(Told.of(of_disk).words[:LONGEST_WORDS])
            if isinstance(error, OSError):
                raise
            return Failed(str(error)[:LONGEST_WORDS])

    def _answer(self, request: Request, say: Callable[[Said], None]) -> Any:
        def progress(fraction: float, text: str) -> None:
            say(At(float(fraction), str(text)))

        match request:
            case Load(name, options):
                self.pipeline(name, options)
                return None
            case Tune(name, options):
                return Tuned(tuple(self.pipeline_as_chosen(name, options, measure=True)[1].used))
            case Describe(name, options):
                return self.pipeline(name, options).card
            case Analyse(name, options, files):
                (pipeline, chosen), started = self.pipeline_as_chosen(name, options), time.monotonic()
                with _measured(self.device, say):
                    findings = pipeline.run(list(files), _seldom(progress))
                return _timed(findings, time.monotonic() - started, self.device, chosen.said)
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
        return self.pipeline_as_chosen(name, options)[0]

    def pipeline_as_chosen(
        self, name: str, options: Mapping[str, Any], *, measure: bool = False
    ) -> tuple[Any, forms.Choosing]:
        """The pipeline, and in which forms its networks are served."""
        from models import build

        key = f"{name} {sorted(options.items())}"
        if key not in self.loaded:
            with forms.choosing(self.kept, measure=measure) as chosen:
                loaded = build(self.declaration(name), self.device, options)
                loaded.warm()
            self.kept |= {choice.key: choice for choice in chosen.used}
            self.loaded[key] = loaded, chosen  # only one that is whole: one that could not be warmed is built anew
        return self.loaded[key]


def _out_of_memory() -> tuple[type[Exception], ...]:
    """The errors that say so. A pipeline without torch has no need to wait for it."""
    torch = sys.modules.get("torch")
    return (MemoryError, torch.OutOfMemoryError) if torch is not None else (MemoryError,)


@contextmanager
def _measured(device: str, say: Callable[[Said], None]) -> Iterator[None]:
    """Say how much memory of a CUDA device was held at most meanwhile."""
    torch = sys.modules.get("torch") if device.startswith("cuda") else None
    if torch is None:
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    say(Took(int(torch.cuda.max_memory_reserved(device)), int(torch.cuda.mem_get_info(device)[1])))


def _seldom(progress: Progress) -> Progress:
    last = 0.0

    def report(fraction: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_EVERY_S:
            last = time.monotonic()
            progress(fraction, text)

    return report


def _timed(findings: Findings, seconds: float, device: str, said: Sequence[str]) -> Findings:
    from dataclasses import replace

    how = {"forms": "; ".join(dict.fromkeys(said))} if said else {}
    return replace(findings, facts={**findings.facts, "seconds": round(seconds, 3), "device": device, **how})
