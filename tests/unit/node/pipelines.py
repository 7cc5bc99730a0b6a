"""Pipelines that behave as badly as real ones can; loaded by the real inference process."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dicom_sr.findings import Algorithm, Findings
from models.pipeline import Card, Declaration, UnfitInput


def our_end() -> int:
    """Of the messages to the node."""
    return int(json.loads(sys.argv[1])["messages"])


def speak(content: bytes) -> dict[str, Any]:
    os.write(our_end(), content)
    time.sleep(60)
    return {}


def flood(file: Path) -> dict[str, Any]:
    text = json.dumps([["At", {"fraction": 0.5, "text": "half"}], []]).encode()
    with socket.socket(fileno=os.dup(our_end())) as end:
        end.settimeout(60)
        while True:
            end.sendall(struct.pack("<4sLQ", b"PN-1", len(text), 0) + text)


def grow(file: Path) -> dict[str, Any]:
    held = bytearray(b"x") * (1 << 30)  # every page of it is written to
    time.sleep(60)
    return {"held": len(held)}


def close_and_stay(file: Path) -> dict[str, Any]:
    os.close(our_end())
    time.sleep(60)
    return {}


def reach(file: Path) -> dict[str, Any]:
    """What of all this could be done."""
    done: dict[str, Any] = {}

    def connect() -> None:
        socket.create_connection(("127.0.0.1", int(file.read_text())), timeout=5).close()

    def write_beside() -> None:
        file.with_suffix(".written").write_text("x")

    def remove() -> None:
        file.unlink()

    def change() -> None:
        file.write_text("x")

    for what in (connect, write_beside, remove, change):
        try:
            what()
        except OSError as error:
            done[what.__name__] = type(error).__name__
        else:
            done[what.__name__] = "done"
    with tempfile.TemporaryFile() as scratch:
        scratch.write(b"x")
    status = Path("/proc/self/status").read_text()
    done["no_new_privileges"] = int("NoNewPrivs:\t1" in status)
    done["core"] = resource.getrlimit(resource.RLIMIT_CORE)[0]
    return done


def peek(file: Path) -> dict[str, Any]:
    """Which of the files that this one names can be read."""
    found: dict[str, Any] = {"pid": os.getpid()}
    for path in json.loads(file.read_text()):
        try:
            Path(path).read_bytes()
        except OSError as error:
            found[path] = type(error).__name__
        else:
            found[path] = "read"
    return found


def hold(file: Path) -> dict[str, Any]:
    """Until the file is gone; one beside it says that it runs."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix="held-"):
        deadline = time.monotonic() + 60
        while file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    return {"pid": os.getpid()}


class MemoryUse(ctypes.Structure):
    """mallinfo2(3), of which `mapped` is called hblkhd."""

    _fields_: ClassVar = [("before", ctypes.c_size_t * 4), ("mapped", ctypes.c_size_t), ("behind", ctypes.c_size_t * 5)]


def borrowed() -> int:
    """How much of a block of 8 MB the C library takes from the system, after one of 16 MB was given back."""
    tell = ctypes.CDLL(None).mallinfo2
    tell.restype = MemoryUse
    larger = bytearray(16 << 20)
    del larger
    before = tell().mapped
    block = bytearray(8 << 20)
    return int(tell().mapped - before) if block is not None else 0


MISDEEDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "speak a pickle": lambda file: speak(pickle.dumps(("done", None)) * 10),
    "flood": flood,
    "grow": grow,
    "close and stay": close_and_stay,
    "reach": reach,
    "peek": peek,
    "hold": hold,
    "borrow": lambda file: {"borrowed": borrowed()},
}


def answered(**facts: Any) -> Findings:
    return Findings("t", "volume", (), (), Algorithm("t", "1"), facts=facts)


class Pipeline:
    """Does what its options say, and names the first file in its answer."""

    card = Card("t", frozenset({"CT"}), Algorithm("t", "1"), "Research use only, not for diagnostic use.", {})

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.does = (options or {}).get("does", "answer")
        if self.does == "not begin":
            raise ZeroDivisionError("division by zero")

    def warm(self) -> None:
        if self.does == "not warm":
            raise RuntimeError("the engine is cold")

    def run(self, files: Sequence[Path], progress: Callable[[float, str], None]) -> Findings:
        progress(0.5, "half")
        if self.does in MISDEEDS:
            return answered(**MISDEEDS[self.does](files[0]))
        if self.does == "hang":
            time.sleep(60)
        if self.does == "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "die":
            os._exit(3)
        if self.does == "break":
            raise KeyError("a bug")
        if self.does == "quote":
            raise ValueError("PatientName is 'DOE^JANE'")
        if self.does == "unpicklable":
            facts = {"file": lambda: "no such answer"}
            return Findings("t", "volume", (), (), Algorithm("t", "1"), facts=facts)  # type: ignore[dict-item]
        if self.does == "exit":
            raise SystemExit(4)
        if self.does == "refuse":
            raise UnfitInput("the slices are not axial")
        if self.does.startswith("fail with "):
            number = int(self.does.split()[-1])
            raise OSError(number, os.strerror(number), str(files[0]))
        if self.does == "eat":
            raise MemoryError("8 GB wanted")
        return Findings("t", "volume", (), (), Algorithm("t", "1"), facts={"file": files[0].name, "pid": os.getpid()})


PIPELINE = Declaration(Pipeline.card, "tests.unit.node.pipelines:Pipeline")


class Dead(Pipeline):
    """As on a device on which nothing works any more."""

    def run(self, files: Sequence[Path], progress: Callable[[float, str], None]) -> Findings:
        os._exit(3)


DEAD = Declaration(Pipeline.card, "tests.unit.node.pipelines:Dead")
