"""What comes from the inference process is read as numbers and texts, whatever it is: nothing of it runs, nothing of it
takes memory before its bytes are there, and each refusal has words."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dicom_sr.changes import Comparison
from dicom_sr.findings import Findings
from dicom_sr.typed import plain
from models.pipeline import Card
from pacs_node import infer, messages
from pacs_node.infer import SAID, At, Begun, Broken
from pacs_node.messages import HEAD, MARK, BadMessage, Late, Messages
from tests.unit.node.test_kept import anything, same

SOON_S = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[Messages, socket.socket]]:
    """(the parent's end, the child's)"""
    ours, theirs = socket.socketpair()
    yield Messages(ours), theirs
    ours.close()
    theirs.close()


def heard(ours: Messages, theirs: socket.socket, content: bytes, answer: type | None = Findings) -> Any:
    """What the parent makes of these bytes, after which the child is gone."""

    def say() -> None:
        with contextlib.suppress(OSError):  # the parent has heard enough
            theirs.sendall(content)
        theirs.close()

    sender = threading.Thread(target=say)
    sender.start()
    try:
        return infer._read(*ours.receive(time.monotonic() + SOON_S), answer)
    finally:
        ours.end.close()
        sender.join()


def message(told: Any, shapes: Any = (), arrays: bytes = b"") -> bytes:
    text = json.dumps([told, shapes]).encode()
    return HEAD.pack(MARK, len(text), len(arrays)) + text + arrays


def test_what_is_said_comes_as_it_was(ends: tuple[Messages, socket.socket]) -> None:
    ours, theirs = ends
    findings = anything(random.Random(1))
    child = Messages(theirs)
    for said in (Begun(("a", "b")), At(0.5, "Größe"), Broken("KeyError: x", "lines", True), findings):
        infer._say(child, said)
        same(infer._read(*ours.receive(time.monotonic() + SOON_S), Findings), said)


def test_a_large_mask_goes_through(ends: tuple[Messages, socket.socket]) -> None:
    ours, theirs = ends
    mask = np.random.default_rng(0).random((64, 256, 256)) < 0.5
    sender = threading.Thread(target=Messages(theirs).send, args=(["x"], [mask]))
    sender.start()
    told, arrays = ours.receive(time.monotonic() + SOON_S)
    sender.join()
    assert told == ["x"]
    np.testing.assert_array_equal(arrays["mask0"], mask)
    assert arrays["mask0"].flags.writeable


class Trap:
    """What a pickle would run."""

    sprung = 0

    def __reduce__(self) -> Any:
        return (setattr, (Trap, "sprung", 1))


NOT_OURS = {
    "a pickle": pickle.dumps(("done", Trap())),
    "a pickle with a length, as a pipe of multiprocessing has it": b"\0\0\0\x20" + pickle.dumps(Trap()),
    "a pickle as text": HEAD.pack(MARK, 40, 0) + pickle.dumps(Trap())[:40].ljust(40),
    "an array of objects": message(["Answer", {}], [["object", 1]], b"12345678"),
    "an array of no kind": message(["Answer", {}], [[["bool"], 1]], b"1"),
    "an array of a negative length": message(["Answer", {}], [["bool", -1, -1]], b"1"),
    "an array of a broken length": message(["Answer", {}], [["bool", 1.0]], b"1"),
    "an array that is larger than its bytes": message(["Answer", {}], [["float64", 1 << 30, 1 << 30]], b"1"),
    "an array of many axes": message(["Answer", {}], [["bool", *[1] * 40]], b"1"),
    "a length beyond all": HEAD.pack(MARK, 1 << 31, 0),
    "arrays beyond all": HEAD.pack(MARK, 2, 1 << 40) + b"{}",
    "brackets": HEAD.pack(MARK, 1 << 20, 0) + b"[" * (1 << 20),
    "a number of a million digits": HEAD.pack(MARK, 1_000_000, 0) + b"1" * 1_000_000,
    "no text": HEAD.pack(MARK, 4, 0) + b"\xff\xfe\xfd\xfc",
    "one value": message(3)[: HEAD.size] + b"3" * (len(message(3)) - HEAD.size),
    "nothing said": message([]),
    "no such word": message(["system", "rm"]),
    "a class by its name": message(["builtins.eval", "1"]),
    "an answer of another type": message(["Answer", ["x"]]),
    "an answer with a field too many": message(["Answer", {"__class__": "x"}]),
    "progress without a number": message(["At", {"fraction": "1", "text": "x"}]),
    "progress with another text": message(["At", {"fraction": 1, "text": {"a": 1}}]),
    "an error without words": message(["Broken", {"trace": "", "spoilt": False}]),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_is_none_of_ours_is_an_error_in_words(ends: tuple[Messages, socket.socket], kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadMessage, match=r"\w+ \w+"):
            heard(*ends, NOT_OURS[kind])
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert Trap.sprung == 0


@pytest.mark.parametrize("seed", range(200))
def test_damaged_messages_raise_what_is_foreseen(ends: tuple[Messages, socket.socket], seed: int) -> None:
    """Bytes of a real answer changed, cut off, or noise: BadMessage, the end, or an answer of its type."""
    jitter = random.Random(seed)
    arrays: list[np.ndarray] = []
    told = plain(anything(jitter), arrays)
    shapes = [[array.dtype.name, *array.shape] for array in arrays]
    content = bytearray(message(["Answer", told], shapes, b"".join(array.tobytes() for array in arrays)))
    for _ in range(jitter.randrange(1, 6)):
        content[jitter.choice([jitter.randrange(len(content)), jitter.randrange(HEAD.size)])] = jitter.randrange(256)
    if seed % 3 == 0:
        content = content[: jitter.randrange(len(content))]
    if seed % 10 == 0:
        content = bytearray(jitter.randbytes(400))
    with contextlib.suppress(BadMessage, EOFError):
        assert isinstance(heard(*ends, bytes(content)), (Findings, *SAID.values()))


def wrong_values(kind: type, told: Any) -> Iterator[tuple[str, Any]]:
    """The same answer with each of its values, in turn, of every other type."""
    if isinstance(told, dict):
        for name in told:
            for where, changed in wrong_values(kind, told[name]):
                yield f"{name}.{where}", {**told, name: changed}
    elif isinstance(told, list) and told:
        for where, changed in wrong_values(kind, told[0]):
            yield f"0.{where}", [changed, *told[1:]]
    for other in ({"a": 1}, [[]], object):
        if other is not object and type(other) is not type(told):
            yield type(other).__name__, other


@pytest.mark.parametrize("answer", [Findings, Card, Comparison])
def test_every_value_of_another_type_is_refused_by_its_place(answer: type) -> None:
    from tests.unit.node.pipelines import Pipeline

    arrays: list[np.ndarray] = []
    made_of = {Findings: anything(random.Random(3)), Card: Pipeline.card}
    if answer is Comparison:
        told: Any = {"compared_with": {}, "thin": 1, "matches": [], "new": [], "not_shown": [], "gone": []}
        with pytest.raises(BadMessage, match=r"Comparison\.compared_with lacks"):
            infer._read(["Answer", told], {}, answer)
        return
    told = plain(made_of[answer], arrays)
    names = {f"mask{place}": array for place, array in enumerate(arrays)}
    infer._read(["Answer", told], names, answer)
    tried = 0
    for where, changed in wrong_values(answer, told):
        if where.startswith(("facts", "weights_sha256")) and where.count(".") > 1:
            continue
        with pytest.raises(BadMessage, match=answer.__name__):
            infer._read(["Answer", changed], names, answer)
        tried += 1
    assert tried > 20


def test_a_message_that_does_not_end_is_not_waited_for(ends: tuple[Messages, socket.socket]) -> None:
    """A byte now and then, progress without end, or nothing at all: the time is the same."""
    ours, theirs = ends
    theirs.sendall(message(["At", {"fraction": 0, "text": ""}])[:-1])
    looked: list[int] = []
    ours.meanwhile = lambda: looked.append(1)
    with pytest.raises(Late):
        ours.receive(time.monotonic() + 2 * messages.LOOK_EVERY_S)
    assert looked
    theirs.setblocking(False)
    with pytest.raises(Late):
        ours.send(["x" * 10_000_000], deadline=time.monotonic() + 0.2)  # nobody reads
