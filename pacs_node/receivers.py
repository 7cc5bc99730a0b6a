"""Several processes that receive, behind one port: each with a listener, packs and rows of its own.

They wait at the same socket, so whichever is free takes the next association. The parent asks them who is connected,
has their rows written before it decides on a series, and starts one that ended again. They end with their parent.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any, Protocol

import structlog

from pacs_node import observe
from pacs_node.errors import LedgerUnavailable, NodeError
from pacs_node.loop import describe
from pacs_node.start_up import give_memory_back, keep_private

log = structlog.get_logger()

ANSWER_S = 30.0  # what a process gets to answer its parent
START_S = 300.0
Doors = tuple[socket.socket | None, socket.socket | None]  # that listen: without TLS, with it
AGAIN_AFTER_S = 1.0  # before one that ended is started again
ASSEMBLER, ENGINE = "assembler", "engine"  # whom something is for
SLOTS = 256  # associations of a process whose caller the others know
READY = -1  # the number of what nobody has asked: it receives


class NoAnswer(NodeError):
    """A receiving process does not answer, or answered with an error."""


class Callers(ctypes.Structure):
    """Whose associations a process holds open. Of more than SLOTS the first are known, and how many there are."""

    _fields_ = (("count", ctypes.c_int), ("slots", (ctypes.c_char * 80) * SLOTS))


class Counts:
    """Whose associations each process holds open, as AE title and address: what one notes, all see."""

    def __init__(self, shared: Sequence[Callers], own: int) -> None:
        self._shared, self._own = shared, own

    def elsewhere(self, here: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the other processes; they learn of ours. Without a lock, which one that is killed would keep."""
        note(self._shared[self._own], here)
        return [caller for number, each in enumerate(self._shared) if number != self._own for caller in noted(each)]


def note(callers: Callers, held: Sequence[tuple[str, str]]) -> None:
    for number, (calling, address) in enumerate(held[:SLOTS]):
        callers.slots[number].value = f"{calling}\n{address}".encode(errors="replace")[:79]
    callers.count = len(held)


def noted(callers: Callers) -> Iterator[tuple[str, str]]:
    for number in range(callers.count):
        text = callers.slots[number].value.decode(errors="replace") if number < SLOTS else ""
        calling, _, address = text.partition("\n")
        yield calling, address


class Receives(Protocol):
    """A node, of which nothing but receiving is started."""

    def start_receiving(self, doors: Doors, counts: Counts, woken: Callable[[str], None]) -> None: ...
    def stop_receiving(self, drain_s: float) -> None: ...
    def connected(self) -> frozenset[str]: ...
    def settle(self) -> None: ...
    def let_go_here(self, series_uid: str) -> bool: ...
    def go_on(self) -> None: ...
    def trouble_of_receiving(self) -> list[str]: ...
    def take_up(self, settings: Any) -> None: ...


class _Handed:
    """An open file that the process keeps which gets it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __getstate__(self) -> Any:
        return DupFd(self.descriptor)

    def __setstate__(self, handed: Any) -> None:
        self.descriptor = handed.detach()


class Receivers:
    """make: what receives in each of so many processes. woken: called when something is for ASSEMBLER or ENGINE. ended:
    called after one has ended by itself, before it is started again: what it promised and did not index is to be looked
    for."""

    def __init__(
        self,
        make: Callable[[], Receives],
        processes: int,
        woken: Callable[[str], None],
        ended: Callable[[int], None],
    ) -> None:
        self._make, self._processes, self._woken, self._ended = make, processes, woken, ended
        self._context = multiprocessing.get_context("spawn")
        self._shared = self._context.RawArray(Callers, processes)
        self._children: list[_Receiver] = []
        self._stopping = threading.Event()
        self._trouble: dict[int, str] = {}
        self._settings: Any = None  # that were taken up since the start

    def start(self, doors: Doors, lock: int) -> None:
        """doors: listen already. lock: descriptor of the lock of the spool, held until the last of them has ended."""
        for door in doors:
            if door is not None:
                door.setblocking(False)  # another may have been quicker
        self._doors, self._lock = doors, lock
        self._children = [self._started(number) for number in range(self._processes)]
        for child in self._children:
            child.answer(READY, START_S)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.process.pid or 0 for child in self._children)

    def connected(self) -> frozenset[str]:
        """The associations that are open in any of them."""
        return frozenset(one for child in self._children for one in child.ask("connected"))

    def settle(self) -> None:
        """The ledger has all that they were sent by now. Raises LedgerUnavailable."""
        for child in self._children:
            child.ask("settle")

    def take_up(self, make: Callable[[], Receives], settings: Any) -> None:
        """New settings, for those that are there and for those that take their place. One that gives no answer is
        trouble: it goes on with the former ones."""
        self._make, self._settings = make, settings
        for child in list(self._children):
            self._told_settings(child)

    def _told_settings(self, child: _Receiver) -> None:
        try:
            child.ask("take_up", self._settings)
        except NodeError as error:
            log.error("listener.settings-not-taken-up", number=child.number, error=str(error))
            self._trouble[child.number] = f"receiving process {child.number} goes on with the former settings: {error}"
        else:
            self._trouble.pop(child.number, None)

    @contextmanager
    def let_go(self, series_uid: str) -> Iterator[bool]:
        """As Spool.let_go, of all of them: what each has kept is in the ledger. False: one is being sent an image.

        Raises NoAnswer, LedgerUnavailable.
        """
        children = list(self._children)
        try:
            yield all(child.ask("let_go", series_uid) for child in children)
        finally:
            for child in children:
                with suppress(NodeError):  # of one that has ended: another has taken its place
                    child.ask("go_on")

    @property
    def trouble(self) -> list[str]:
        said = list(self._trouble.values())
        for child in self._children:
            try:
                said += child.ask("trouble")
            except NodeError as error:
                said.append(str(error))
        return said

    def stop(self, drain_s: float) -> None:
        """As Listener.stop, of all of them at once."""
        self._stopping.set()
        for door in self._doors:
            if door is not None:
                door.close()
        for child in self._children:
            child.tell("stop", drain_s)
        for child in self._children:
            child.process.join(drain_s + ANSWER_S)
            child.process.kill()

    def _started(self, number: int) -> _Receiver:
        asked, theirs = self._context.Pipe()
        events, tells = self._context.Pipe(duplex=False)
        told = self._make, self._doors, _Handed(self._lock), self._shared, number, observe.is_plain()
        process = self._context.Process(target=receive, args=(*told, theirs, tells), name=f"receive-{number}")
        process.start()
        theirs.close()
        tells.close()
        child = _Receiver(number, process, asked)
        threading.Thread(target=self._listen, args=(child, events), name=f"receive-{number}", daemon=True).start()
        return child

    def _listen(self, child: _Receiver, events: Connection) -> None:
        """Until the process has ended; then another takes its place."""
        with suppress(EOFError, OSError), events:
            while True:
                self._woken(events.recv())
        child.process.join()
        if self._stopping.is_set():
            return
        words = f"receiving process {child.number} ended (exit code {child.process.exitcode})"
        log.error("listener.process-ended", number=child.number, exit_code=child.process.exitcode)
        self._trouble[child.number] = f"{words}; another takes its place"
        self._shared[child.number].count = 0
        while not self._stopping.wait(AGAIN_AFTER_S):
            try:
                self._ended(child.process.pid or 0)
                new = self._started(child.number)
                new.answer(READY, START_S)
            except Exception as error:  # noqa: BLE001 - the edge of a thread: it is tried until it can be done
                self._trouble[child.number] = f"{words}; another cannot be started: {describe(error)}"
                continue
            self._children[child.number] = new
            self._trouble.pop(child.number, None)
            if self._settings is not None:  # it may have begun with the former ones
                self._told_settings(new)
            return


class _Receiver:
    """The parent's view of one of them."""

    def __init__(self, number: int, process: BaseProcess, asked: Connection) -> None:
        self.number, self.process = number, process
        self._asked = asked
        self._one_at_a_time = threading.Lock()
        self._numbers = itertools.count()  # of what is asked: an answer may come after the one who asked has left

    def ask(self, what: str, with_it: Any = None) -> Any:
        with self._one_at_a_time:
            return self.answer(self._send(what, with_it), ANSWER_S)

    def tell(self, what: str, with_it: Any) -> None:
        with suppress(NoAnswer), self._one_at_a_time:
            self._send(what, with_it)

    def answer(self, number: int, within_s: float) -> Any:
        """Raises LedgerUnavailable, as the process did, and NoAnswer."""
        try:
            until = time.monotonic() + within_s
            while self._asked.poll(max(0.0, until - time.monotonic())):
                asked, kind, said = self._asked.recv()
                if asked != number:
                    continue
                if kind == "ledger":
                    raise LedgerUnavailable(said)
                if kind == "failed":
                    raise NoAnswer(f"receiving process {self.number} fails: {said}")
                return said
        except (EOFError, OSError) as error:
            raise NoAnswer(f"receiving process {self.number} has ended") from error
        raise NoAnswer(f"receiving process {self.number} did not answer within {within_s:g} s")

    def _send(self, what: str, with_it: Any) -> int:
        """The number that the answer has."""
        number = next(self._numbers)
        try:
            self._asked.send((number, what, with_it))
        except OSError as error:
            raise NoAnswer(f"receiving process {self.number} has ended") from error
        return number


def receive(
    make: Callable[[], Receives],
    doors: Doors,
    lock: _Handed,
    shared: Sequence[Callers],
    number: int,
    plain: bool,
    asked: Connection,
    tells: Connection,
) -> None:
    """One of them: until it is told to stop, or nobody is there to tell it."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # they are for the parent, which drains, or tells of new settings
    keep_private()
    give_memory_back()
    observe.start_logging(plain=plain)
    observe.hear_everything()
    assert lock.descriptor  # held for as long as this process lives
    one_at_a_time = threading.Lock()

    def woken(whom: str) -> None:
        with suppress(OSError), one_at_a_time:
            tells.send(whom)

    node = make()
    node.start_receiving(doors, Counts(shared, number), woken)
    answers: dict[str, Callable[[Any], Any]] = {
        "connected": lambda _: node.connected(),
        "settle": lambda _: node.settle(),
        "let_go": node.let_go_here,
        "go_on": lambda _: node.go_on(),
        "trouble": lambda _: node.trouble_of_receiving(),
        "take_up": node.take_up,
    }
    drain_s = 0.0
    with suppress(EOFError, OSError):
        asked.send((READY, "said", None))
        while (ask := asked.recv())[1] != "stop":
            number, what, with_it = ask
            asked.send((number, *_answered(partial(answers[what], with_it))))
        drain_s = ask[2]
    node.stop_receiving(drain_s)


def _answered(answer: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "said", answer()
    except LedgerUnavailable as error:
        return "ledger", str(error)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the parent says what fails
        return "failed", describe(error)
