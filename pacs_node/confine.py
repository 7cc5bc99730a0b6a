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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
CAPABILITY_VERSION = 0x20080522  # linux/capability.h
KEPT_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER: files, of root
MOST_WRITTEN = 64 << 30  # bytes of one file

# linux/landlock.h; the numbers of the calls are the same on every machine
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION, PATH_BENEATH = 1, 1
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3  # what is in it, which names
OF_A_FILE = 0b111 | 1 << 14  # the rights that a rule for a file may give: run, write, read, truncate
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # to a file; removing and making of every kind
WRITES_SINCE = {2: 1 << 13, 3: 1 << 14}  # version -> moving between folders, truncating
# where a library may write: scratch files, devices, its caches of compiled code
CACHES = ("XDG_CACHE_HOME", "CUDA_CACHE_PATH", "TORCH_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR")
SCRATCH = ("/tmp", "/var/tmp", "/dev", "/proc", "~/.cache", "~/.nv", "~/.triton")  # noqa: S108  named, not made

# what it may read: libraries of the system and of Python, what the kernel tells of the machine, drivers; of /etc what
# the C library asks for, because settings, keys and passwords lie there as well
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/sys", "/nix/store", "/gnu/store", "/run/opengl-driver")
DRIVERS = ("/opt/nvidia", "/opt/rocm", "/opt/intel")
OF_ETC = (
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "nsswitch.conf", "passwd", "group"),
    *("hosts", "host.conf", "mime.types", "os-release", "alternatives", "fonts", "OpenCL", "vulkan", "glvnd"),
)
OF_PYTHON = ("bin", "lib", "lib64", "include", "share", "etc", "nvvm", "targets", "pyvenv.cfg")  # below its prefix
LIBRARIES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH")
INSTALLED = ("site-packages", "dist-packages")
IMPORTED = (".py", ".so", ".pth", ".dist-info", ".egg-info", ".zip")

libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """The kernel, or whoever started us, does not let us; the message says what it answered."""


def confine(*, programs: bool = False, reads: Sequence[str] | None = None) -> list[str]:
    """Give up what an inference does not need; what could not be given up, in words.

    programs   it starts programs of others, which need what they need: they have limits of their own
    reads      files and folders that it needs besides libraries; None: whatever its user may read
    """
    lacking = []
    unless_programs = UNLESS_PROGRAMS if reads is None else UNLESS_PROGRAMS | {READING: partial(_reads_only, reads)}
    for name, give_up in (({} if programs else unless_programs) | ALWAYS).items():
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
    """No file outside of SCRATCH is written, made, moved or removed."""
    writes = WRITES | sum(bit for since, bit in WRITES_SINCE.items() if _landlock() >= since)
    _only(writes, ((place, writes) for place in _scratch()))


def _reads_only(needed: Iterable[str]) -> None:
    """Besides libraries, SCRATCH and what is needed no file is read. Names are told where Python looks for modules."""
    reads = READ_FILE | READ_FOLDER
    etc = (f"/etc/{name}" for name in OF_ETC)
    named = (place for name in LIBRARIES for place in os.environ.get(name, "").split(":") if place)
    _landlock()
    whole = (*SYSTEM, *DRIVERS, *etc, *named, *_scratch(), *_python(), *needed)
    names = ((entry or ".", READ_FOLDER) for entry in sys.path)
    _only(reads, [*((place, reads) for place in whole), *names])


def _python() -> Iterator[str]:
    """Its library, and what can be imported. Of a folder of modules that is none of its own nothing else: it may be
    the working folder, with settings and data."""
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}:
        yield from (os.path.join(prefix, name) for name in OF_PYTHON)  # noqa: PTH118  standard library, and quick
    for entry in map(Path, sys.path):
        if entry.name in INSTALLED or entry.suffix == ".zip":
            yield str(entry)
        elif entry.is_dir():
            yield from (str(each) for each in entry.iterdir() if each.suffix in IMPORTED or any(each.glob("*.py")))
    for name, finder in sys.modules.items():  # packages that lie where they are developed: PEP 660, as setuptools does
        if name.startswith("__editable__"):
            yield from map(str, getattr(finder, "MAPPING", {}).values())


def _landlock() -> int:
    """Its version."""
    version = int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION))
    if version < 1:
        raise Unavailable("the kernel has no Landlock")
    return version


def _only(handled: int, rules: Iterable[tuple[str, int]]) -> None:
    """Of these rights from now on nothing but what the rules give: (file or folder, rights to it and all below)."""
    ruleset = _called(libc.syscall(CREATE_RULESET, struct.pack("=Q", handled), ctypes.c_size_t(8), 0))
    try:
        for place, rights in rules:
            with suppress(OSError):  # it is not there
                beneath = os.open(place, os.O_PATH | os.O_CLOEXEC)
                try:
                    given = rights if Path(place).is_dir() else rights & OF_A_FILE
                    if given:
                        rule = struct.pack("=Qi", given, beneath)
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
READING = "it can read what the node can read"
ALWAYS: dict[str, Callable[[], None]] = {
    "a core dump would hold images": _no_core,
    "other processes of this user can look into it": _not_inspected,
}

if __name__ == "__main__":
    if platform.system() == "Linux":
        sys.stdout.write("".join(f"{each}\n" for each in confine(reads=())))
