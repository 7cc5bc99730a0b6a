"""Messages between the node and its inference process: JSON and bare arrays, each with its length before it.

The process runs what others have written, on what others have sent. So nothing that comes from it is more than numbers
and texts: no pickle, no class by name, no length that is believed before its bytes are there.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pacs_node.errors import NodeError

HEAD = struct.Struct("<4sLQ")  # what it is, bytes of JSON, bytes of all arrays
MARK = b"PN-1"
MOST_JSON = 1 << 26  # bytes
MOST_ARRAYS = 1 << 31  # bytes of all arrays of one message: a mask of a whole volume takes half of that
MOST_AXES = 8
KINDS = {"bool": np.bool_, "uint8": np.uint8, "int16": np.int16, "int32": np.int32, "int64": np.int64} | {
    "uint16": np.uint16,
    "float32": np.float32,
    "float64": np.float64,
}
PART = 1 << 20  # bytes read or written at a time
LOOK_EVERY_S = 0.5  # at whatever else is to be looked at while one waits


class BadMessage(NodeError):
    """What came is no message; it says what is wrong with it."""


class Late(NodeError):
    """Nothing, or not all of it, came in time."""


class Messages:
    """One end of a pair of sockets. Any thread may send, one receives. Raises EOFError or OSError when the other end is
    gone."""

    def __init__(self, end: socket.socket, meanwhile: Callable[[], None] = lambda: None) -> None:
        """meanwhile: called every now and then while one waits for the other end."""
        self.end, self.meanwhile = end, meanwhile
        self._looked = time.monotonic()
        self._one_sender = threading.Lock()

    def send(self, told: Any, arrays: Sequence[np.ndarray] = (), deadline: float = math.inf) -> None:
        """told: what JSON can say. Raises TypeError or ValueError for what it cannot, before anything is sent; Late."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        if odd := [array.dtype.name for array in arrays if array.dtype.name not in KINDS]:
            raise TypeError(f"an array of {odd[0]} cannot be sent")
        shapes = [[array.dtype.name, *array.shape] for array in arrays]
        text = json.dumps([told, shapes]).encode()
        if len(text) > MOST_JSON or sum(array.nbytes for array in arrays) > MOST_ARRAYS:
            raise ValueError(f"a message of {len(text)} bytes and {len(arrays)} arrays is too long to be sent")
        with self._one_sender:
            self._write(HEAD.pack(MARK, len(text), sum(array.nbytes for array in arrays)) + text, deadline)
            for array in arrays:
                self._write(array.reshape(-1).view(np.uint8), deadline)

    def receive(self, deadline: float = math.inf) -> tuple[Any, dict[str, np.ndarray]]:
        """What was told, and the arrays that came with it, by the names that `typed.plain` gives them.

        Raises BadMessage; Late when it is not here by then (of `time.monotonic`).
        """
        mark, size, rest = HEAD.unpack(self._read(HEAD.size, deadline))
        if mark != MARK:
            raise BadMessage("it does not begin as a message does")
        if size > MOST_JSON or rest > MOST_ARRAYS:
            raise BadMessage(f"it claims {size} bytes of text and {rest} of arrays")
        try:
            told, shapes = json.loads(self._read(size, deadline))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadMessage(f"its text cannot be read ({type(error).__name__})") from error
        kinds = [_described(shape) for shape in shapes] if isinstance(shapes, list) else []
        if sum(kind.itemsize * math.prod(shape) for kind, shape in kinds) != rest:
            raise BadMessage(f"its arrays do not take the {rest} bytes that it claims")
        arrays = {}
        for number, (kind, shape) in enumerate(kinds):
            content = self._read(kind.itemsize * math.prod(shape), deadline)
            arrays[f"mask{number}"] = np.frombuffer(content, kind).reshape(shape)
        return told, arrays

    def _read(self, size: int, deadline: float) -> bytearray:
        """So many bytes; memory is taken as they come."""
        got = bytearray()
        while len(got) < size:
            self._wait(deadline)
            try:
                part = self.end.recv(min(size - len(got), PART))
            except TimeoutError:
                continue
            if not part:
                raise EOFError
            got += part
        return got

    def _write(self, content: Any, deadline: float) -> None:
        left = memoryview(content)
        while left:
            self._wait(deadline)
            try:
                left = left[self.end.send(left[:PART]) :]
            except TimeoutError:
                continue

    def _wait(self, deadline: float) -> None:
        now = time.monotonic()
        if now >= deadline:
            raise Late("not in time")
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self.meanwhile()
        self.end.settimeout(min(LOOK_EVERY_S, deadline - now))


def _described(told: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Raises BadMessage."""
    array = isinstance(told, list) and 1 <= len(told) <= 1 + MOST_AXES
    if not array or not isinstance(told[0], str) or told[0] not in KINDS:
        raise BadMessage("it has an array of a kind that is not sent")
    if not all(type(length) is int and 0 <= length <= MOST_ARRAYS for length in told[1:]):
        raise BadMessage("it has an array of a shape that cannot be")
    return np.dtype(KINDS[told[0]]), tuple(told[1:])
