"""Run one command, and leave nothing of it behind: a program of its own, started by `child.py`. Standard library only.

It reads one line of JSON from its standard input, the task, and answers with one line on its standard output, the end.
Its standard input stays open for as long as whoever asked is alive: when it closes, for whatever reason, the command
and all that came of it are killed. So they are when the time or the memory is used up, and when the command has ended
but something that it started has not.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

LOOK_EVERY_S = 0.1
told_to_stop: list[bool] = []  # filled by the handler of SIGTERM, which a service manager sends to all its processes
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> None:
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as asked:  # unbuffered: select must see its end
        task = json.loads(asked.readline())
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what leaves its group, or loses its parent, becomes a child of ours
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.append(True))
    try:
        end = run(task)
    finally:
        kill_all()
    if end["end"] == "stopped":  # nobody is left who would remove the patient's images
        with contextlib.suppress(OSError):
            os.chmod(os.path.join(task["folder"], "input"), 0o700)
        shutil.rmtree(task["folder"], ignore_errors=True)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(end) + "\n")
        sys.stdout.flush()


def run(task: dict[str, Any]) -> dict[str, Any]:
    with open(task["stderr"], "wb") as stderr:
        try:
            process = subprocess.Popen(
                task["command"],
                cwd=task["folder"],
                env=task["environment"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except OSError as error:
            return {"end": "not started", "words": error.strerror}
    deadline = time.monotonic() + task["timeout_s"]
    while (code := process.poll()) is None:
        if told_to_stop or select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
            return {"end": "stopped"}  # nobody waits any more
        if time.monotonic() > deadline:
            return {"end": "timeout"}
        if task["memory_bytes"] is not None and (used := memory_bytes()) > task["memory_bytes"]:
            return {"end": "memory", "bytes": used}
    return {"end": "exit", "code": code}


def kill_all() -> None:
    """Until nothing is left: whoever is killed may have had children, which then become ours."""
    not_ours_to_kill: set[int] = set()  # of another user, in a container: it ends with the container
    while ours := [process for process in descendants() if process not in not_ours_to_kill]:
        for process in ours:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
            except PermissionError:
                not_ours_to_kill.add(process)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


def memory_bytes() -> int:
    """What all processes of the command hold in memory; what they share counts for each."""
    return sum(_resident_bytes(process) for process in descendants())


def descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for process, parent in _parents():
        children.setdefault(parent, []).append(process)
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        here = children.get(waiting.pop(), [])
        found += here
        waiting += here
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """(process, its parent) of every process that can be seen."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # the name of a program stands in brackets, and may hold anything: what counts follows the last one
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])


def _resident_bytes(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # it has just ended


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
