"""Sizes that a header claims are held against the bytes that are there: refused by name, before memory is taken."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from dicom_sr.findings import ImageRef
from dicom_sr.reading import MOST_HEADER, Room, read_header
from dicom_sr.regions import MOST_REGIONS
from dicom_sr.slices import slices_of
from models import catalogue
from models.pixels import faults
from pacs_node.assemble.geometry import Unfit, _alike, judge
from pacs_node.errors import NotReadable, may_pass
from pacs_node.receive.header import identify
from pacs_node.records import Instance, Verdict
from pacs_node.stages import Unread, header_of, unread
from tests.factories import ct_series, us_image

CARDS = catalogue().cards
HUGE = (0, -1, 65535, 65536, 2147483647, -2147483648)
CLAIMS = dict.fromkeys(("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel"), HUGE)
NEVER = [(keyword, number) for keyword, numbers in CLAIMS.items() for number in numbers]


def palette_image(syntax: str) -> Dataset:
    image = us_image(shape=(64, 64))
    image.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(image, f"{colour}PaletteColorLookupTableData", bytes(range(256)))
    image.file_meta.TransferSyntaxUID = syntax
    return image


MAKE: dict[str, Callable[[], Dataset]] = {
    "native": lambda: us_image(shape=(64, 64), frames=2),
    "deflated": lambda: us_image(shape=(64, 64), frames=2, transfer_syntax=DeflatedExplicitVRLittleEndian),
    "RLE": lambda: us_image(shape=(64, 64), frames=2, transfer_syntax=RLELossless),
    "JPEG-LS": lambda: us_image(shape=(64, 64), frames=2, transfer_syntax=JPEGLSLossless),
    "CT": lambda: ct_series(shape=(1, 64, 64))[0],
}


def judged(image: Dataset, path: Path) -> Verdict:
    """The verdict on a series of this image alone, with how much memory it took."""
    image.preamble = b"\0" * 128
    image.save_as(path, enforce_file_format=False)
    read_header(path)  # what is loaded at the first time is no cost of this one
    tracemalloc.start()
    try:
        header = read_header(path)
        verdict = judge([header], CARDS, min_slices=1, faults=faults([header]))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    return verdict


def claim(image: Dataset, keyword: str, number: int) -> None:
    """As another writer may have put it: in a VR that holds the number."""
    image[keyword] = DataElement(keyword, "IS", str(number))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("keyword", "number"), NEVER)
def test_a_size_that_cannot_be_is_refused_by_name(tmp_path: Path, kind: str, keyword: str, number: int) -> None:
    image = MAKE[kind]()
    claim(image, keyword, number)
    verdict = judged(image, tmp_path / "a.dcm")
    assert not verdict.fit
    assert keyword in verdict.reason


@pytest.mark.parametrize("kind", MAKE)
def test_the_images_as_they_are_made_are_fit(tmp_path: Path, kind: str) -> None:
    """Or the test above would pass for another reason."""
    verdict = judged(MAKE[kind](), tmp_path / "a.dcm")
    assert verdict.fit, verdict.reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("colour", ["Red", "Green", "Blue"])
@pytest.mark.parametrize(
    "descriptor", [[65535, 0, 16], [0, 0, 16], [256, 0, 32], [256, 0, 0], [256], [], [0, 65535, 8]]
)
def test_a_palette_of_more_entries_than_there_are_is_refused_by_name(
    tmp_path: Path, colour: str, descriptor: list[int]
) -> None:
    image = palette_image(ExplicitVRLittleEndian)
    assert judged(image, tmp_path / "a.dcm").fit
    setattr(image, f"{colour}PaletteColorLookupTableDescriptor", descriptor)
    verdict = judged(image, tmp_path / "b.dcm")
    assert not verdict.fit
    assert "PaletteColorLookupTable" in verdict.reason


@pytest.mark.parametrize("vr", ["OW", "US"])
@pytest.mark.parametrize("what", ["PaletteColorLookupTableData", "PaletteColorLookupTableDescriptor"])
def test_a_palette_of_megabytes_is_refused_by_name(tmp_path: Path, what: str, vr: str) -> None:
    image = palette_image(ImplicitVRLittleEndian)
    keyword = f"Green{what}"
    image[keyword] = DataElement(keyword, "OW", b"\1\0" * (1 << 20))
    if vr == "US":  # as numbers, each of which becomes an object
        image[keyword] = DataElement(keyword, "US", [1] * (1 << 20))
    verdict = judged(image, tmp_path / "a.dcm")
    assert not verdict.fit
    assert f"{keyword} has" in verdict.reason


@pytest.mark.parametrize("modality", ["US", "DX", "CT"])
def test_more_regions_than_a_screen_shows_are_refused_by_name(tmp_path: Path, modality: str) -> None:
    image: Any = us_image(shape=(64, 64)) if modality == "US" else ct_series(shape=(1, 64, 64))[0]
    region = us_image(shape=(64, 64)).SequenceOfUltrasoundRegions[0]
    if modality == "DX":
        image = us_image(shape=(64, 64))
        image.Modality, image.SOPClassUID = "DX", "1.2.840.10008.5.1.4.1.1.1.1"
    image.SequenceOfUltrasoundRegions = [region] * MOST_REGIONS
    cards = [*CARDS, *(card for card in CARDS if "US" in card.modality)]
    assert judge([image], cards, min_slices=1).fit == (modality != "DX")
    image.SequenceOfUltrasoundRegions = [region] * (MOST_REGIONS + 1)
    verdict = judge([image], cards, min_slices=1)
    if modality == "US":
        assert "SequenceOfUltrasoundRegions has 101 items; no screen shows more than 100 regions" in verdict.reason
        assert not verdict.fit
    else:  # nobody looks at them there
        assert verdict.fit == (modality == "CT")


@pytest.mark.parametrize("claimed", [1, 2])
def test_an_rle_segment_that_unpacks_to_gigabytes_is_counted_first(tmp_path: Path, claimed: int) -> None:
    image = us_image(shape=(64, 64), transfer_syntax=RLELossless)
    bomb = b"\x81\0" * (1 << 20)  # each two bytes are 128 pixels
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    image.NumberOfFrames = claimed
    image.PixelData = encapsulate([header + bomb] * claimed)
    verdict = judged(image, tmp_path / "a.dcm")
    assert not verdict.fit
    assert "has an RLE segment of more than Rows x Columns pixels" in verdict.reason


@pytest.mark.parametrize("make", [us_image, lambda: ct_series(shape=(1, 64, 64))[0]])
@pytest.mark.parametrize("damage", ["a bomb", "nested", "no DICOM", "gone"])
def test_an_image_that_cannot_be_read_is_set_aside_for_that_and_the_others_are_judged(
    tmp_path: Path, make: Callable[[], Dataset], damage: str
) -> None:
    """It may lie in the spool since before there were limits."""
    good, bad = make(), make()
    bad.SOPInstanceUID = "1.2.3"
    for image, name in ((good, "good.dcm"), (bad, "bad.dcm")):
        image.save_as(tmp_path / name, enforce_file_format=True)
    content = (tmp_path / "bad.dcm").read_bytes()
    at = 144 + int.from_bytes(content[140:144], "little")
    nested = (b"\x08\0\x02\0SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4) * 100
    if damage == "gone":
        (tmp_path / "bad.dcm").unlink()
    elif damage == "a bomb":
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        private = b"\x09\0\x01\x10OB\0\0" + (MOST_HEADER + 2).to_bytes(4, "little")
        bomb = squeeze.compress(private + bytes(MOST_HEADER + 2)) + squeeze.flush()
        bad.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        bad.save_as(tmp_path / "bad.dcm", enforce_file_format=True)
        head = (tmp_path / "bad.dcm").read_bytes()
        (tmp_path / "bad.dcm").write_bytes(head[: 144 + int.from_bytes(head[140:144], "little")] + bomb)
    else:
        more = nested + content[at:] if damage == "nested" else b""
        (tmp_path / "bad.dcm").write_bytes(content[: at if more else 100] + more)
    headers = [header_at(image, tmp_path / name) for image, name in ((bad, "bad.dcm"), (good, "good.dcm"))]
    verdict = judge(headers, CARDS, min_slices=1, faults=faults(headers) | unread(headers))
    assert verdict.fit, verdict.reason
    assert verdict.use == (good.SOPInstanceUID,)
    words = {
        "a bomb": "the header has more than 64 MiB before Pixel Data",
        "nested": "holds sequences nested deeper than 64",
        "no DICOM": "its stored file cannot be read: it is no DICOM file any more",
        "gone": "its stored file cannot be read: No such file or directory",
    }[damage]
    assert words in verdict.set_aside["1.2.3"]
    alone = judge(headers[:1], CARDS, min_slices=1, faults=unread(headers))
    assert not alone.fit
    assert f"no usable images; 1 set aside: {verdict.set_aside['1.2.3']}" == alone.reason


def instance_of(image: Dataset, path: Path) -> Instance:
    uids = image.SOPInstanceUID, image.SOPClassUID, image.SeriesInstanceUID, image.StudyInstanceUID
    return Instance(*uids, "", path, 0, datetime(2026, 3, 14, tzinfo=UTC), "", "")


def header_at(image: Dataset, path: Path, room: Room | None = None) -> Dataset:
    return header_of(instance_of(image, path), path, room)


@pytest.mark.parametrize("copied", [None, 0, 100], ids=["no copy", "nothing of it", "a part"])
@pytest.mark.parametrize("stored", [True, False])
def test_what_is_stored_and_was_not_copied_is_waited_for(tmp_path: Path, copied: int | None, stored: bool) -> None:
    image, copy = us_image(), tmp_path / "00000.dcm"
    kept = replace(instance_of(image, tmp_path / "1.pack"), offset=128, size=1000)
    if stored:
        kept.path.write_bytes(bytes(1128))
    if copied is not None:
        copy.write_bytes(bytes(copied))
    header = header_of(kept, copy)
    assert isinstance(header, Unread)
    assert (header.passing is not None and may_pass(header.passing)) == stored


def test_a_bomb_in_the_pixels_is_refused_at_receipt_and_at_the_verdict(tmp_path: Path) -> None:
    """It may lie in the spool since before there were limits: the node that finds it there goes on."""
    image = us_image(shape=(64, 64), transfer_syntax=DeflatedExplicitVRLittleEndian)
    path = tmp_path / "a.dcm"
    image.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    at = 144 + int.from_bytes(content[140:144], "little")
    data_set = zlib.decompress(content[at:], -zlib.MAX_WBITS)
    pixels = data_set.index(b"\xe0\x7f\x10\0OB")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = 100 << 20
    bomb = squeeze.compress(data_set[: pixels + 8] + size.to_bytes(4, "little"))
    bomb += b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(100)) + squeeze.flush()
    path.write_bytes(content[:at] + bomb)
    with pytest.raises(NotReadable, match="inflates to more than 100 times its size"):
        identify(bomb, DeflatedExplicitVRLittleEndian)
    header = header_at(image, path)
    verdict = judge([header], CARDS, faults=faults([header]))
    assert "PixelData inflates to more than 100 times its size" in verdict.reason
    assert not verdict.fit


def test_headers_of_a_series_that_together_take_too_much_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [us_image(number=number) for number in range(1, 6)]
    paths = [tmp_path / f"{number}.dcm" for number in range(5)]
    for image, path in zip(images, paths, strict=True):
        image.save_as(path, enforce_file_format=True)
    one = Room(1 << 30)
    header_at(images[0], paths[0], one)
    room = Room(3 * ((1 << 30) - one.left) + 1000)
    headers = [header_at(image, path, room) for image, path in zip(images, paths, strict=True)]
    verdict = judge(headers, CARDS, faults=faults(headers) | unread(headers))
    assert len(verdict.use) == 3
    assert set(verdict.set_aside.values()) == {"the headers of its series take more than 2048 MiB of memory"}


def test_slices_that_lie_in_every_direction_are_not_held_against_each_other_for_ever() -> None:
    header = ct_series(shape=(1, 8, 8))[0]
    slices = slices_of(header)
    turned = [
        replace(slices[0], pixel_spacing_mm=(1 + number, 1.0), ref=ImageRef("1.2", f"1.{number}"))
        for number in range(50_000)
    ]
    with pytest.raises(Unfit, match=r"more than 100 volumes in one series: another pixel spacing \(PixelSpacing\)"):
        _alike(turned)
