"""The DICOM upper layer (PS3.8) and DIMSE (PS3.7), spoken wrongly: what is said piece by piece on one connection."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz.data_sets import CT, SC, UIDS, US, uid
from tests.fuzz.wire import (
    LARGE_NUMBERS,
    NUMBERS,
    UNDEFINED,
    Element,
    Encoding,
    Item,
    any_bytes,
    flipped,
    garbled,
)
from tests.parrot import COMMAND, DATA, LAST, command, pdata, pdu

NODE, SENDER = "PACSNODE", "EVIL"
VERIFICATION, PUSH_MODEL = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
COMMANDS = (
    1, 0x10, 0x20, 0x21, 0x30, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150, 0x0FFF, 0x8001, 0x8010, 0x8020, 0x8021, 0x8030,
    0x8100, 0x8110, 0x8120, 0x8130, 0x8140, 0x8150, 0xFFFF, 0,
)  # fmt: skip
CONTEXTS = {1: US, 3: CT, 5: VERIFICATION, 7: PUSH_MODEL}  # as `request` proposes them

STAY, HALF_CLOSE, RESET, CLOSE = "stay silent", "half close", "reset", "close"


@dataclass(frozen=True)
class Conversation:
    kind: str
    request: bytes | None  # the first piece, whose answer is waited for
    pieces: Sequence[bytes]
    ending: str


def item(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, (len(body) if length is None else length) & 0xFFFF) + body


def context(number: int, sop_class: bytes, syntaxes: Sequence[bytes]) -> bytes:
    return item(
        0x20,
        struct.pack("B3x", number & 0xFF) + item(0x30, sop_class) + b"".join(item(0x40, each) for each in syntaxes),
    )


def request(
    *,
    calling: bytes = SENDER.encode(),
    called: bytes = NODE.encode(),
    version: int = 1,
    application: bytes | None = APPLICATION_CONTEXT.encode(),
    contexts: Sequence[bytes] | None = None,
    user: bytes | None = None,
    kind: int = 1,
) -> bytes:
    """A-ASSOCIATE-RQ, PS3.8 9.3.2; each part may be anything."""
    if contexts is None:
        contexts = [
            context(number, sop_class.encode(), (EXPLICIT.encode(), IMPLICIT.encode()))
            for number, sop_class in CONTEXTS.items()
        ]
    if user is None:
        role = PUSH_MODEL.encode()
        user = item(0x51, struct.pack(">L", 1 << 16)) + item(0x52, b"1.2.3.4")
        user += item(0x54, struct.pack(">H", len(role)) + role + b"\1\1")  # SCP/SCU role selection: PS3.7 D.3.3.4
    titles = called.ljust(16)[:16] + calling.ljust(16)[:16]
    body = struct.pack(">H2x", version) + titles + bytes(32)
    body += b"" if application is None else item(0x10, application)
    return pdu(kind, body + b"".join(contexts) + item(0x50, user))


# ------------------------------------------------------------------------------------ requests for an association


def _title(rng: random.Random) -> bytes:
    odd = (
        b"",
        b"\0" * 16,
        b"STRANGER",
        b"SENDER",
        b"PACS",
        b" EVIL",
        b"evil",
        b"\\",
        b"\xff" * 16,
        b"EVIL\0\0",
        b"\r\n",
        b"A\tB",
    )
    return rng.choice((*odd, rng.randbytes(16)))


def _sub_item(rng: random.Random) -> bytes:
    """User information: PS3.7 D.3.3, PS3.8 D."""
    kind = rng.choice((0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, rng.randrange(256)))
    inner = rng.choice(
        (
            any_bytes(rng), struct.pack(">L", rng.choice((*NUMBERS, *LARGE_NUMBERS))), b"1.2.3", b"1" * 100, b"",
            struct.pack(">HH", 0, 0), struct.pack(">H", 0xFFFF) + b"x", struct.pack(">BBH", 1, 1, 4) + b"user\0\0",
            struct.pack(">BBH", rng.randrange(6), 1, 0xFFFF) + b"user",
        )
    )  # fmt: skip
    return item(kind, inner, rng.choice((None, None, None, 0, 1, 0xFFFF)))


def _context(rng: random.Random) -> bytes:
    sop_class = rng.choice((US, CT, SC, VERIFICATION, PUSH_MODEL, FIND, "", "x" * 200, "1.2." * 30, "1.2.3\0", "\xff"))
    syntaxes = [
        rng.choice((EXPLICIT, IMPLICIT, "", "1" * 100, "1.2.840.10008.1.2.4.50", "\0")).encode()
        for _ in range(rng.choice((0, 1, 2, 5, 40)))
    ]
    whole = context(rng.choice((0, 1, 2, 3, 255, rng.randrange(256))), sop_class.encode("latin-1"), syntaxes)
    return rng.choice((whole, whole, whole, garbled(rng, whole), item(0x20, b""), item(0x21, whole[4:])))


def odd_request(rng: random.Random) -> bytes:
    how = rng.randrange(9)
    if how == 0:
        return request(calling=_title(rng))
    if how == 1:
        return request(called=_title(rng))
    if how == 2:
        return request(version=rng.choice((0, 2, 3, 0xFFFF)))
    if how == 3:
        odd = rng.choice((None, b"", b"1.2.3", b"x" * 300, APPLICATION_CONTEXT.encode() + b"\0"))
        return request(application=odd)
    if how == 4:
        return request(contexts=[_context(rng) for _ in range(rng.choice((0, 1, 2, 5, 127, 128, 129, 300)))])
    if how == 5:
        return request(user=b"".join(_sub_item(rng) for _ in range(rng.choice((0, 1, 3, 30)))))
    if how == 6:
        return garbled(rng, request())
    if how == 7:
        return request(kind=rng.choice((2, 3, 4, 5, 6, 7, 0, 8, 255)))
    whole = request()
    return whole[:2] + struct.pack(">L", rng.choice((*NUMBERS, *LARGE_NUMBERS, len(whole) - 7, len(whole)))) + whole[6:]


# --------------------------------------------------------------------------------------------------- messages


def padded(text: str) -> bytes:
    value = text.encode("latin-1", "replace")
    return value + b"\0" * (len(value) % 2)


def number(value: int) -> bytes:
    return struct.pack("<H", value)


def fields(sop_class: str, instance: str, kind: int = 1, *, data_set: bool = True) -> list[tuple[int, bytes]]:
    """The elements of a request that are there as they should be: PS3.7 9.3, 10.3."""
    given = [(0x0100, number(kind)), (0x0110, number(1)), (0x0800, number(1 if data_set else 0x101))]
    if kind in (0x110, 0x120, 0x130, 0x150):  # N-GET, N-SET, N-ACTION, N-DELETE
        return [(0x0003, padded(sop_class)), *given, (0x1001, padded(instance)), (0x1008, number(1))]
    given = [(0x0002, padded(sop_class)), *given]
    if kind == 1:
        return [*given[:-1], (0x0700, number(0)), given[-1], (0x1000, padded(instance))]
    if kind == 0x100:
        return [*given, (0x1000, padded(instance)), (0x1002, number(1))]
    return given


def odd_command(rng: random.Random, given: Sequence[tuple[int, bytes]]) -> bytes:
    """A command set with elements missing, twice, in another order, of another type or length."""
    changed = list(given)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed))
        element, value = changed[at]
        how = rng.randrange(7)
        if how == 0 and len(changed) > 1:
            del changed[at]
        elif how == 1:
            changed.insert(rng.randrange(len(changed) + 1), (element, value))
        elif how == 2:
            changed[at] = (
                element,
                rng.choice((b"", b"\0", any_bytes(rng), b"1.2.3", b"x" * 5000, number(rng.randrange(65536)))),
            )
        elif how == 3:
            rng.shuffle(changed)
        elif how == 4:
            changed.append(
                (rng.choice((0, 1, 0x120, 0x900, 0x901, 0x902, 0x1020, 0x5010, rng.randrange(65536))), any_bytes(rng))
            )
        elif how == 5:
            odd = rng.choice(UIDS).encode("latin-1", "replace")
            changed[at] = element, odd
        else:
            changed = [(e, number(rng.choice(COMMANDS)) if e == 0x100 else v) for e, v in changed]
    encoded = command(*changed)
    how = rng.randrange(8)
    if how == 0:
        return garbled(rng, encoded)
    if how == 1:
        return encoded[12:]  # without its group length
    if how == 2:
        return encoded + Encoding(implicit=True).element(Element(0x00080018, b"UI", b"1.2"))
    return encoded


def fragments(rng: random.Random, context_id: int, control: int, content: bytes) -> list[bytes]:
    """P-DATA-TF, one or several values in each, empty ones between."""
    step = rng.choice((1, 7, 16, 333, 4000, 16_000))
    step = max(step, len(content) // 60)
    pieces = [content[at : at + step] for at in range(0, len(content), step)] or [b""]
    if rng.random() < 0.1:
        pieces.insert(rng.randrange(len(pieces)), b"")
    values = [
        struct.pack(">LBB", len(piece) + 2, context_id, control | (LAST if at == len(pieces) - 1 else 0)) + piece
        for at, piece in enumerate(pieces)
    ]
    together = rng.choice((1, 1, 2, 100))
    return [pdu(4, b"".join(values[at : at + together])) for at in range(0, len(values), together)]


def said(rng: random.Random, context_id: int, encoded: bytes, data: bytes | None) -> list[bytes]:
    pieces = fragments(rng, context_id, COMMAND, encoded)
    return pieces if data is None else [*pieces, *fragments(rng, context_id, DATA, data)]


def small_image(instance: str, series: str) -> bytes:
    values = ((0x00080016, b"UI", US), (0x00080018, b"UI", instance), (0x00080060, b"CS", "US"))
    more = ((0x00100010, b"PN", "SECRET^PATIENT"), (0x0020000D, b"UI", series + ".1"), (0x0020000E, b"UI", series))
    return Encoding().data_set([Element(tag, vr, value.encode()) for tag, vr, value in (*values, *more)])


def odd_reference(rng: random.Random, seed: object) -> list[Element]:
    """What a storage commitment asks for, or reports on: PS3.4 Table J.3.2-1, J.3.3-1."""

    def items(count: int) -> list[Item]:
        return [
            Item(
                [
                    Element(0x00081150, b"UI", rng.choice((US, "", *UIDS)).encode()),
                    Element(0x00081155, b"UI", rng.choice((uid(seed, "instance", rng.randrange(50)), *UIDS)).encode()),
                    *(
                        [Element(0x00081197, rng.choice((b"US", b"LO", b"SQ")), any_bytes(rng))]
                        if rng.random() < 0.5
                        else []
                    ),
                ]
            )
            for _ in range(count)
        ]

    elements = [Element(0x00081195, b"UI", rng.choice((uid(rng.random()), "1.2.3", *UIDS)).encode())]
    for tag in (0x00081198, 0x00081199):
        if rng.random() < 0.7:
            value: bytes | list[Item] = rng.choice((items(rng.choice((0, 1, 3, 200))), any_bytes(rng)))
            vr = b"SQ" if rng.random() < 0.8 else rng.choice((b"UI", b"LO", b"US", b"UN", b"IS"))
            elements.append(Element(tag, vr, value, length=rng.choice((None, None, UNDEFINED))))
    return elements


def odd_fields(rng: random.Random, given: list[tuple[int, bytes]]) -> bytes:
    return odd_command(rng, given) if rng.random() < 0.6 else command(*given)


def _store(rng: random.Random, seed: object, k: int) -> list[bytes]:
    instance = uid(seed, "talk", k)
    data = small_image(instance, uid(seed, "talk series", k // 40))
    data = garbled(rng, data) if rng.random() < 0.3 else data
    where = rng.choice((1, 1, 1, 3, 5, 7, 9, 0, 2, 255))
    return said(rng, where, odd_fields(rng, fields(US, instance)), data if rng.random() < 0.9 else None)


def _echo(rng: random.Random, seed: object, k: int) -> list[bytes]:
    encoded = odd_fields(rng, fields(VERIFICATION, "", 0x30, data_set=False))
    return said(rng, rng.choice((5, 5, 5, 1, 7, 9)), encoded, any_bytes(rng) if rng.random() < 0.2 else None)


def _commitment(rng: random.Random, seed: object, k: int) -> list[bytes]:
    kind = rng.choice((0x130, 0x130, 0x100, 0x100, 0x110, 0x120, 0x140, 0x150, 0x8100, 0x8130))
    given = fields(PUSH_MODEL, rng.choice((PUSH_MODEL_INSTANCE, PUSH_MODEL_INSTANCE, "1.2.3")), kind)
    data = Encoding(implicit=rng.random() < 0.3).data_set(odd_reference(rng, seed))
    data = garbled(rng, data) if rng.random() < 0.2 else data
    times = rng.choice((1, 1, 1, 2, 8))  # without waiting for an answer
    return said(rng, rng.choice((7, 7, 7, 7, 1, 5)), odd_fields(rng, given), data) * times


def _other(rng: random.Random, seed: object, k: int) -> list[bytes]:
    """Services that are not offered, answers to what was never asked, and cancels."""
    given = fields(rng.choice((FIND, GET, US, "")), "", rng.choice(COMMANDS), data_set=rng.random() < 0.5)
    given += rng.choice(([], [(0x0120, number(1)), (0x0900, number(rng.choice((0, 0xFF00, 0xA700, 0xFFFF))))]))
    return said(rng, rng.choice((1, 3, 5, 7)), odd_fields(rng, given), any_bytes(rng) if rng.random() < 0.5 else None)


MESSAGES: tuple[Callable[[random.Random, object, int], list[bytes]], ...] = (_store, _echo, _commitment, _other)


# ----------------------------------------------------------------------------------------------- conversations


def _pieces(rng: random.Random, seed: object, k: int) -> list[bytes]:
    pieces = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        pieces += rng.choice(MESSAGES)(rng, seed, k)
    return pieces


RELEASE, ABORT = pdu(5, bytes(4)), pdu(7, bytes(4))


def _odd_pdu(rng: random.Random) -> bytes:
    return rng.choice(
        (
            RELEASE, pdu(6, bytes(4)), ABORT, request(), pdu(2, request()[6:]), pdu(3, bytes([0, 1, 1, 1])),
            pdu(4, b""),
            pdu(rng.randrange(256), any_bytes(rng)), pdata(rng.randrange(256), rng.randrange(256), any_bytes(rng)),
            pdu(4, struct.pack(">L", rng.choice((0, 1, 2, 3, 0xFFFFFFFF))) + any_bytes(rng)), any_bytes(rng, 200),
            pdu(5, any_bytes(rng)), pdu(7, any_bytes(rng)), pdata(1, 0, b""), pdata(1, 4, b"x"),
        )
    )  # fmt: skip


def _order(rng: random.Random, pieces: list[bytes]) -> None:
    pieces.insert(rng.randrange(len(pieces) + 1), _odd_pdu(rng))
    if rng.random() < 0.5:
        rng.shuffle(pieces)


def _length(rng: random.Random, pieces: list[bytes]) -> None:
    at = rng.randrange(len(pieces))
    length = struct.pack(">L", rng.choice((*NUMBERS, *LARGE_NUMBERS, (1 << 17) + 1, len(pieces[at]))))
    where = rng.choice((2, 2, 6))  # of the PDU, or of the value in it
    pieces[at] = pieces[at][:where] + length + pieces[at][where + 4 :]


def _bytes(rng: random.Random, pieces: list[bytes]) -> None:
    at = rng.randrange(len(pieces))
    pieces[at] = garbled(rng, pieces[at])


def _all(rng: random.Random, pieces: list[bytes]) -> None:
    pieces[:] = [flipped(rng, b"".join(pieces), rng.choice((1, 3, 30)))]


def _cut(rng: random.Random, pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    pieces[:] = [whole[: rng.randrange(len(whole) + 1)]]


def _early_end(rng: random.Random, pieces: list[bytes]) -> None:
    pieces[:] = [*pieces[: rng.randrange(len(pieces) + 1)], rng.choice((RELEASE, ABORT))]


def _again(rng: random.Random, pieces: list[bytes]) -> None:
    """Said again and again, and never listened to."""
    pieces *= rng.choice((2, 5))


WRONG = (_order, _length, _bytes, _all, _cut, _early_end, _again)
NO_DICOM = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\3\1\0\5\1\0\0\1\3", b"\0", b"", b"\r\n" * 50, b"\xff" * 74)


def conversation(rng: random.Random, k: int, seed: object) -> Conversation:
    ending = rng.choices((HALF_CLOSE, CLOSE, RESET, STAY), (70, 19, 10, 1))[0]
    how = rng.random()
    if how < 0.02:
        return Conversation("no DICOM", None, [rng.choice((*NO_DICOM, any_bytes(rng, 200)))], ending)
    if how < 0.05:
        return Conversation("no request", None, _pieces(rng, seed, k), ending)
    if how < 0.30:
        odd = odd_request(rng)
        more = _pieces(rng, seed, k) if rng.random() < 0.2 else []
        return Conversation("request", odd, more, ending)
    pieces = _pieces(rng, seed, k)
    if how < 0.55:
        return Conversation("messages", request(), [*pieces, RELEASE], ending)
    wrong = rng.choice(WRONG)
    wrong(rng, pieces)
    return Conversation(wrong.__name__.strip("_"), request(), pieces, ending)
