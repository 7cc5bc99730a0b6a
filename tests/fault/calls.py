"""Every system call of a process that a fault test cares for, before the kernel makes it: let go on, or failed.

By seccomp's user notification (seccomp_unotify(2)): no tracing and no compiler are needed, and what C libraries call,
SQLite for one, is seen as well as what Python calls. All processes that it starts are seen, too.

    with Calls(judge) as calls:
        node = NodeProcess(folder, toml, command=[*calls.before, sys.executable, "-m", "pacs_node.cli", "serve"])

The program itself, `python -m tests.fault.calls SOCKET COMMAND...`, gives its listener to whoever waits at that socket,
and becomes the command.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

NUMBERS = {  # of x86-64: arch/x86/entry/syscalls/syscall_64.tbl
    "read": 0, "write": 1, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "sendfile": 40, "connect": 42,
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "fcntl": 72, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "openat": 257, "unlinkat": 263,
    "accept4": 288, "fallocate": 285, "pwritev": 296, "copy_file_range": 326, "pwritev2": 328, "clone3": 435,
}  # fmt: skip
NAMES = {number: name for name, number in NUMBERS.items()}
F_SETLK = 6  # the only fcntl that is looked at: how SQLite locks

SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 1 << 3
PR_SET_NO_NEW_PRIVS = 38
ALLOW, USER_NOTIF = 0x7FFF0000, 0x7FC00000
AUDIT_ARCH_X86_64 = 0xC000003E
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")  # id, thread, flags; number, architecture, instruction, arguments
_ANSWER = struct.Struct("<QqiI")  # id, value, error, flags

AT_FDCWD = -100
LONGEST_PATH = 4096

libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@dataclass
class Call:
    """A system call that has not been made yet."""

    name: str
    thread: int
    arguments: tuple[int, ...]

    @cached_property
    def path(self) -> str:
        """The file that it is about, by the descriptor or the name that it is given; "" where there is none."""
        if self.name in ("openat", "unlinkat"):
            return self._at(self.arguments[0], self.text(1))
        if self.name in ("rename", "mkdir", "rmdir", "link", "unlink"):
            return self._at(AT_FDCWD, self.text(0))
        if self.name == "copy_file_range":
            return self._open(self.arguments[2])
        return self._open(self.arguments[0])

    @cached_property
    def target(self) -> str:
        """The new name, of a rename and a link."""
        return self._at(AT_FDCWD, self.text(1))

    @cached_property
    def data(self) -> bytes:
        """What is to be written."""
        _, where, size, *_ = self.arguments
        if self.name in ("write", "pwrite64", "sendto"):
            return self.memory(where, size)
        vectors = self.memory(where, 16 * size)
        return b"".join(self.memory(*struct.unpack_from("<QQ", vectors, at)) for at in range(0, len(vectors), 16))

    def text(self, argument: int) -> str:
        """A name that is handed over. Read by pages: the next one may not be there."""
        at, found = self.arguments[argument], b""
        while b"\0" not in found and len(found) < LONGEST_PATH:
            size = 4096 - (at + len(found)) % 4096
            found += self.memory(at + len(found), size)
        return os.fsdecode(found.partition(b"\0")[0])

    def memory(self, at: int, size: int) -> bytes:
        content = ctypes.create_string_buffer(size)
        here, there = _Vector(ctypes.addressof(content), size), _Vector(at, size)
        got = libc.process_vm_readv(self.thread, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        if got != size:
            raise OSError(ctypes.get_errno(), f"{self.name}: what it writes cannot be read")
        return content.raw

    def _at(self, folder: int, name: str) -> str:
        folder = ctypes.c_int(folder).value
        if name.startswith("/"):
            return os.path.normpath(name)
        base = f"/proc/{self.thread}/cwd" if folder == AT_FDCWD else f"/proc/{self.thread}/fd/{folder}"
        with suppress(OSError):
            return os.path.normpath(Path(base).readlink() / name)
        return name

    def _open(self, descriptor: int) -> str:
        with suppress(OSError):
            return os.readlink(f"/proc/{self.thread}/fd/{ctypes.c_int(descriptor).value}")  # noqa: PTH115
        return ""


class Calls:
    """Whatever is started through `before` asks `judge` about each of its calls: 0, it goes on; else it fails so.

    judge is called by one thread for each process that was started: calls come to it in the order in which they are
    made.
    """

    def __init__(self, judge: Callable[[Call], int]) -> None:
        self.judge = judge
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(b"\0tests.fault.calls " + os.urandom(8).hex().encode())
        self._door.listen()
        self.error: BaseException | None = None

    @property
    def before(self) -> list[str]:
        """The words to put before a command."""
        name = self._door.getsockname()[1:].decode()
        return [sys.executable, "-m", "tests.fault.calls", name]

    def __enter__(self) -> Self:
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()
        if self.error is not None:
            raise self.error

    def _wait(self) -> None:
        while True:
            try:
                end, _ = self._door.accept()
            except OSError:
                return  # it is over
            with end:
                _, [listener], _, _ = socket.recv_fds(end, 1, 1)
                threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
                end.send(b"!")

    def _serve(self, listener: int) -> None:
        waits = select.poll()
        waits.register(listener, select.POLLIN)
        try:
            while not waits.poll()[0][1] & select.POLLHUP:
                asked = bytearray(_NOTIFICATION.size)
                try:
                    fcntl.ioctl(listener, NOTIF_RECV, asked)
                except FileNotFoundError:
                    continue  # it was killed meanwhile
                identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(asked)
                error = self._judged(Call(NAMES[number], thread, tuple(arguments)))
                answer = _ANSWER.pack(identity, 0, -error, 0 if error else CONTINUE)
                with suppress(FileNotFoundError):
                    fcntl.ioctl(listener, NOTIF_SEND, answer)
        finally:
            os.close(listener)

    def _judged(self, call: Call) -> int:
        try:
            return self.judge(call)
        except ProcessLookupError:
            return 0
        except BaseException as error:  # noqa: BLE001  the process must not wait for ever; the test is told at the end
            self.error = self.error or error
            return 0


def why_not() -> str | None:
    """None, or why no process can be watched here."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"system calls are watched on Linux on x86-64 only, and this is {platform.system()} {platform.machine()}"
    with _watched_nothing() as problem:
        return problem


@contextmanager
def _watched_nothing() -> Iterator[str | None]:
    import subprocess

    with Calls(lambda call: 0) as calls:
        done = subprocess.run([*calls.before, "/bin/true"], capture_output=True, text=True, timeout=60, check=False)
        yield None if done.returncode == 0 else f"system calls cannot be watched here: {done.stderr.strip()[-200:]}"


# ------------------------------------------------------------------------------------------------ in the new process


def _filter() -> bytes:
    """Ask about the calls of NUMBERS, and go on with all others."""
    numbers = [number for name, number in NUMBERS.items() if name != "fcntl"]
    lines = [
        (LOAD, 0, 0, 4),  # the architecture
        (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, 0),  # the number
        (JUMP_IF_EQUAL, 0, 3, NUMBERS["fcntl"]),
        (LOAD, 0, 0, 24),  # the lower half of its second argument
        (JUMP_IF_EQUAL, len(numbers) + 2, 0, F_SETLK),
        (RETURN, 0, 0, ALLOW),
        *((JUMP_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, USER_NOTIF),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]


def _called(result: int, what: str) -> int:
    if result < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def become(door: str, command: list[str]) -> None:
    """Let this thread, and what it becomes, ask; another thread, which does not ask, hands over where."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(b"\0" + door.encode())
    listener: list[int] = []
    there, taken = threading.Event(), threading.Event()

    def hand_over() -> None:
        there.wait()
        socket.send_fds(end, [b"!"], listener)
        if end.recv(1):
            taken.set()

    threading.Thread(target=hand_over, daemon=True).start()
    lines = ctypes.create_string_buffer(_filter())
    program = _Program(len(lines) // 8, ctypes.addressof(lines))
    _called(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    listener.append(_called(libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(program)), "seccomp"))
    there.set()
    taken.wait()
    os.execv(command[0], command)


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2:])
