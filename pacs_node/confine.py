"""What the inference process may not do, and how it is kept from it: by the kernel, as far as this machine lets us.

The process gives these up itself, before it loads anything. Standard library only. What cannot be had is told in
words, and is no error: a model that runs unconfined is better than none, if somebody knows.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
CAPABILITY_VERSION = 0x20080522  # linux/capability.h
KEPT_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER: files, of root
MOST_WRITTEN = 64 << 30  # bytes of one file

# linux/landlock.h; the numbers of the calls are the same on every machine
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION, PATH_BENEATH = 1, 1
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # to a file; removing and making of every kind
WRITES_SINCE = {2: 1 << 13, 3: 1 << 14}  # version -> moving between folders, truncating
# where a library may write: scratch files, devices, its caches of compiled code
CACHES = ("XDG_CACHE_HOME", "CUDA_CACHE_PATH", "TORCH_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR")
SCRATCH = ("/tmp", "/var/tmp", "/dev", "/proc", "~/.cache", "~/.nv", "~/.triton")  # noqa: S108  named, not made

libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """The kernel, or whoever started us, does not let us; the message says what it answered."""


def confine(*, programs: bool = False) -> list[str]:
    """Give up what an inference does not need; what could not be given up, in words.

    programs   it starts programs of others, which need what they need: they have limits of their own
    """
    lacking = []
    for name, give_up in (({} if programs else UNLESS_PROGRAMS) | ALWAYS).items():
        try:
            give_up()
        except (Unavailable, OSError, ValueError) as error:
            lacking.append(f"{name}: {error}")
    return lacking


@cache
def tried() -> tuple[str, ...]:
    """What cannot be given up on this machine, tried in a process of its own."""
    command = [sys.executable, str(Path(__file__))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return (f"it cannot be tried: {error}",)
    return tuple(done.stdout.splitlines())


# --------------------------------------------------------------------------------------------------- one by one


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _no_large_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = MOST_WRITTEN if most == resource.RLIM_INFINITY else min(most, MOST_WRITTEN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _no_network() -> None:
    """A network of its own, without any device. Not being root, in a user namespace: as the same user."""
    user, group = os.geteuid(), os.getegid()
    try:
        _called(libc.unshare(CLONE_NEWNET))
    except Unavailable:
        _called(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
        for name, number in (("uid_map", user), ("gid_map", group)):
            Path(f"/proc/self/{name}").write_text(f"{number} {number} 1")


def _no_privileges() -> None:
    """Also none that a program would bring that it starts."""
    _called(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header = struct.pack("=Li", CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    _called(libc.capget(header, data))
    sets = struct.unpack("=6L", data.raw)  # effective, permitted, inheritable of the lower 32; then of the upper
    kept = struct.pack("=6L", *(number & KEPT_CAPABILITIES if place < 2 else 0 for place, number in enumerate(sets)))
    _called(libc.capset(header, kept))


def _not_inspected() -> None:
    """By other processes of the same user: it holds images of patients."""
    _called(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))


def _writes_nowhere_else() -> None:
    """Landlock: no file outside of SCRATCH is written, made, moved or removed."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION)
    if version < 1:
        raise Unavailable("the kernel has no Landlock")
    writes = WRITES | sum(bit for since, bit in WRITES_SINCE.items() if version >= since)
    ruleset = _called(libc.syscall(CREATE_RULESET, struct.pack("=Q", writes), ctypes.c_size_t(8), 0))
    try:
        for folder in _scratch():
            with suppress(OSError):
                beneath = os.open(folder, os.O_PATH | os.O_CLOEXEC)
                try:
                    rule = struct.pack("=Qi", writes, beneath)
                    _called(libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0))
                finally:
                    os.close(beneath)
        _called(libc.syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _scratch() -> Iterator[str]:
    yield tempfile.gettempdir()
    yield from (os.environ[name] for name in CACHES if os.environ.get(name))
    for place in SCRATCH:
        yield str(Path(place).expanduser())


def _called(result: int) -> int:
    if result < 0:
        raise Unavailable(os.strerror(ctypes.get_errno()))
    return result


# in this order: the first needs what the others give up
UNLESS_PROGRAMS: dict[str, Callable[[], None]] = {
    "it can reach the network": _no_network,
    "it can write files of any size": _no_large_files,
    "it can gain privileges": _no_privileges,
    "it can write where the node writes": _writes_nowhere_else,
}
ALWAYS: dict[str, Callable[[], None]] = {
    "a core dump would hold images": _no_core,
    "other processes of this user can look into it": _not_inspected,
}

if __name__ == "__main__":
    if platform.system() == "Linux":
        sys.stdout.write("".join(f"{each}\n" for each in confine()))
