"""What an ultrasound image shows where, and how many mm a pixel is there: US Region Calibration, PS3.3 C.8.5.5.

One screen may hold two pictures at different depths, a spectrum and an ECG. Every millimetre of an ultrasound result
comes from here, for the reader of pixels and the writer of objects alike. So does that of a radiograph, where what is
measured may be the shadow on the detector: PS3.3 10.7.1.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.frames import rows_and_columns
from dicom_sr.modalities import PROJECTION

MOST_REGIONS = 100  # of one image: a screen shows two pictures, a few traces and their scales
CM = 3  # Physical Units X/Y Direction, PS3.3 C.8.5.5.1.15
LOW_PRIORITY = 1  # bit 0 of Region Flags, PS3.3 C.8.5.5.1.3: 1 is low, and what it overlaps with lies on top
CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
PIXEL_MM = 0.0001, 100.0  # smallest and largest that a pixel of an ultrasound image can be
SEQUENCE = "SequenceOfUltrasoundRegions"
TWO_D, TISSUE, COLOUR_FLOW = 1, 1, 2
FORMATS = {1: "2-D", 2: "M-mode", 3: "spectrum", 4: "waveform", 5: "graphics"}  # PS3.3 C.8.5.5.1.1
DATA = {  # PS3.3 C.8.5.5.1.2
    1: "tissue",
    2: "colour flow",
    3: "PW Doppler",
    4: "CW Doppler",
    5: "Doppler mean trace",
    6: "Doppler mode trace",
    7: "Doppler maximum trace",
    8: "volume trace",
    0xA: "ECG",
    0xB: "pulse",
    0xC: "phonocardiogram",
    0xD: "grey bar",
    0xE: "colour bar",
}

Box = tuple[int, int, int, int]  # x0, y0, x1, y1: pixel indices, both ends included
Spacing = tuple[float, float]  # mm per row, mm per column


@dataclass(frozen=True)
class Region:
    """A rectangle of an image and what it shows.

    spacing_mm   (mm per row, mm per column), or None when nothing calibrates it
    upwards      PhysicalDeltaY is negative: the picture may stand on its head
    covered      parts of the box that another region lies on: they show something else
    """

    box: Box
    spacing_mm: Spacing | None
    format: int = TWO_D
    data: int = TISSUE
    low_priority: bool = False
    upwards: bool = False
    covered: tuple[Box, ...] = ()

    @property
    def is_tissue(self) -> bool:
        return (self.format, self.data) == (TWO_D, TISSUE)

    @property
    def pixels(self) -> int:
        x0, y0, x1, y1 = self.box
        return (x1 - x0 + 1) * (y1 - y0 + 1)

    def holds(self, x: int, y: int) -> bool:
        return _within((x, y, x, y), self.box) and not any(_within((x, y, x, y), box) for box in self.covered)

    def __str__(self) -> str:
        return f"{FORMATS.get(self.format, 'other')} {DATA.get(self.data, 'other')}"


def regions(header: Dataset) -> list[Region]:
    """Every region of which the header says something: place, kind, and mm per pixel where the units are cm.
    Raises BadAttribute when there are more than MOST_REGIONS.

    PhysicalDeltaX and PhysicalDeltaY may differ, and may be negative. Boxes are cut to the image; those that lie
    outside it, say neither format nor data, or cannot be read are left out.
    """
    return [region for region, _ in _told(header) if region is not None]


def calibration_problems(header: Dataset) -> list[str]:
    """What the header says of mm per pixel and nobody can use, attribute by attribute; nothing that is not needed."""
    told = list(_told(header))
    problems = [str(bad) for _, bad in told if bad is not None]
    if _spacing_keyword(header) in header and not any(region and region.spacing_mm for region, _ in told):
        try:
            _pixel_spacing(header)
        except BadAttribute as bad:
            problems.append(str(bad))
    return list(dict.fromkeys(problems))


def _told(header: Dataset) -> Iterator[tuple[Region | None, BadAttribute | None]]:
    """Each region with what is wrong with its calibration; no region where what is wrong is place or kind.

    Raises BadAttribute for more than a screen can show: each is held against all others.
    """
    items = attributes.items(header, SEQUENCE)
    if len(items) > MOST_REGIONS:
        raise BadAttribute(SEQUENCE, f"has {len(items)} items; no screen shows more than {MOST_REGIONS} regions")
    for item in items:
        try:
            corners = tuple(attributes.whole(item, keyword) for keyword in CORNERS)
            kind = _kind(item, "RegionSpatialFormat"), _kind(item, "RegionDataType")
        except BadAttribute as bad:
            yield None, bad
            continue
        box = _shared(corners, _whole(header))  # type: ignore[arg-type]
        if 0 in kind or box is None:
            continue
        low = bool(attributes.whole_or(item, "RegionFlags", 0) & LOW_PRIORITY)
        region = Region(box, None, *kind, low)
        try:
            across, down = _deltas_cm(item)
        except BadAttribute as bad:
            yield region, bad
            continue
        if across and down:
            region = replace(region, spacing_mm=(10 * abs(down), 10 * abs(across)), upwards=down < 0)
        yield region, None


def _kind(item: Dataset, keyword: str) -> int:
    """0: the header does not say. Raises BadAttribute."""
    return attributes.whole(item, keyword) if attributes.has(item, keyword) else 0


def _deltas_cm(item: Dataset) -> tuple[float, float]:
    """PhysicalDeltaX and PhysicalDeltaY; 0 where the region does not say them in cm. Raises BadAttribute."""
    for keyword in ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection"):
        if not attributes.has(item, keyword) or attributes.whole(item, keyword) != CM:
            return 0.0, 0.0
    deltas = []
    for keyword in ("PhysicalDeltaX", "PhysicalDeltaY"):
        value = attributes.number(item, keyword) if attributes.has(item, keyword) else 0.0
        if value and not PIXEL_MM[0] <= 10 * abs(value) <= PIXEL_MM[1]:
            raise BadAttribute(keyword, f"is {value:g} cm; no pixel of an ultrasound image is that size")
        deltas.append(value)
    return deltas[0], deltas[1]


def tissue_regions(header: Dataset) -> tuple[Region, ...]:
    """The regions that show tissue in two dimensions, row by row as one reads them.

    The whole image, calibrated by PixelSpacing or not at all, where the header tells of no regions. None, where it
    tells that the image shows other things only. PixelSpacing also holds for a single region without a calibration
    of its own; of several nobody knows which one it is meant for.

    A region within another of equal calibration is the same tissue told twice. Where others overlap, that of high
    priority lies on top, and of equal ones the smaller; colour flow does not count, for tissue shows between it.
    """
    told = regions(header)
    if not told:
        return (Region(_whole(header), pixel_spacing_mm(header)),)
    tissue = [region for region in told if region.is_tissue]
    if len(tissue) == 1 and tissue[0].spacing_mm is None:
        calibrated = replace(tissue[0], spacing_mm=pixel_spacing_mm(header))
        told[told.index(tissue[0])] = calibrated
    told = [region for place, region in enumerate(told) if not _told_twice(region, place, told)]
    told.sort(key=lambda region: (region.low_priority, region.pixels))  # from the top down
    found = [
        replace(region, covered=_covered(region, told[:place])) for place, region in enumerate(told) if region.is_tissue
    ]
    return tuple(sorted(found, key=lambda region: (region.box[1], region.box[0])))


def why_no_tissue(header: Dataset) -> str | None:
    """None, or in words that the header tells of no region of tissue in two dimensions."""
    if tissue_regions(header):
        return None
    shown = ", ".join(sorted({str(region) for region in regions(header)}))
    return f"no region shows 2-D tissue in grey, only {shown} (RegionSpatialFormat, RegionDataType)"


def spacing_at(header: Dataset, x: int, y: int) -> Spacing | None:
    """(mm per row, mm per column) of a pixel, by the region it lies in; None where nothing calibrates it."""
    return next((region.spacing_mm for region in tissue_regions(header) if region.holds(x, y)), None)


def largest_spacing(header: Dataset) -> Spacing | None:
    """The calibration of the largest calibrated tissue region, for what is said of the image as a whole."""
    calibrated = [region for region in tissue_regions(header) if region.spacing_mm is not None]
    return max(calibrated, key=lambda region: region.pixels).spacing_mm if calibrated else None


def _told_twice(region: Region, place: int, told: Sequence[Region]) -> bool:
    """Whether it is tissue within another region of tissue of the same calibration; of two equal ones the second is."""
    return region.is_tissue and any(
        other.is_tissue
        and other.spacing_mm == region.spacing_mm
        and _within(region.box, other.box)
        and (other.box != region.box or before < place)
        for before, other in enumerate(told)
        if before != place
    )


def _covered(region: Region, on_top: Sequence[Region]) -> tuple[Box, ...]:
    others = [other for other in on_top if (other.format, other.data) != (TWO_D, COLOUR_FLOW)]
    return tuple(shared for other in others if (shared := _shared(region.box, other.box)) is not None)


def pixel_spacing_mm(header: Dataset) -> Spacing | None:
    """(mm per row, mm per column) of the image as a whole; None when it is missing or cannot be one.

    PixelSpacing; of a radiograph without one ImagerPixelSpacing, which `measured_at_detector` has to be said of.
    """
    try:
        return _pixel_spacing(header)
    except BadAttribute:
        return None


def measured_at_detector(header: Dataset) -> str | None:
    """None, or in words that millimetres of this radiograph are those of the shadow on its detector, PS3.3 10.7.1.3:
    nothing has corrected them for the distance of what is seen from the detector."""
    if not _is_radiograph(header) or pixel_spacing_mm(header) is None:
        return None
    if attributes.text(header, "PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL"):
        return None
    if not attributes.has(header, "PixelSpacing"):
        why = "there is ImagerPixelSpacing only"
    elif attributes.texts(header, "PixelSpacing") == attributes.texts(header, "ImagerPixelSpacing"):
        why = "PixelSpacing is ImagerPixelSpacing"
    elif attributes.has(header, "ImagerPixelSpacing"):
        return None  # they differ: the maker has corrected one of them
    else:
        why = "nothing says how PixelSpacing was calibrated"
    return f"sizes are those of the shadow on the detector, larger than in the patient ({why})"


def _is_radiograph(header: Dataset) -> bool:
    return attributes.text(header, "Modality") in PROJECTION


def _spacing_keyword(header: Dataset) -> str:
    alone = _is_radiograph(header) and not attributes.has(header, "PixelSpacing")
    return "ImagerPixelSpacing" if alone else "PixelSpacing"


def _pixel_spacing(header: Dataset) -> Spacing:
    """Raises BadAttribute."""
    keyword = _spacing_keyword(header)
    down, across = attributes.numbers(header, keyword, 2)
    if not all(PIXEL_MM[0] <= each <= PIXEL_MM[1] for each in (down, across)):
        kind = "a radiograph" if _is_radiograph(header) else "an ultrasound image"
        raise BadAttribute(keyword, f"is {down:g} x {across:g} mm; no pixel of {kind} is that size")
    return down, across


def _whole(header: Dataset) -> Box:
    rows, columns = rows_and_columns(header)
    return 0, 0, columns - 1, rows - 1


def _shared(one: Box, other: Box) -> Box | None:
    x0, y0, x1, y1 = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def _within(inner: Box, outer: Box) -> bool:
    return _shared(inner, outer) == inner
