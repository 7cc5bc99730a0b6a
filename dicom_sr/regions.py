"""What an ultrasound image shows where, and how many mm a pixel is there: US Region Calibration, PS3.3 C.8.5.5.

One screen may hold two pictures at different depths, a spectrum and an ECG. Every millimetre of an ultrasound result
comes from here, for the reader of pixels and the writer of objects alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset

CM = 3  # Physical Units X/Y Direction, PS3.3 C.8.5.5.1.15
LOW_PRIORITY = 1  # bit 0 of Region Flags, PS3.3 C.8.5.5.1.3: 1 is low, and what it overlaps with lies on top
CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
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

    PhysicalDeltaX and PhysicalDeltaY may differ, and may be negative. Boxes are cut to the image; those that lie
    outside it, or say neither format nor data, are left out.
    """
    found = []
    for item in header.get("SequenceOfUltrasoundRegions") or ():
        corners = [item.get(name) for name in CORNERS]
        kind = int(item.get("RegionSpatialFormat") or 0), int(item.get("RegionDataType") or 0)
        if None in corners or 0 in kind:
            continue
        box = _shared((*map(int, corners),), _whole(header))  # type: ignore[arg-type]
        if box is None:
            continue
        units = item.get("PhysicalUnitsXDirection"), item.get("PhysicalUnitsYDirection")
        across, down = (float(item.get(name) or 0) for name in ("PhysicalDeltaX", "PhysicalDeltaY"))
        lengths = units == (CM, CM) and across != 0 and down != 0 and math.isfinite(across) and math.isfinite(down)
        low = bool(int(item.get("RegionFlags") or 0) & LOW_PRIORITY)
        found.append(Region(box, (10 * abs(down), 10 * abs(across)) if lengths else None, *kind, low, down < 0))
    return found


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
    """PixelSpacing as (mm per row, mm per column); None when it is missing or cannot be one."""
    value = header.get("PixelSpacing")
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    down, across = (float(each) for each in value)
    return (down, across) if 0 < down < math.inf and 0 < across < math.inf else None


def _whole(header: Dataset) -> Box:
    return 0, 0, int(header.Columns) - 1, int(header.Rows) - 1


def _shared(one: Box, other: Box) -> Box | None:
    x0, y0, x1, y1 = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def _within(inner: Box, outer: Box) -> bool:
    return _shared(inner, outer) == inner
