"""Is a series fit for inference? Judged by positions and directions alone; InstanceNumber and file order say nothing.

An image that does not belong is set aside with a reason; when what is left would mislead a model, the series is
refused with a reason. Nothing here reads pixels: headers are enough, and come without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from pydicom import Dataset

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.frames import count as frame_count
from dicom_sr.image_type import why_no_picture
from dicom_sr.modalities import CALLED, IMAGE_CLASSES, VOLUME_CLASSES
from dicom_sr.regions import calibration_problems, largest_spacing, measured_at_detector, regions, why_no_tissue
from dicom_sr.slices import (
    MOST_VOXELS,
    OBLIQUE_DEGREES,
    SAME_PLACE_MM,
    UNEVEN,
    UNEVEN_MM,
    NotASlice,
    Slice,
    class_name,
    difference,
    slices_of,
    why_no_image,
)
from dicom_sr.source import identity_differs
from models.pipeline import Card, Requirements
from pacs_node.assemble.acquisitions import TELLS_APART, Mixed, acquisition_of, one_acquisition
from pacs_node.records import Verdict

CROOKED_MM = 1.0  # how far a slice may leave the straight line of the others
LEAST_RIVAL = 2  # slices that make another volume: one alone is a stray image
MOST_VOLUMES = 100  # that slices of one series may form: each slice is held against each
GAP = 1.5  # a step of this many spacings or more means that a position is missing
FEW_DOUBLES = 0.1  # of the positions; with more, the series holds several phases or reconstructions


def judge(
    headers: Sequence[Dataset],
    cards: Sequence[Card],
    *,
    min_slices: int | None = None,
    faults: Mapping[str, str] = MappingProxyType({}),
) -> Verdict:
    """The verdict on the instances of one series. The order of the headers does not matter.

    cards        of the pipelines that ask for series; the first that takes the modality says what is required
    min_slices   in place of what its card requires of a volume
    faults       SOP Instance UID -> why the pixels of that image cannot be used; it is set aside for that
    """
    modality = _modality(headers)
    card = card_for(headers, cards)
    if card is None and not modality and faults:
        return Verdict(False, f"no usable images{_aside(dict(faults))}", (), dict(faults))
    if card is None:
        taken = " and ".join(sorted({each for card in cards for each in card.modality}))
        only = f"{cards[0].name} takes {taken} only" if len(cards) == 1 else f"only {taken} can be judged"
        what = f"Modality is {modality or 'not given'}; {only}"
        return Verdict(False, what if headers else "no images")
    # an image that cannot be read, or is of another modality, is set aside whoever's it is
    if differs := identity_differs([h for h in headers if attributes.text(h, "Modality") == modality]):
        return Verdict(False, differs)
    kept_from = {uid_of(h): why for h in headers if (why := outside(h, card, modality))} | dict(faults)
    if not card.requires.volume:
        return _judge_images(headers, modality, card.requires, kept_from)
    if modality not in VOLUME_CLASSES:
        return Verdict(False, f"Modality is {modality}; {card.name} needs a volume, and its images form none")
    requires = card.requires if min_slices is None else replace(card.requires, min_slices=min_slices)
    return _judge_volume(headers, modality, requires, kept_from)


def card_for(headers: Sequence[Dataset], cards: Sequence[Card]) -> Card | None:
    """By which of the cards a series is judged: the first that takes its modality."""
    modality = _modality(headers)
    return next((card for card in cards if modality in card.modality & IMAGE_CLASSES.keys()), None)


def _modality(headers: Sequence[Dataset]) -> str:
    """That of most images that say one; of equally many the first in the alphabet."""
    modalities = Counter(said for header in headers if (said := attributes.text(header, "Modality")))
    return min((-count, name) for name, count in modalities.items())[1] if modalities else ""


def outside(header: Dataset, card: Card, modality: str) -> str | None:
    """None, or what the card of a pipeline keeps this image from it for. An image that does not say it is let in."""
    if attributes.text(header, "Modality") != modality:
        return None  # said elsewhere
    sop_class = attributes.text(header, "SOPClassUID")
    if card.sop_classes and sop_class not in card.sop_classes:
        return f"{class_name(header)} is none that {card.name} takes (SOPClassUID)"
    part = attributes.text(header, "BodyPartExamined").upper()
    if card.body_part and part and part not in {each.upper() for each in card.body_part}:
        return f"BodyPartExamined is {part}, {card.name} takes {' or '.join(sorted(card.body_part))}"
    return None


# Images, not a volume ----------------------------------------------------------------------------------------------


def _judge_images(
    headers: Sequence[Dataset], modality: str, requires: Requirements, faults: Mapping[str, str]
) -> Verdict:
    """Every image or clip that has pixels can be used. `use` is in order of time, then of UID."""
    set_aside = {uid_of(h): why for h in headers if (why := _unfit(h, modality, faults))}
    if requires.calibrated:
        bare = {uid_of(h) for h in headers if uid_of(h) not in set_aside and largest_spacing(h) is None}
        set_aside |= dict.fromkeys(bare, "nothing says how large its pixels are, and that is needed")
    good = sorted((h for h in headers if uid_of(h) not in set_aside), key=_when)
    clips = [n for h in good if (n := frame_count(h) or 1) > 1]
    uncalibrated = sum(largest_spacing(h) is None for h in good)
    facts = {"images": len(good) - len(clips), "clips": len(clips), "frames": sum(clips), "uncalibrated": uncalibrated}
    if not good:
        return Verdict(False, f"no usable images{_aside(set_aside)}", (), set_aside, facts)
    parts = [count_words(len(good) - len(clips), "image")] if len(good) > len(clips) else []
    parts += [f"{count_words(len(clips), 'clip')} of {count_words(sum(clips), 'frame')}"] if clips else []
    sizes = f"; {uncalibrated} without calibration: sizes in pixels" if uncalibrated else ""
    problems = tuple(dict.fromkeys(problem for h in good for problem in calibration_problems(h)))
    at_detector = tuple(dict.fromkeys(why for h in good if (why := measured_at_detector(h))))
    reason = f"{' and '.join(parts)}{sizes}{_aside(set_aside)}{_said((*problems, *at_detector))}"
    use = tuple(uid_of(h) for h in good)
    return Verdict(True, reason, use, set_aside, facts, at_detector)  # of problems the pipeline tells its readers


def _unfit(header: Dataset, modality: str, faults: Mapping[str, str]) -> str | None:
    """None, or why an image is none. What has no Modality was not read, and what kept it from that is the reason."""
    of_bytes = faults.get(uid_of(header))
    return (of_bytes if "Modality" not in header else None) or _not_a_picture(header, modality) or of_bytes


def _not_a_picture(header: Dataset, modality: str) -> str | None:
    try:
        if why := why_no_image(header, modality, IMAGE_CLASSES[modality], CALLED[modality]):
            return why
        frame_count(header)
        regions(header)
        return why_no_picture(header) or (why_no_tissue(header) if modality == "US" else None)
    except BadAttribute as bad:
        return str(bad)


def uid_of(header: Dataset) -> str:
    return attributes.text(header, "SOPInstanceUID")


def _when(header: Dataset) -> tuple[str, str]:
    date_and_time = attributes.text(header, "ContentDate") + attributes.text(header, "ContentTime")
    return attributes.text(header, "AcquisitionDateTime") or date_and_time, uid_of(header)


# A volume ------------------------------------------------------------------------------------------------------


class Unfit(Exception):
    """Inference would be wrong; the message says why."""


def _judge_volume(
    headers: Sequence[Dataset], modality: str, requires: Requirements, faults: Mapping[str, str]
) -> Verdict:
    """Do these images make one volume as it is required? `use` ascends along the normal."""
    set_aside: dict[str, str] = {}
    remarks: list[str] = []
    facts: dict[str, Any] = {}
    kind = "axial " if requires.axial else ""
    try:
        _all_parts(headers)
        slices = _slices(headers, modality, requires, faults, set_aside)
        volume = _one_volume(slices, requires, set_aside)
        volume = _one_acquisition(volume, set_aside, remarks)
        stack = _one_slice_per_place(volume, set_aside)
        facts = stack.facts()
        if requires.max_tilt_deg is not None:
            _straight_on(stack, requires.max_tilt_deg)
        for check in CHECKS:
            check(stack)
        if len(stack.planes) < requires.min_slices:
            raise Unfit(f"{count_words(len(stack.planes), 'usable slice')}, at least {requires.min_slices} are needed")
    except Unfit as unfit:
        return Verdict(False, f"{unfit}{_aside(set_aside)}{_said(remarks)}", (), set_aside, facts, tuple(remarks))
    apart = f", {stack.spacing_mm:.4g} mm apart" if len(stack.planes) > 1 else ""
    reason = f"{count_words(len(stack.planes), f'{kind}slice')}{apart}{_aside(set_aside)}{_said(remarks)}"
    use = tuple(dict.fromkeys(plane.uid for plane in stack.planes))
    return Verdict(True, reason, use, set_aside, facts, tuple(remarks))


def _all_parts(headers: Sequence[Dataset]) -> None:
    """The images of a concatenation are one image in parts, PS3.3 C.7.6.16.1.3. Raises Unfit when one is missing."""
    parts: dict[str, set[int]] = {}
    wanted: dict[str, int] = {}
    for header in headers:
        if whole := attributes.text(header, "ConcatenationUID"):
            parts.setdefault(whole, set()).add(attributes.whole_or(header, "InConcatenationNumber", 0))
            wanted[whole] = max(wanted.get(whole, 0), attributes.whole_or(header, "InConcatenationTotalNumber", 0))
    for whole, here in parts.items():
        if len(here) < wanted[whole]:
            raise Unfit(f"{len(here)} of {wanted[whole]} parts of an image are here (InConcatenationTotalNumber)")


def _slices(
    headers: Sequence[Dataset],
    modality: str,
    requires: Requirements,
    faults: Mapping[str, str],
    set_aside: dict[str, str],
) -> list[Slice]:
    """Raises Unfit when no image has one."""
    slices: list[Slice] = []
    for header in headers:
        uid = uid_of(header)
        if uid in faults and "Modality" not in header:  # it was not read: what kept it from that is the reason
            set_aside[uid] = faults[uid]
            continue
        try:
            found = slices_of(header, modality, hounsfield=requires.hounsfield and modality == "CT")
        except NotASlice as why:
            set_aside[uid] = str(why)
            continue
        if uid in faults:
            set_aside[uid] = faults[uid]
        else:
            slices += found
    if not slices:
        raise Unfit("no usable images")
    voxels = sum(one.shape[0] * one.shape[1] for one in slices)
    if voxels > MOST_VOXELS:
        raise Unfit(
            f"{count_words(len(slices), 'slice')} of {slices[0].shape[0]} x {slices[0].shape[1]} pixels (Rows, Columns)"
            f" are {voxels:.2g} voxels, at most {MOST_VOXELS:.2g} can be held"
        )
    return slices


def _one_acquisition(slices: Sequence[Slice], set_aside: dict[str, str], remarks: list[str]) -> list[Slice]:
    """Raises Unfit when slices of several acquisitions alternate and it is not clear which is meant."""
    try:
        chosen = one_acquisition(slices)
    except Mixed as mixed:
        raise Unfit(str(mixed)) from mixed
    kept = {id(one) for one in chosen.slices}
    set_aside |= {one.uid: chosen.why_aside for one in slices if id(one) not in kept}
    remarks += chosen.remarks
    return list(chosen.slices)


# Which slices belong together


def _alike(planes: Sequence[Slice]) -> list[list[Slice]]:
    """The planes in groups without a difference, the largest first; the same groups for any order of the planes.

    Raises Unfit when there are more groups than anybody could have meant.
    """
    groups: list[list[Slice]] = []
    for plane in sorted(planes, key=lambda p: (p.uid, p.ref.frame or 0)):
        home = next((group for group in groups if difference(plane, group[0]) is None), None)
        if home is None:
            groups.append([plane])
            if len(groups) > MOST_VOLUMES:
                raise Unfit(f"more than {MOST_VOLUMES} volumes in one series: {difference(plane, groups[0][0])}")
        else:
            home.append(plane)
    return sorted(groups, key=lambda group: -len(group))  # sorted is stable: ties stay in order of UID


def _one_volume(planes: Sequence[Slice], requires: Requirements, set_aside: dict[str, str]) -> list[Slice]:
    """The largest group of slices, of axial ones where they are required; the rest is set aside. Raises Unfit when it
    is not clear which is meant."""
    volumes = _alike(planes)
    fit = [v for v in volumes if not requires.axial or v[0].degrees_from_axial <= OBLIQUE_DEGREES]
    volume = (fit or volumes)[0]
    for other in volumes:
        if other is not volume:
            set_aside |= {plane.uid: difference(plane, volume[0]) or "another volume" for plane in other}
    if not fit:
        raise Unfit(f"{volume[0].orientation} slices; axial ones are needed")
    if torn := {plane.uid for plane in volume} & set_aside.keys():
        raise Unfit(f"the frames of one image do not belong together: {set_aside[min(torn)]}")
    rivals = [other for other in fit[1:] if len(other) >= max(requires.min_slices, LEAST_RIVAL)]
    if rivals:
        why = difference(rivals[0][0], volume[0])
        raise Unfit(f"{1 + len(rivals)} volumes in one series: {len(rivals[0])} of {len(planes)} slices have {why}")
    return volume


# How they lie


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices in ascending order along their common normal."""

    planes: tuple[Slice, ...]

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


def _one_slice_per_place(planes: Sequence[Slice], set_aside: dict[str, str]) -> Stack:
    """Keep one slice at each place: of the larger acquisition, of equal ones the first, then of the smaller UID: the
    same for any order, and one and the same acquisition at every place.

    A few are images sent twice under new names and are set aside; many are several phases, and a mixture of those
    fits no model: raises Unfit.
    """
    normal = planes[0].normal
    along = np.array([plane.position @ normal for plane in planes])
    if len(planes) > 1 and np.ptp(along) <= SAME_PLACE_MM:
        raise Unfit(f"all {len(planes)} images state the same position (ImagePositionPatient)")
    acquisition = {id(plane): acquisition_of(plane) for plane in planes}
    sizes = Counter(acquisition.values())
    kept: list[Slice] = []
    doubles: list[Slice] = []
    rank = {id(p): (-sizes[acquisition[id(p)]], acquisition[id(p)], p.uid, p.ref.frame or 0) for p in planes}
    for plane in sorted(planes, key=lambda p: (p.position @ normal, *rank[id(p)])):
        if not kept or (plane.position - kept[-1].position) @ normal > SAME_PLACE_MM:
            kept.append(plane)
        elif rank[id(plane)] < rank[id(kept[-1])]:
            doubles.append(kept[-1])
            kept[-1] = plane
        else:
            doubles.append(plane)
    if len(doubles) > FEW_DOUBLES * len(kept) or any(plane.ref.frame for plane in doubles):
        many = f"{count_words(len(doubles), 'slice')} more than the {count_words(len(kept), 'position')}"
        raise Unfit(f"{many}: several phases or reconstructions in one series{_unlike(planes)}")
    set_aside |= {plane.uid: "another image has the same position" for plane in doubles}
    return Stack(tuple(kept))


def _unlike(planes: Sequence[Slice]) -> str:
    """ " (ConvolutionKernel: B30f, B80f)": what tells the slices apart, as far as the header says it; or nothing."""
    said = {keyword: sorted({plane.frame.text(keyword) for plane in planes} - {""}) for keyword in TELLS_APART}
    words = [f"{keyword}: {', '.join(values[:3])}" for keyword, values in said.items() if len(values) > 1]
    return f" ({'; '.join(words)})" if words else ""


# Each raises Unfit


def _straight_on(stack: Stack, most_degrees: float) -> None:
    if stack.tilt_degrees > most_degrees:
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
        raise Unfit(f"{count_words(sum(missing.values()), 'slice')} missing between {', '.join(places[:3])}{more}")


def _even(stack: Stack) -> None:
    steps = stack.steps_mm
    if len(steps) and np.abs(steps - stack.spacing_mm).max() > max(UNEVEN * stack.spacing_mm, UNEVEN_MM):
        raise Unfit(f"irregular spacing: slices are {steps.min():.4g} to {steps.max():.4g} mm apart")


CHECKS: tuple[Callable[[Stack], None], ...] = (_in_line, _without_gaps, _even)


# Words


def count_words(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _said(remarks: Sequence[str]) -> str:
    return "".join(f"; {remark}" for remark in remarks)


def _aside(set_aside: dict[str, str]) -> str:
    """ "; 3 set aside: localizer (2), is in colour (1)", or nothing."""
    if not set_aside:
        return ""
    reasons = sorted(Counter(set_aside.values()).items(), key=lambda item: (-item[1], item[0]))
    words = ", ".join(f"{reason} ({count})" for reason, count in reasons[:3]) if len(reasons) > 1 else reasons[0][0]
    return f"; {len(set_aside)} set aside: {words}{', ...' if len(reasons) > 3 else ''}"
