"""Data sets as no device should write them: a whole one, and one to three things wrong with it."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from PIL import Image

from pacs_node.receive.accept import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from tests.fuzz.wire import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    LARGE_NUMBERS,
    NATIVE,
    NUMBERS,
    ODD_VRS,
    UNDEFINED,
    VRS,
    Element,
    Encoding,
    Item,
    any_bytes,
    fragment,
    garbled,
)

US, CT, SC = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
CLASSES = tuple(STORAGE_SOP_CLASSES)
SYNTAXES = tuple(TRANSFER_SYNTAXES)
SECRET = "SECRET"  # in every value that names the patient: it must be in no log and on no page
LOOK = "LOOK"  # in the description of a series that goes to a pipeline
SERIES_OF = 20  # so many numbers in a row are images of one series

PIXELS = 0x7FE00010
ROWS, COLUMNS = 8, 12


@dataclass
class DataSet:
    """What a C-STORE announces, and brings."""

    kind: str
    sop_class: str
    instance_uid: str
    syntax: str
    content: bytes


@dataclass
class Draft:
    """A data set before it is written down."""

    rng: random.Random
    sop_class: str
    syntax: str
    elements: list[Element] = field(default_factory=list)

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.syntax == IMPLICIT, self.syntax == BIG_ENDIAN)

    def put(self, tag: int, vr: bytes, value: bytes | str | int | list[Item], **odd: int | bool) -> Element:
        """Set an element, in the place of the one that is there."""
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        elif isinstance(value, int):
            value = self.encoding.number({b"US": "H", b"UL": "L", b"SS": "h"}[vr], value)
        new = Element(tag, vr, value, **odd)  # type: ignore[arg-type]
        at = next((at for at, each in enumerate(self.elements) if each.tag >= tag), len(self.elements))
        if at < len(self.elements) and self.elements[at].tag == tag:
            self.elements[at] = new
        else:
            self.elements.insert(at, new)
        return new

    def some(self) -> Element:
        return self.rng.choice(self.elements)


def uid(*parts: object) -> str:
    return f"2.25.{random.Random('|'.join(map(str, parts))).getrandbits(120)}"


def whole(rng: random.Random, number: int, seed: object) -> Draft:
    """A small image that is as it should be, or an object of another class with the same attributes."""
    sop_class = rng.choice((US, US, US, CT, CT, SC, rng.choice(CLASSES)))
    draft = Draft(rng, sop_class, rng.choice(SYNTAXES if rng.random() < 0.6 else sorted(NATIVE)))
    series = number // SERIES_OF
    put = draft.put
    put(0x00080005, b"CS", "ISO_IR 100")
    put(0x00080008, b"CS", "ORIGINAL\\PRIMARY\\AXIAL")
    put(0x00080016, b"UI", sop_class)
    put(0x00080018, b"UI", uid(seed, "instance", number))
    put(0x00080020, b"DA", "20260301")
    put(0x00080030, b"TM", "101500")
    put(0x00080050, b"SH", f"{SECRET}-ACC")
    put(0x00080060, b"CS", {US: "US", CT: "CT"}.get(sop_class, rng.choice(("OT", "US", "CT", "SR", "SEG"))))
    put(0x00080070, b"LO", "Maker")
    put(0x00080090, b"PN", f"{SECRET}^DOCTOR")
    put(0x0008103E, b"LO", f"Series {series} {LOOK if series % 8 == 0 else ''}")
    put(0x00100010, b"PN", f"{SECRET}^PATIENT")
    put(0x00100020, b"LO", f"PID-{SECRET}")
    put(0x00100030, b"DA", "19700101")
    put(0x00100040, b"CS", "F")
    put(0x00180050, b"DS", "2.5")
    put(0x00186011, b"SQ", [_region(draft)])
    put(0x0020000D, b"UI", uid(seed, "study", series))
    put(0x0020000E, b"UI", uid(seed, "series", series))
    put(0x00200011, b"IS", "1")
    put(0x00200013, b"IS", str(number % SERIES_OF + 1))
    put(0x00200032, b"DS", f"-10\\-10\\{number % SERIES_OF * 2.5}")
    put(0x00200037, b"DS", "1\\0\\0\\0\\1\\0")
    put(0x00200052, b"UI", uid(seed, "frame", series))
    put(0x00280002, b"US", 1)
    put(0x00280004, b"CS", "MONOCHROME2")
    put(0x00280010, b"US", ROWS)
    put(0x00280011, b"US", COLUMNS)
    put(0x00280030, b"DS", "0.5\\0.5")
    put(0x00280100, b"US", 8)
    put(0x00280101, b"US", 8)
    put(0x00280102, b"US", 7)
    put(0x00280103, b"US", 0)
    put(0x00281052, b"DS", "-1024")
    put(0x00281053, b"DS", "1")
    if draft.syntax in NATIVE:
        put(PIXELS, b"OB", rng.randbytes(ROWS * COLUMNS))
    else:
        put(PIXELS, b"OB", [fragment(b""), fragment(compressed(draft.syntax))], length=UNDEFINED)
    return draft


def _region(draft: Draft) -> Item:
    region = Draft(draft.rng, draft.sop_class, draft.syntax)
    for tag, vr, value in (
        (0x00186012, b"US", 1), (0x00186014, b"US", 1), (0x00186016, b"UL", 0), (0x00186018, b"UL", 0),
        (0x0018601A, b"UL", 0), (0x0018601C, b"UL", COLUMNS - 1), (0x0018601E, b"UL", ROWS - 1),
        (0x00186024, b"US", 3), (0x00186026, b"US", 3),
    ):  # fmt: skip
        region.put(tag, vr, value)
    region.put(0x0018602C, b"FD", draft.encoding.number("d", 0.025))
    region.put(0x0018602E, b"FD", draft.encoding.number("d", 0.025))
    return Item(region.elements)


@cache
def compressed(syntax: str) -> bytes:
    """A frame in the syntax where PIL writes it; elsewhere bytes that no decoder takes."""
    picture = Image.frombytes("L", (COLUMNS, ROWS), bytes(range(ROWS * COLUMNS)))
    form = {
        "1.2.840.10008.1.2.4.50": "JPEG",
        "1.2.840.10008.1.2.4.90": "JPEG2000",
        "1.2.840.10008.1.2.4.91": "JPEG2000",
    }
    if syntax in form:
        file = io.BytesIO()
        picture.save(file, form[syntax])
        return file.getvalue() + b"\0" * (file.tell() % 2)
    if syntax == "1.2.840.10008.1.2.5":  # RLE: one segment of literal runs, PS3.5 G.3
        body = b"".join(bytes([COLUMNS - 1]) + bytes(range(COLUMNS)) for _ in range(ROWS))
        return struct.pack("<16L", 1, 64, *[0] * 14) + body + b"\0" * (len(body) % 2)
    if syntax == "1.2.840.10008.1.2.1.98":
        return bytes(ROWS * COLUMNS)
    return b"\xff\xd8" + bytes(range(200)) + b"\xff\xd9"


# ------------------------------------------------------------------------------------------------- what is wrong


def order(d: Draft) -> None:
    first, second = d.rng.randrange(len(d.elements)), d.rng.randrange(len(d.elements))
    how = d.rng.randrange(4)
    if how == 0:
        d.rng.shuffle(d.elements)
    elif how == 1:
        d.elements.reverse()
    elif how == 2:
        d.elements.insert(0, d.elements.pop())  # the pixels first
    else:
        d.elements[first], d.elements[second] = d.elements[second], d.elements[first]


def twice(d: Draft) -> None:
    for _ in range(d.rng.choice((1, 1, 3, 200))):
        d.elements.insert(d.rng.randrange(len(d.elements) + 1), replace(d.some()))


def missing(d: Draft) -> None:
    for _ in range(d.rng.choice((1, 1, 1, 5, 20))):
        if len(d.elements) > 1:
            d.elements.remove(d.some())


def empty(d: Draft) -> None:
    each = d.some()
    each.value = b"" if isinstance(each.value, bytes) else []


def representation(d: Draft) -> None:
    d.some().vr = d.rng.choice((*VRS, *ODD_VRS))


def length(d: Draft) -> None:
    d.some().length = d.rng.choice((*NUMBERS, *LARGE_NUMBERS))


def no_delimiter(d: Draft) -> None:
    sequences = [each for each in d.elements if not isinstance(each.value, bytes)]
    if sequences:
        one = d.rng.choice(sequences)
        one.length, one.delimited = UNDEFINED, d.rng.random() < 0.5
        for item in one.value:
            assert isinstance(item, Item)
            item.length, item.delimited = d.rng.choice((None, UNDEFINED)), d.rng.random() < 0.7


def items(d: Draft) -> None:
    """Items whose lengths lie, that are none, and delimiters where none should be."""
    inner = Element(0x00080100, b"SH", b"CODE")
    odd = [
        Item([inner], length=d.rng.choice((*NUMBERS, *LARGE_NUMBERS))),
        Item([inner], tag=d.rng.choice((0xFFFEE00D, 0xFFFEE0DD, 0xFFFEE001, 0x00080100))),
        Item([], length=UNDEFINED, delimited=False),
        Item([Element(0xFFFEE00D, b"", b""), inner]),
        Item([Element(0, b"", b"", raw=any_bytes(d.rng))]),
    ]
    d.put(_sequence_tag(d), b"SQ", [d.rng.choice(odd) for _ in range(d.rng.choice((1, 2, 5)))], length=_defined(d))


def _sequence_tag(d: Draft) -> int:
    return d.rng.choice((0x00081140, 0x00081115, 0x00081032, 0x00186011, 0x0040A730, 0x52009230, 0x00091010))


def _defined(d: Draft) -> int | None:
    return UNDEFINED if d.rng.random() < 0.5 else None


def deep(d: Draft) -> None:
    """Written down from the inside, so that nothing here recurses."""
    tag, content = _sequence_tag(d), d.encoding.element(Element(0x00080100, b"SH", b"CODE"))
    for _ in range(d.rng.choice((2, 20, 63, 64, 65, 66, 200, 3000))):
        item = Item([Element(0, b"", b"", raw=content)], _defined(d))
        vr = d.rng.choice((b"SQ", b"SQ", b"SQ", b"UN"))
        content = d.encoding.element(Element(tag, vr, [item], length=_defined(d)))
    d.put(tag, b"SQ", b"").raw = content


def wide(d: Draft) -> None:
    number = d.rng.choice((0, 1, 50, 101, 1000, 66_000 if d.rng.random() < 0.05 else 100))
    one = Item(d.rng.choice(([], [Element(0x00080100, b"SH", b"CODE")])), _defined(d))
    d.put(_sequence_tag(d), d.rng.choice((b"SQ", b"UN")), [one] * number, length=_defined(d))


def many(d: Draft) -> None:
    number = d.rng.choice((100, 1000, 20_000 if d.rng.random() < 0.1 else 500))
    d.elements[3:3] = [Element(0x00090000 + (0x1000 + k & 0xFFFF), b"UN", b"") for k in range(number)]


def private(d: Draft) -> None:
    group = d.rng.choice((0x0009, 0x0019, 0x0029, 0x7FE1, 0xFFFF, 0x0001, 0x0007))
    if d.rng.random() < 0.6:
        d.put(group << 16 | 0x10, b"LO", d.rng.choice(("ACME", "", "SIEMENS CSA HEADER", "\\", "A" * 200)))
    value = d.rng.choice((any_bytes(d.rng), [Item([Element(0x00080100, b"SH", b"CODE")])]))
    d.put(
        group << 16 | d.rng.choice((0x1001, 0x10FF, 0x0000, 0x0001, 0xFFFF)),
        d.rng.choice(VRS),
        value,
        length=_defined(d),
    )


def unknown(d: Draft) -> None:
    """UN, of a length or none: implicit VR inside."""
    inside = Encoding(implicit=d.rng.random() < 0.7).data_set([Element(0x00080100, b"SH", b"CODE")])
    raw = Item([Element(0, b"", b"", raw=inside)], _defined(d))
    d.put(d.rng.choice((0x00081140, 0x00091010, 0x00080100, 0x00400275)), b"UN", [raw], length=_defined(d))


CHARSETS = (
    "ISO_IR 192", "ISO_IR 100", "ISO 2022 IR 87", "\\ISO 2022 IR 149", "ISO 2022 IR 6\\ISO 2022 IR 58", "GB18030",
    "GBK", "BOGUS", "", "\\", "ISO_IR 166\\ISO_IR 192", "iso_ir 192", "ISO_IR 13" * 9, "utf8", "UTF-7", "idna", "rot13",
)  # fmt: skip
TEXTS = (
    "\x1b$B\xff\xff", "\x1b$)C", "\x1b", "\xff\xfe\x00", "<script>alert(1)</script>", "\0", "\r\n\r\n", "\\" * 50,
    "=" * 9,
    "^" * 99, "\u202e\u2066", "\ud800", "{{7*7}}", "%s%n%x", "../../etc/passwd", "'; DROP TABLE job;--", "a" * 70_000,
    "é" * 40, "\x7f\x80\x81", "-1", "NaN", "(a+)+$" + "a" * 40, "\\", " ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
)  # fmt: skip
TEXT_TAGS = (
    (0x0008103E, b"LO"), (0x00080070, b"LO"), (0x00080060, b"CS"), (0x00080008, b"CS"), (0x00180015, b"CS"),
    (0x00081030, b"LO"), (0x00204000, b"LT"), (0x00181030, b"LO"), (0x00080080, b"LO"),
)  # fmt: skip


def character_set(d: Draft) -> None:
    d.put(0x00080005, b"CS", d.rng.choice(CHARSETS))
    tag, vr = d.rng.choice(TEXT_TAGS)
    d.put(tag, vr, d.rng.choice(TEXTS)[:60_000].encode("utf-8", "surrogatepass")[:60_000])
    d.put(0x00100010, b"PN", f"{SECRET}".encode() + d.rng.choice(TEXTS)[:60].encode("utf-8", "surrogatepass"))


def text(d: Draft) -> None:
    tag, vr = d.rng.choice(TEXT_TAGS)
    d.put(tag, vr, d.rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:60_000])


NUMBER_TEXTS = (
    "", " ", "0", "-1", "1e400", "-1e-400", "NaN", "inf", "1\\2", "1,5", "0x10", "1_000", "9" * 5000, "1.2.3", "\\\\",
    "+",
    "99999999999999999999", "1e9", "2147483647", "٣", "1 000", "1\0", "0.000000000000000000001",
)  # fmt: skip
NUMBER_TAGS = (
    (0x00180050, b"DS"), (0x00200011, b"IS"), (0x00200013, b"IS"), (0x00200032, b"DS"), (0x00200037, b"DS"),
    (0x00280030, b"DS"), (0x00281052, b"DS"), (0x00281053, b"DS"), (0x00280008, b"IS"), (0x00200012, b"IS"),
    (0x00281050, b"DS"), (0x00281051, b"DS"), (0x00080020, b"DA"), (0x00080030, b"TM"), (0x00101010, b"AS"),
    (0x00181164, b"DS"), (0x00201002, b"IS"), (0x00181063, b"DS"), (0x00201209, b"IS"), (0x00201208, b"IS"),
)  # fmt: skip


def number(d: Draft) -> None:
    tag, vr = d.rng.choice(NUMBER_TAGS)
    several = d.rng.choice((1, 1, 3, 6, 1000))
    d.put(tag, vr, "\\".join(d.rng.choice(NUMBER_TEXTS) for _ in range(several))[:60_000])


SIZES = (0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280301)


def size(d: Draft) -> None:
    for _ in range(d.rng.choice((1, 1, 2, 4))):
        d.put(d.rng.choice(SIZES), b"US", d.rng.choice((0, 1, 2, 3, 7, 8, 9, 12, 16, 32, 64, 255, 32768, 65535)))


def colours(d: Draft) -> None:
    names = ("", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "MONOCHROME1", "X" * 16, "rgb\0")
    d.put(0x00280004, b"CS", d.rng.choice(names))
    if d.rng.random() < 0.6:
        for tag in (0x00281101, 0x00281102, 0x00281103):
            d.put(tag, b"US", d.encoding.number("H", *(d.rng.choice((0, 1, 8, 16, 256, 65535)) for _ in range(3))))
            d.put(tag + 0x100, b"OW", any_bytes(d.rng, 512))


UIDS = (
    "", "1..2", ".", "../../etc/passwd", "1." + "2" * 80, "0.0.0", "1.2.3\0\0", "1.2 ", "1.2.3\\1.2.4", "9" * 5000,
    "\0",
    "1.2.840.10008.5.1.4.1.1.66.4", "-1.2", "1.2/3", "1.2\n3", "é",
)  # fmt: skip


def uids(d: Draft) -> None:
    d.put(d.rng.choice((0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052)), b"UI", d.rng.choice(UIDS))


def frames(d: Draft) -> None:
    """A table of offsets that is none of this image's; fragments in any number; claims about frames."""
    rng = d.rng
    table = rng.choice(
        (
            b"", bytes(4), struct.pack("<2L", 0, 8), struct.pack("<3L", 8, 0, 4), struct.pack("<2L", 0, 0xFFFFFFFE),
            any_bytes(rng, 400), bytes(4 * rng.choice((10, 5000))), b"\0" * 6,
        )
    )  # fmt: skip
    one = compressed(d.syntax)
    bodies = (
        b"",
        one,
        one[: len(one) // 2 & ~1],
        any_bytes(rng, 200),
        b"\xff\xd8\xff\xd9",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
    )
    pieces = [fragment(rng.choice(bodies)) for _ in range(rng.choice((0, 1, 1, 2, 3, 50)))]
    if rng.random() < 0.1:
        pieces = [fragment(b"")] * rng.choice((2000, 10_000))
    if rng.random() < 0.2 and pieces:
        pieces[rng.randrange(len(pieces))] = Item([], length=rng.choice((*NUMBERS, *LARGE_NUMBERS)))
    kept = rng.random() < 0.8
    d.put(
        PIXELS, rng.choice((b"OB", b"OB", b"OW", b"UN")), [fragment(table), *pieces], length=UNDEFINED, delimited=kept
    )
    d.put(0x00280008, b"IS", str(rng.choice((0, 1, 2, 3, len(pieces), 65537, 2147483647))))
    if rng.random() < 0.3:
        offsets = [rng.choice((0, 8, 1 << 40, 2**64 - 1)) for _ in range(rng.choice((1, 2, 20)))]
        d.put(0x7FE00001, b"OV", d.encoding.number("Q", *offsets))
        d.put(0x7FE00002, b"OV", any_bytes(rng))


def pixels(d: Draft) -> None:
    rng = d.rng
    tag = rng.choice((PIXELS, PIXELS, 0x7FE00008, 0x7FE00009))
    d.put(
        tag,
        rng.choice((b"OB", b"OW", b"OF", b"OD", b"UN", b"US")),
        rng.randbytes(rng.choice((0, 1, 2, 95, 96, 97, 192, 4096))),
    )
    if rng.random() < 0.3:
        d.elements.append(Element(rng.choice((0xFFFCFFFC, 0x7FE10010, 0x00080018)), b"OB", any_bytes(rng)))


def functional_groups(d: Draft) -> None:
    rng = d.rng
    plane = Item([Element(0x00200032, b"DS", b"0\\0\\0")])
    frame = Item([Element(0x00209113, b"SQ", [plane] * rng.choice((0, 1, 2)))])
    d.put(0x52009230, b"SQ", [frame] * rng.choice((0, 1, 2, 30)))
    if rng.random() < 0.5:
        d.put(0x52009229, b"SQ", [frame] * rng.choice((0, 1, 3)))
    d.put(0x00280008, b"IS", str(rng.choice((0, 1, 2, 30, 31, 65536))))


def regions(d: Draft) -> None:
    rng = d.rng
    region = _region(d)
    for _ in range(rng.choice((1, 3))):
        each = rng.choice(region.elements)
        each.value = rng.choice((b"", b"\xff" * 8, any_bytes(rng), d.encoding.number("d", float("nan"))))
    d.put(0x00186011, b"SQ", [region] * rng.choice((0, 1, 2, 99, 101, 2000)))


def groups(d: Draft) -> None:
    """Elements of groups that have no place in a data set."""
    for _ in range(d.rng.choice((1, 1, 4))):
        tag = d.rng.choice(
            (0x00000000, 0x00020010, 0x00020000, 0x00080000, 0x00080001, 0x7FE00000, 0x0000_0900, 0xFFFEE0DD)
        )
        d.elements.insert(
            d.rng.randrange(len(d.elements)), Element(tag, d.rng.choice((b"UL", b"UI")), any_bytes(d.rng))
        )


def report(d: Draft) -> None:
    """A content tree, PS3.3 C.17.3, that refers to itself, to nobody, or goes down without end."""
    rng = d.rng
    item: list[Element] = [Element(0x0040A040, b"CS", b"CONTAINER")]
    for _ in range(rng.choice((1, 5, 30, 70))):
        reference = Element(
            0x0040DB73, b"UL", d.encoding.number("L", *(rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 9)))))
        )
        item = [
            Element(0x0040A040, b"CS", rng.choice((b"CONTAINER", b"NUM", b"", b"IMAGE"))),
            Element(0x0040A730, b"SQ", [Item(item)]),
            reference,
        ]
    d.put(0x0040A730, b"SQ", [Item(item)] * rng.choice((1, 2)))
    d.put(0x00080060, b"CS", "SR")


WRONG: tuple[Callable[[Draft], None], ...] = (
    order, twice, missing, empty, representation, length, no_delimiter, items, deep, wide, many, private, unknown,
    character_set, text, number, size, colours, uids, frames, pixels, functional_groups, regions, groups, report,
)  # fmt: skip


def data_set(rng: random.Random, number: int, seed: object) -> DataSet:
    """The data set of a number: the same for the same `rng`."""
    draft = whole(rng, number, seed)
    wrong = [rng.choice(WRONG) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
    for each in wrong:
        each(draft)
    instance_uid, sop_class = uid(seed, "instance", number), draft.sop_class
    content = draft.encoding.data_set(draft.elements)
    names = [each.__name__ for each in wrong]
    if rng.random() < 0.25:
        names.append("bytes")
        for _ in range(rng.choice((1, 1, 3))):
            content = garbled(rng, content)
    if rng.random() < 0.02:
        names.append("no data set")
        content = rng.choice((b"", b"\0" * 50, b"text" * 20, bytes(128) + b"DICM" + content, rng.randbytes(300)))
    if draft.syntax == DEFLATED:
        content = deflated(rng, content)
    if rng.random() < 0.03:
        names.append("command")
        instance_uid = rng.choice((*UIDS, uid(seed, "instance", rng.randrange(number + 1))))[:64]
        sop_class = rng.choice((CT, US, SC, "", "1.2.3"))
    return DataSet("+".join(names) or "whole", sop_class, instance_uid, draft.syntax, content)


def deflated(rng: random.Random, content: bytes) -> bytes:
    """PS3.5 A.5; now and then as no writer should."""
    if rng.random() < 0.02:
        content += bytes(rng.choice((1 << 20, 1 << 24, 80 << 20)))  # a bomb of a hundred kilobytes at most
    stream = zlib.compressobj(9, zlib.DEFLATED, rng.choice((-15, -15, -15, -15, 15, 31)))
    out = stream.compress(content) + stream.flush()
    how = rng.random()
    if how < 0.1:
        return garbled(rng, out)
    if how < 0.15:
        return out + any_bytes(rng)
    return out
