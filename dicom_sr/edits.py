"""What a reader changed of a Segmentation of ours: each segment before and after, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_sr import attributes, read

GRID = (("ImageOrientationPatient", "PlaneOrientationSequence"), ("PixelSpacing", "PixelMeasuresSequence"))
SAME = 1e-3  # mm, and of direction cosines: what two writers make of one number


@dataclass(frozen=True)
class Edit:
    """What became of one segment."""

    kind: str  # "kept", "edited", "left-out" or "added"
    number: int | None  # of our segment; None of one that was added
    label: str  # ours; "" of one that was added, whose label is another's words
    dice: float | None = None  # 2 |A and B| / (|A| + |B|), Dice 1945; None: nothing to compare
    why_not: str = ""  # why an edited one is not compared


def edits(ours: Dataset, theirs: Dataset) -> list[Edit]:
    """What became of each segment of ours, in their order, and then what was added.

    A segment is followed by its Tracking UID; one without by what it covers, and then by its label. Planes are those of
    the source images; of a segment that names none, by position. Both have pixels. Raises what pydicom raises for one
    that cannot be decoded.
    """
    why_not = _another_grid(ours, theirs)
    before, after = _masks(ours), {} if why_not else _masks(theirs, ours)
    mine, yours = read.segments_described(ours), _described(theirs)
    pairs = _paired(mine, yours, before, after)
    told = [
        _edit(each, pairs.get(each.number), before.get(each.number, {}), after, yours, why_not or "") for each in mine
    ]
    taken = set(pairs.values())
    there = (number for number in yours if number not in taken and (why_not or after.get(number)))
    return [*told, *(Edit("added", None, "", why_not=why_not or "") for _ in there)]


Masks = dict[int, dict[tuple[str, int], np.ndarray]]  # segment number -> plane -> bool (rows, columns)


def _edit(
    mine: read.Segment,
    number: int | None,
    before: Mapping[tuple[str, int], np.ndarray],
    after: Masks,
    yours: Mapping[int, tuple[str, str]],
    why_not: str,
) -> Edit:
    if number is None or number not in yours or (not why_not and not after.get(number)):
        return Edit("left-out", mine.number, mine.label)
    if why_not:
        return Edit("edited", mine.number, mine.label, None, why_not)
    overlap = dice(before, after[number])
    same = before.keys() == after[number].keys() and all(np.array_equal(before[k], after[number][k]) for k in before)
    return Edit("kept" if same else "edited", mine.number, mine.label, overlap)


def dice(one: Mapping[tuple[str, int], np.ndarray], other: Mapping[tuple[str, int], np.ndarray]) -> float:
    """0..1 of two masks, plane by plane; 1 of two that are empty."""
    both = sum(int((one[key] & other[key]).sum()) for key in one.keys() & other.keys())
    every = sum(int(mask.sum()) for mask in (*one.values(), *other.values()))
    return 2 * both / every if every else 1.0


def _described(segmentation: Dataset) -> dict[int, tuple[str, str]]:
    """number -> (label, Tracking UID), whatever else the editor left out; without the background of a label map."""
    return {
        number: (attributes.text(item, "SegmentLabel"), attributes.text(item, "TrackingUID"))
        for item in attributes.items(segmentation, "SegmentSequence")
        if (number := attributes.whole(item, "SegmentNumber")) > 0
    }


def _paired(
    mine: Sequence[read.Segment], yours: Mapping[int, tuple[str, str]], before: Masks, after: Masks
) -> dict[int, int]:
    """Our number -> theirs."""
    pairs = {
        each.number: number
        for each in mine
        for number, (_, tracking) in yours.items()
        if each.tracking_uid and tracking == each.tracking_uid
    }
    ours_tracked = {each.tracking_uid for each in mine}
    free = {n for n, (_, tracking) in yours.items() if tracking not in ours_tracked} - set(pairs.values())
    for each in (one for one in mine if one.number not in pairs):
        shared = {n: dice(before.get(each.number, {}), after[n]) for n in free if n in after}
        best = max(shared, key=lambda n: shared[n], default=None)
        if best is None or not shared[best]:
            best = next((n for n in sorted(free) if yours[n][0] == each.label), None)
        if best is not None:
            pairs[each.number] = best
            free.discard(best)
    return pairs


def _masks(segmentation: Dataset, of: Dataset | None = None) -> Masks:
    """of: ours, whose frames it may name as its source, and whose positions tell which image a frame lies on."""
    known = _planes_by_position(of) if of is not None else {}
    own = {} if of is None else {str(of.SOPInstanceUID): of}
    found: Masks = {}
    for frame, mask, numbers in _frames(segmentation):
        plane = _plane(segmentation, frame, known, own)
        for number in numbers:
            part = mask == number if segmentation.get("SegmentationType") == "LABELMAP" else mask
            if part.any():
                planes = found.setdefault(number, {})
                planes[plane] = planes[plane] | part if plane in planes else np.asarray(part, bool)
    return found


def _frames(segmentation: Dataset) -> Iterator[tuple[int, np.ndarray, Iterable[int]]]:
    """(frame from 0, its pixels, the segments they are of): bool, or of a label map the numbers."""
    kind = segmentation.get("SegmentationType")
    rows, columns = int(segmentation.Rows), int(segmentation.Columns)
    packed = int(segmentation.BitsAllocated) == 1 and not segmentation.file_meta.TransferSyntaxUID.is_encapsulated
    pixels = None if packed else np.asarray(segmentation.pixel_array).reshape(-1, rows, columns)
    for frame in range(int(segmentation.NumberOfFrames)):
        mask = read.frame_mask(segmentation, frame) if pixels is None else pixels[frame]
        if kind == "LABELMAP":
            yield frame, mask, [int(number) for number in np.unique(mask) if number > 0]
            continue
        if kind == "FRACTIONAL":  # a pixel is of it where more than half of it is: PS3.3 C.8.20.2.3
            mask = mask > int(segmentation.MaximumFractionalValue) / 2
        group = read.functional_group(segmentation, frame, "SegmentIdentificationSequence")
        yield frame, mask.astype(bool), [attributes.whole(group, "ReferencedSegmentNumber")]


def _plane(
    segmentation: Dataset,
    frame: int,
    known: Mapping[tuple[float, ...], tuple[str, int]],
    own: Mapping[str, Dataset],
) -> tuple[str, int]:
    """(SOP Instance UID, frame or 0) of the source image that a frame lies on; of one that names none its position."""
    derivation = read.functional_group(segmentation, frame, "DerivationImageSequence")
    for source in attributes.items(derivation, "SourceImageSequence"):
        uid = attributes.text(source, "ReferencedSOPInstanceUID")
        number = attributes.whole_or(source, "ReferencedFrameNumber", 0)
        if uid in own and number:
            return _plane(own[uid], number - 1, {}, {})
        if uid and uid not in own:
            return uid, number
    at = _position(segmentation, frame)
    return known.get(at, (f"at {at}", 0))


def _planes_by_position(segmentation: Dataset) -> dict[tuple[float, ...], tuple[str, int]]:
    frames = range(int(segmentation.NumberOfFrames))
    return {_position(segmentation, frame): _plane(segmentation, frame, {}, {}) for frame in frames}


def _position(segmentation: Dataset, frame: int) -> tuple[float, ...]:
    group = read.functional_group(segmentation, frame, "PlanePositionSequence")
    position = group.get("ImagePositionPatient")
    return tuple(round(float(mm), 2) for mm in position) if position else (float(frame),)


def _another_grid(ours: Dataset, theirs: Dataset) -> str | None:
    """Why two Segmentations cannot be laid upon each other pixel by pixel."""
    if (int(ours.Rows), int(ours.Columns)) != (int(theirs.Rows), int(theirs.Columns)):
        return f"drawn on {theirs.Rows} x {theirs.Columns} pixels, the result on {ours.Rows} x {ours.Columns}"
    for keyword, macro in GRID:
        one, other = (read.functional_group(each, 0, macro).get(keyword) for each in (ours, theirs))
        if one and other and not np.allclose(np.array(one, float), np.array(other, float), atol=SAME):
            return f"its {keyword} is another than the result's"
    return None
