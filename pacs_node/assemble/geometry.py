"""Is a series fit for inference? Judged by positions and directions alone; InstanceNumber and file order say nothing.

An image that does not belong is set aside with a reason; when what is left would mislead a model, the series is
refused with a reason. Nothing here reads pixels: headers are enough, and come without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from pacs_node.assemble.planes import (
    OBLIQUE_DEGREES,
    NotASlice,
    Plane,
    class_name,
    counted,
    difference,
    frame_count,
    planes_of,
    without_pixels,
)
from pacs_node.records import Verdict

ULTRASOUND_CLASSES = {
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    SecondaryCaptureImageStorage,
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image Storage, retired
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image Storage, retired
}
SAME_PLACE_MM = 0.01
TILT_DEGREES = 0.5  # 0.9 mm of shift over 100 mm
CROOKED_MM = 1.0  # how far a slice may leave the straight line of the others
GAP = 1.5  # a step of this many spacings or more means that a position is missing
UNEVEN = 0.1  # of the spacing; but never less than:
UNEVEN_MM = 0.11  # positions are often written with one decimal
FEW_DOUBLES = 0.1  # of the positions; with more, the series holds several phases or reconstructions


def judge(headers: Sequence[Dataset], *, min_slices: int) -> Verdict:
    """The verdict on the instances of one series, by its Modality. The order of the headers does not matter."""
    modalities = Counter(str(header.get("Modality", "")) for header in headers).most_common()
    modality = min((-count, name) for name, count in modalities)[1] if modalities else ""
    if modality == "CT":
        return judge_ct(headers, min_slices=min_slices)
    if modality == "US":
        return judge_ultrasound(headers)
    return Verdict(
        False, f"Modality is {modality or 'not given'}; only CT and US can be judged" if headers else "no images"
    )


# Ultrasound: images, not a volume ----------------------------------------------------------------------------------


def judge_ultrasound(headers: Sequence[Dataset]) -> Verdict:
    """Every image or clip that has pixels can be used. `use` is in order of time, then of UID."""
    set_aside = {str(h.SOPInstanceUID): why for h in headers if (why := _not_an_ultrasound(h))}
    good = sorted((h for h in headers if str(h.SOPInstanceUID) not in set_aside), key=_when)
    clips = [n for h in good if (n := frame_count(h)) > 1]
    uncalibrated = sum(not (h.get("SequenceOfUltrasoundRegions") or h.get("PixelSpacing")) for h in good)
    facts = {"images": len(good) - len(clips), "clips": len(clips), "frames": sum(clips), "uncalibrated": uncalibrated}
    if not good:
        return Verdict(False, f"no usable images{_aside(set_aside)}", (), set_aside, facts)
    parts = [counted(len(good) - len(clips), "image")] if len(good) > len(clips) else []
    parts += [f"{counted(len(clips), 'clip')} of {counted(sum(clips), 'frame')}"] if clips else []
    sizes = f"; {uncalibrated} without calibration: sizes in pixels" if uncalibrated else ""
    reason = f"{' and '.join(parts)}{sizes}{_aside(set_aside)}"
    return Verdict(True, reason, tuple(str(h.SOPInstanceUID) for h in good), set_aside, facts)


def _not_an_ultrasound(header: Dataset) -> str | None:
    if header.get("Modality") != "US":
        return f"Modality is {header.get('Modality') or 'not given'}, not US"
    if header.get("SOPClassUID") not in ULTRASOUND_CLASSES:
        return f"{class_name(header)} is not an ultrasound image"
    return without_pixels(header)


def _when(header: Dataset) -> tuple[str, str]:
    time = header.get("AcquisitionDateTime") or f"{header.get('ContentDate') or ''}{header.get('ContentTime') or ''}"
    return str(time), str(header.SOPInstanceUID)


# CT: a volume ------------------------------------------------------------------------------------------------------


class Unfit(Exception):
    """Inference would be wrong; the message says why."""


def judge_ct(headers: Sequence[Dataset], *, min_slices: int) -> Verdict:
    """Do these images make one axial volume of at least `min_slices` slices? `use` ascends along the normal."""
    set_aside: dict[str, str] = {}
    facts: dict[str, Any] = {}
    try:
        planes = _slices(headers, set_aside)
        volume = _one_axial_volume(planes, min_slices, set_aside)
        stack = _one_slice_per_place(volume, set_aside)
        facts = stack.facts()
        for check in CHECKS:
            check(stack)
        if len(stack.planes) < min_slices:
            raise Unfit(f"{counted(len(stack.planes), 'usable slice')}, at least {min_slices} are needed")
    except Unfit as unfit:
        return Verdict(False, f"{unfit}{_aside(set_aside)}", (), set_aside, facts)
    apart = f", {stack.spacing_mm:.4g} mm apart" if len(stack.planes) > 1 else ""
    reason = f"{counted(len(stack.planes), 'axial slice')}{apart}{_aside(set_aside)}"
    return Verdict(True, reason, tuple(dict.fromkeys(plane.uid for plane in stack.planes)), set_aside, facts)


def _slices(headers: Sequence[Dataset], set_aside: dict[str, str]) -> list[Plane]:
    planes: list[Plane] = []
    for header in headers:
        try:
            planes += planes_of(header)
        except NotASlice as why:
            set_aside[str(header.SOPInstanceUID)] = str(why)
    if not planes:
        raise Unfit("no usable images")
    return planes


# Which slices belong together


def _alike(planes: Sequence[Plane]) -> list[list[Plane]]:
    """The planes in groups without a difference, the largest first; the same groups for any order of the planes."""
    groups: list[list[Plane]] = []
    for plane in sorted(planes, key=lambda p: (p.uid, p.frame or 0)):
        home = next((group for group in groups if difference(plane, group[0]) is None), None)
        if home is None:
            groups.append([plane])
        else:
            home.append(plane)
    return sorted(groups, key=lambda group: -len(group))  # sorted is stable: ties stay in order of UID


def _one_axial_volume(planes: Sequence[Plane], min_slices: int, set_aside: dict[str, str]) -> list[Plane]:
    """The largest group of axial slices; the rest is set aside. Raises Unfit when it is not clear which is meant."""
    volumes = _alike(planes)
    axial = [volume for volume in volumes if volume[0].degrees_from_axial <= OBLIQUE_DEGREES]
    volume = (axial or volumes)[0]
    for other in volumes:
        if other is not volume:
            set_aside |= {plane.uid: difference(plane, volume[0]) or "another volume" for plane in other}
    if not axial:
        raise Unfit(f"{volume[0].orientation} slices; axial ones are needed")
    if torn := {plane.uid for plane in volume} & set_aside.keys():
        raise Unfit(f"the frames of one image do not belong together: {set_aside[min(torn)]}")
    rivals = [other for other in axial[1:] if len(other) >= min_slices]
    if rivals:
        why = difference(rivals[0][0], volume[0])
        raise Unfit(f"{1 + len(rivals)} volumes in one series: {len(rivals[0])} of {len(planes)} slices have {why}")
    return volume


# How they lie


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices in ascending order along their common normal."""

    planes: tuple[Plane, ...]

    @property
    def along_mm(self) -> np.ndarray:
        """(slices,) ascending positions along the normal."""
        return np.array([plane.position @ self.planes[0].normal for plane in self.planes])

    @property
    def steps_mm(self) -> np.ndarray:
        """(slices - 1,)"""
        return np.diff(self.along_mm)

    @property
    def spacing_mm(self) -> float:
        return float(np.median(self.steps_mm)) if len(self.planes) > 1 else 0.0

    @property
    def sideways_mm(self) -> np.ndarray:
        """(slices, 3) displacement within the plane, against the first slice."""
        normal = self.planes[0].normal
        moved = np.array([plane.position for plane in self.planes]) - self.planes[0].position
        return moved - np.outer(moved @ normal, normal)

    @property
    def tilt_degrees(self) -> float:
        """Between the normal and the line from the first slice to the last."""
        length_mm = self.along_mm[-1] - self.along_mm[0]
        return float(np.degrees(np.arctan2(np.linalg.norm(self.sideways_mm[-1]), length_mm))) if length_mm else 0.0

    @property
    def missing_after(self) -> dict[int, int]:
        """Index of a slice -> how many positions are missing between it and the next."""
        steps = self.steps_mm
        return {int(i): round(steps[i] / self.spacing_mm) - 1 for i in np.flatnonzero(steps >= GAP * self.spacing_mm)}

    def facts(self) -> dict[str, Any]:
        first = self.planes[0]
        return {
            "slices": len(self.planes),
            "rows": first.shape[0],
            "columns": first.shape[1],
            "orientation": first.orientation,
            "degrees_from_axial": round(first.degrees_from_axial, 2),
            "spacing_mm": round(self.spacing_mm, 4),
            "pixel_spacing_mm": list(first.pixel_spacing_mm),
            "tilt_degrees": round(self.tilt_degrees, 2),
            "missing_positions": sum(self.missing_after.values()),
        }


def _one_slice_per_place(planes: Sequence[Plane], set_aside: dict[str, str]) -> Stack:
    """Of several at one place the one of the larger acquisition stays, then the smaller UID: the same for any order.

    A few are images sent twice under new names and are set aside; many are several phases, and a mixture of those
    fits no model: raises Unfit.
    """
    normal = planes[0].normal
    sizes = Counter(plane.acquisition for plane in planes)
    kept: list[Plane] = []
    doubles: list[Plane] = []
    for plane in sorted(planes, key=lambda p: (p.position @ normal, p.uid, p.frame or 0)):
        if not kept or (plane.position - kept[-1].position) @ normal > SAME_PLACE_MM:
            kept.append(plane)
        elif sizes[plane.acquisition] > sizes[kept[-1].acquisition]:
            doubles.append(kept[-1])
            kept[-1] = plane
        else:
            doubles.append(plane)
    if len(doubles) > FEW_DOUBLES * len(kept) or any(plane.frame for plane in doubles):
        many = f"{counted(len(doubles), 'slice')} more than the {counted(len(kept), 'position')}"
        raise Unfit(f"{many}: several phases or reconstructions in one series")
    set_aside |= {plane.uid: "another image has the same position" for plane in doubles}
    return Stack(tuple(kept))


# Each raises Unfit


def _straight_on(stack: Stack) -> None:
    if stack.tilt_degrees > TILT_DEGREES:
        raise Unfit(f"gantry tilt of {stack.tilt_degrees:.1f} degrees: the slices are shifted against each other")


def _in_line(stack: Stack) -> None:
    along, sideways = stack.along_mm, stack.sideways_mm
    if len(along) < 3:
        return
    share = (along - along[0]) / (along[-1] - along[0])
    off_mm = np.linalg.norm(sideways - np.outer(share, sideways[-1]), axis=1).max()
    if off_mm > CROOKED_MM:
        raise Unfit(f"slices are shifted sideways by up to {off_mm:.1f} mm")


def _without_gaps(stack: Stack) -> None:
    missing = stack.missing_after
    if missing:
        places = [f"{stack.along_mm[i]:.1f} and {stack.along_mm[i + 1]:.1f} mm" for i in sorted(missing)]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        raise Unfit(f"{counted(sum(missing.values()), 'slice')} missing between {', '.join(places[:3])}{more}")


def _even(stack: Stack) -> None:
    steps = stack.steps_mm
    if len(steps) and np.abs(steps - stack.spacing_mm).max() > max(UNEVEN * stack.spacing_mm, UNEVEN_MM):
        raise Unfit(f"irregular spacing: slices are {steps.min():.4g} to {steps.max():.4g} mm apart")


CHECKS: tuple[Callable[[Stack], None], ...] = (_straight_on, _in_line, _without_gaps, _even)


# Words


def _aside(set_aside: dict[str, str]) -> str:
    """ "; 3 set aside: localizer (2), is in colour (1)", or nothing."""
    if not set_aside:
        return ""
    reasons = sorted(Counter(set_aside.values()).items(), key=lambda item: (-item[1], item[0]))
    words = ", ".join(f"{reason} ({count})" for reason, count in reasons[:3]) if len(reasons) > 1 else reasons[0][0]
    return f"; {len(set_aside)} set aside: {words}{', ...' if len(reasons) > 3 else ''}"
