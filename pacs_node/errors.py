"""Everything that can go wrong, what the node does about it, and how an error nobody foresaw is told.

NodeError
├── ReceiveError            answered to the sender as a DIMSE status
│   ├── SpoolFull           0xA700  Refused: Out of Resources      PS3.4 Table B.2-1
│   ├── LedgerUnavailable   0xA700  the row cannot be written now; elsewhere: try the whole thing again
│   ├── NotReadable         0xC000  Error: Cannot understand       PS3.4 Table B.2-1
│   └── WrongSopClass       0xA900  Error: Data Set does not match SOP Class
├── JobError                what the job does next
│   ├── Refused             the job ends "refused": the input is not fit; the reason is shown
│   ├── TryAgain            the job waits and runs again (destination down, disk full, inference process died)
│   │   ├── Await           the job waits for something that wakes it, at the latest until a stated time
│   │   ├── StoreAway       what machines have in common cannot be had now: the job waits, and has lost no attempt
│   │   ├── OutOfMemory     the process or device had no more: once more, in a process of its own, and no further
│   │   └── Unreachable     no connection, or one that broke: what every network error is
│   ├── GiveUp              the job ends "failed": trying again would not help
│   │   ├── TimedOut        ... an inference gave no answer in time: it would take as long again
│   │   └── Unforeseen      ... because of an error in a step that nobody foresaw: its kind, words and place
│   ├── TakenOver           another worker has the job now: this one sends nothing more, and writes nothing
│   ├── NotOffered          the peer has no such service: the job goes on without it
│   └── Interrupted         the node is stopping: the job is put back as if it had not begun
├── NotJudged               an error nobody foresaw in judging a series: it is set aside, in the error's words
├── EditionChanged          a destination got earlier results meanwhile: the new ones are written once more
├── SettingsRefused         new settings are not taken up, in the words of `check`; those in force stay
│   └── SettingsChanged     ... because somebody else has changed them since they were looked at
└── StartError              start-up stops, with a sentence that says what to do
    ├── LedgerTooOld        the database was written by a newer node
    ├── AlreadyRunning      another worker holds this data folder
    └── CannotStart         a port, a folder or the database cannot be had
"""

from __future__ import annotations

import builtins
import errno
import re
import socket
import ssl
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING

from pydicom.datadict import tag_for_keyword

if TYPE_CHECKING:
    from pacs_node.records import Receipt


class NodeError(Exception):
    """Root of the tree. The message says what, which, and what now."""


class ReceiveError(NodeError):
    status = 0xC000
    kept: Path | None = None  # where the bytes that were refused are kept
    series_uid = ""  # of the data set that was refused, if it was found


class SpoolFull(ReceiveError):
    status = 0xA700  # Refused: Out of Resources, PS3.4 Table B.2-1


class LedgerUnavailable(ReceiveError):
    status = 0xA700  # the sender keeps its copy and tries again


class NotReadable(ReceiveError):
    status = 0xC000  # Error: Cannot understand, PS3.4 Table B.2-1


class TooLarge(ReceiveError):
    status = 0xC001  # of the same range: a sender that hears 0xA7xx would send it again


class WrongSopClass(ReceiveError):
    status = 0xA900  # Error: Data Set does not match SOP Class, PS3.4 Table B.2-1


class JobError(NodeError):
    """`receipts`: what the destination had answered before things went wrong."""

    def __init__(self, message: str, receipts: Sequence[Receipt] = ()) -> None:
        super().__init__(message)
        self.receipts = tuple(receipts)


class Refused(JobError):
    pass


class TryAgain(JobError):
    pass


class Await(TryAgain):
    """Not a failure: there is nothing to do before `until`, unless what is awaited comes first."""

    def __init__(self, message: str, until: datetime, *, counts: bool = True) -> None:
        """counts: False, and it is none of the attempts that a job may make"""
        super().__init__(message)
        self.until, self.counts = until, counts


class ProcessDied(TryAgain):
    """The inference process ended before it answered."""


class OutOfMemory(ProcessDied):
    """It takes more than there is. Models that were warm for others may have been in its way: they are gone now."""

    def __init__(self, message: str, *, of_device: bool = False) -> None:
        """of_device: as the process itself found; else main memory"""
        super().__init__(message)
        self.of_device = of_device


class Unreachable(TryAgain):
    """Nobody there, a name that does not resolve, a refused, reset or silent connection, a broken protocol."""


class StoreAway(TryAgain):
    """The object store does not answer, or refuses: an operator, or time, cures it."""


class TakenOver(JobError):
    """`receipts`: what the destination had stored by then."""


class GiveUp(JobError):
    pass


class TimedOut(GiveUp):
    pass


class Unforeseen(GiveUp):
    """A step ended in an error that nobody foresaw. The message says it whole; `trace` is for the log."""

    def __init__(self, step: str, told: Told) -> None:
        super().__init__(f"{step} failed: {told.words}")
        self.step, self.trace = step, told.trace


class NotOffered(JobError):
    pass


class Interrupted(JobError):
    pass


class NotJudged(NodeError):
    """Its cause is the error."""


class EditionChanged(NodeError):
    pass


class SettingsRefused(NodeError):
    """Those in force stay as they are."""


class SettingsChanged(SettingsRefused):
    """Somebody else has changed the file since it was looked at."""


class StartError(NodeError):
    pass


class LedgerTooOld(StartError):
    pass


class AlreadyRunning(StartError):
    pass


class CannotStart(StartError):
    pass


# ------------------------------------------------------------------------------------------ an error, told in words

OURS = ("pacs_node", "dicom_sr", "models", "config")
LONGEST = 300  # characters of a library's message
MASK = "..."
# Words of types that libraries name; names of variables and attributes stand in the code itself
TYPES = frozenset(
    {"NoneType", "FileDataset", "Dataset", "DataElement", "Sequence", "MultiValue", "DSfloat", "DSdecimal", "IS"}
    | {"PersonName", "UID", "DICOM", "ndarray", "Tensor", "CUDA"}
)
WORD = re.compile(r"[^\W_]\w*(?:[.,:^=-]\w+)*|\S")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")

# The disk is full or gone: waiting may cure it, so nothing is given up for it
DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EMFILE}
    | {errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY}
)


NETWORK_ERRORS = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.ENOTCONN}
)


def may_pass(error: OSError) -> bool:
    """Whether waiting may cure it: a network that fails, a disk that is full or gone."""
    failed = isinstance(error, ConnectionError | TimeoutError | socket.gaierror | socket.herror | ssl.SSLError)
    return failed or error.errno in DISK_ERRORS | NETWORK_ERRORS


@dataclass(frozen=True)
class Told:
    """An error as words that may be shown and logged, and the lines of code it came through."""

    words: str  # "AttributeError: 'FileDataset' object has no attribute 'PixelSpacing', at dicom_sr.source line 98"
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Told:
        message = _message(error)
        kind = type(error).__name__
        return cls(f"{kind}{f': {message}' if message else ''}{_place(error)}", _trace(error))


def _message(error: BaseException) -> str:
    """What an error says, without a value of the data.

    Our own errors are written for readers. The operating system's name a file. What a library or Python says may quote
    an element: words in quotes, names, and long numbers are kept only if they stand in the code itself, or are the
    keyword of an attribute.
    """
    if type(error).__module__.partition(".")[0] in OURS:
        return str(error)
    if isinstance(error, OSError):
        file = f" ({str(error.filename).rpartition('/')[2]})" if isinstance(error.filename, str) else ""
        if error.strerror:
            return f"{error.strerror}{file}"
    text = (str(error).splitlines() or [""])[0][:LONGEST]
    known = _words_of_the_code(error)
    named = isinstance(error, AttributeError | NameError | ImportError)  # these quote names of the code, never values

    def shown(match: re.Match[str], quoted: bool) -> str:
        word = match[0]
        doubtful = quoted or word[0].isupper() or "^" in word or sum(c.isdigit() for c in word) > 3
        if not doubtful or not any(c.isalnum() for c in word) or word in TYPES:
            return word
        if word in known and "^" not in word:
            return word
        in_code = named and all(part.isidentifier() for part in word.split("."))
        if in_code or tag_for_keyword(word) is not None or hasattr(builtins, word):
            return word
        return MASK

    def plain(part: str, quoted: bool) -> str:
        return WORD.sub(lambda match: shown(match, quoted), part)

    quotes = sum(text.count(mark) for mark in "'\"")
    if quotes % 2:  # an apostrophe somewhere: all from the first mark on may be a value
        first = min(text.index(mark) for mark in "'\"" if mark in text)
        return plain(text[:first], False) + plain(text[first:], True)
    parts, end = [], 0
    for match in QUOTED.finditer(text):
        parts += [plain(text[end : match.start()], False), plain(match[0], True)]
        end = match.end()
    return "".join([*parts, plain(text[end:], False)])


def _words_of_the_code(error: BaseException) -> set[str]:
    """Every word in the constants and names of the functions an error came through: none of it is data."""
    words: set[str] = set()
    for code in (frame.tb_frame.f_code for frame in _frames(error) if _is_program(frame)):
        for text in (*code.co_names, *code.co_varnames, *_texts(code.co_consts)):
            words.update(WORD.findall(text))
    return words


def _is_program(frame: TracebackType) -> bool:
    """Our own code or an installed library's, nothing that was typed in or made up while running."""
    module = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return module in OURS or "site-packages" in frame.tb_frame.f_code.co_filename


def _texts(constants: Sequence[object]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _texts(tuple(constant))
        elif isinstance(constant, CodeType):
            yield from _texts(constant.co_consts)


def _frames(error: BaseException) -> list[TracebackType]:
    found, frame = [], error.__traceback__
    while frame is not None:
        found.append(frame)
        frame = frame.tb_next
    return found


def _place(error: BaseException) -> str:
    """Module and line where it was raised, and where our own code was then."""
    frames = [(str(f.tb_frame.f_globals.get("__name__", "?")), f.tb_lineno) for f in _frames(error)]
    if not frames:
        return ""
    said = f", at {frames[-1][0]} line {frames[-1][1]}"
    own = next((frame for frame in reversed(frames) if frame[0].partition(".")[0] in OURS), None)
    return said if own in (None, frames[-1]) else f"{said}, called by {own[0]} line {own[1]}"


def _trace(error: BaseException) -> str:
    """The lines of code of an error and of those that led to it, without their messages, which may hold values."""
    lines, seen = list[str](), set[int]()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        lines = [*traceback.format_tb(now.__traceback__), f"{type(now).__name__}: {_message(now)}\n", *lines]
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)
    return "".join(lines)
