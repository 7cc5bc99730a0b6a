"""Findings of every kind that `dicom_sr` writes, with the images they are of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from functools import cache
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes, encode
from dicom_sr.changes import Comparison, Lesion, Match, Size, with_comparison
from dicom_sr.findings import (
    NOTHING,
    Algorithm,
    Axis,
    ComparedWith,
    Evaluation,
    Finding,
    Findings,
    ImageRef,
    Measurement,
)
from dicom_sr.rounding import as_said
from tests.factories import ct_series, enhanced_ct, header, us_image

WHEN = datetime(2026, 3, 1, 12, 30, 5)


@dataclass(frozen=True, eq=False)
class Case:
    """Findings and the headers of their images; `images` still have pixels."""

    findings: Findings
    images: list[Dataset]

    @property
    def headers(self) -> list[Dataset]:
        return [header(image) for image in self.images]


def refs(images: Sequence[Dataset]) -> tuple[ImageRef, ...]:
    """One reference for each image, one for each frame of a clip."""
    return tuple(
        ImageRef(str(image.SOPClassUID), str(image.SOPInstanceUID), frame)
        for image in images
        for frame in (range(1, int(image.NumberOfFrames) + 1) if "NumberOfFrames" in image else [None])
    )


def ball(depth: int = 3, height: int = 6, width: int = 5) -> np.ndarray:
    """An ellipsoid that fills its box; bool (depth, height, width)."""
    axes = [(np.arange(n) + 0.5) / n * 2 - 1 for n in (depth, height, width)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2 <= 1.05


def nodule(number: int, offset_zyx: tuple[int, int, int], mask: np.ndarray | None = None, **changes: Any) -> Finding:
    mask = ball() if mask is None else mask
    key = offset_zyx[0] + int(mask.sum(axis=(1, 2)).argmax())
    _, y, x = offset_zyx
    _, height, width = mask.shape
    return replace(
        Finding(
            number=number,
            label=f"Nodule {number}",
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            type=codes.NODULE,
            site=codes.LUNG,
            laterality=codes.RIGHT,
            mask=mask,
            offset_zyx=offset_zyx,
            key_image=key,
            certainty=0.8734,
            long_axis=Axis(key, (x + width / 2, float(y)), (x + width / 2, float(y + height))),
            short_axis=Axis(key, (float(x), y + height / 2), (float(x + width), y + height / 2)),
            measurements=(
                Measurement(codes.LONG_AXIS, 4.5, codes.MM),
                Measurement(codes.SHORT_AXIS, 3.8, codes.MM),
                Measurement(codes.MEAN_DIAMETER, 4.1, codes.MM, codes.MEAN),
                Measurement(codes.VOXEL_VOLUME, 103.0, codes.MM3),
                Measurement(codes.MEAN_HU, -33.333333333333336, codes.HU),
                Measurement(codes.SD_HU, 11.5, codes.HU),
            ),
        ),
        **changes,
    )


def mass(number: int, offset_zyx: tuple[int, int, int], mask: np.ndarray | None = None, **changes: Any) -> Finding:
    return nodule(
        number,
        offset_zyx,
        ball(1, 10, 14) if mask is None else mask,
        label=f"Mass {number}",
        type=codes.MASS,
        site=codes.BREAST,
        laterality=codes.LEFT,
        measurements=(
            Measurement(codes.LONG_AXIS, 3.5, codes.MM),
            Measurement(codes.SHORT_AXIS, 2.5, codes.MM),
            Measurement(codes.AREA, 6.87, codes.MM2),
        ),
        evaluations=(Evaluation(codes.US_ORIENTATION, codes.PARALLEL),),
        **changes,
    )


def volumes(images: Sequence[Dataset], found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings with the volume that they have on these images."""
    row, column = np.reshape(np.array(images[0].ImageOrientationPatient, float), (2, 3))
    step = np.subtract(images[1].ImagePositionPatient, images[0].ImagePositionPatient)
    apart = abs(float(np.dot(np.cross(row, column), step)))  # along the normal: a tilted stack is a sheared box
    voxel_mm3 = float(np.prod([float(v) for v in images[0].PixelSpacing])) * apart
    return tuple(
        replace(
            finding,
            measurements=tuple(
                replace(m, value=float(round(finding.mask.sum() * voxel_mm3))) if m.name == codes.VOXEL_VOLUME else m
                for m in finding.measurements
            ),
        )
        for finding in found
    )


def ct_findings(images: Sequence[Dataset], *found: Finding, **changes: Any) -> Findings:
    return replace(
        Findings(
            pipeline="lung-nodule",
            geometry="volume",
            images=refs(images),
            findings=volumes(images, found) if len(images) > 1 else found,
            algorithm=Algorithm("pacs-node lung-nodule", "0.1.0+1a2b3c4d"),
            sought=codes.NODULE,
            sought_site=codes.LUNG,
        ),
        **changes,
    )


def us_findings(images: Sequence[Dataset], *found: Finding, **changes: Any) -> Findings:
    return replace(
        Findings(
            pipeline="breast-us",
            geometry="image",
            images=refs(images),
            findings=found,
            algorithm=Algorithm("pacs-node breast-us", "0.1.0+5e6f7a8b"),
            measurements=(Measurement(codes.PROBABILITY_OF_CANCER, 12.5, codes.PERCENT),),
            sought=codes.LESION,
            sought_site=codes.BREAST,
        ),
        **changes,
    )


def ct_two() -> Case:
    images = ct_series()
    first = nodule(1, (2, 5, 8))
    typed = replace(
        first,
        measurements=(
            *first.measurements,
            Measurement(codes.MAX_3D_DIAMETER, 5.5, codes.MM),
            Measurement(codes.MESH_VOLUME, 98.0, codes.MM3),
            Measurement(codes.MIN_HU, -780.0, codes.HU),
            Measurement(codes.MAX_HU, 95.0, codes.HU),
            Measurement(codes.SOLID_DIAMETER, 3.1, codes.MM, codes.MEAN),
            Measurement(codes.PLEURA_DISTANCE, 12.0, codes.MM),
        ),
        evaluations=(
            Evaluation(codes.NODULE_TYPE, codes.PART_SOLID),
            Evaluation(codes.NODULE_TYPE_RULE, Code("RULE", "99PACSNODE", "a rule in words")),
        ),
    )
    found = typed, nodule(2, (7, 20, 25), laterality=None)
    return Case(ct_findings(images, *found, warnings=("slices are thick",)), images)


def ct_rated() -> Case:
    """Nodules with how suspicious each is, and the sentence that says by whom."""
    images = ct_series()
    found = [
        replace(one, measurements=(*one.measurements, Measurement(codes.PROBABILITY_OF_CANCER, chance, codes.PERCENT)))
        for one, chance in ((nodule(1, (2, 5, 8)), 83.4), (nodule(2, (7, 20, 25)), 4.1))
    ]
    return Case(ct_findings(images, *found, warnings=("suspicion as radiologists rate it, not histology",)), images)


def ct_lymph_nodes() -> Case:
    """An anatomical structure, not an abnormality: nobody says that a lymph node is one."""
    images = ct_series()
    changes = {"category": codes.ANATOMICAL_STRUCTURE, "type": codes.LYMPH_NODE, "laterality": None}
    found = (
        nodule(1, (2, 5, 8), label="Lymph node 1", site=codes.MEDIASTINUM, **changes),
        nodule(2, (7, 20, 25), label="Lymph node 2", site=codes.ABDOMEN, **changes),
    )
    said = {"pipeline": "lymph-node", "algorithm": Algorithm("pacs-node lymph-node", "0.1.0+1a2b3c4d")}
    sought = {"sought": codes.LYMPH_NODE, "sought_site": codes.MEDIASTINUM}
    return Case(ct_findings(images, *found, warnings=("experimental",), **said, **sought), images)


def ct_compared() -> Case:
    """One of two nodules was smaller in an earlier study and one is new; a third is gone."""
    case = ct_two()
    uids = "1.2.3", "1.2.3.4", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.3.4.5"
    earlier = ComparedWith(*uids, date(2025, 9, 1), days=181, residual_mm=1.2)
    was, gone = Lesion("Nodule 3", "1.2.3.6", Size(2.0, 40.0)), Lesion("Nodule 1", "1.2.3.7", Size(5.5, 90.0))
    comparison = Comparison(earlier, True, (Match(1, was, 2.5, 1),), (2,), (), (gone,), ("by another version",))
    return replace(case, findings=with_comparison(case.findings, comparison))


def ct_overlapping() -> Case:
    images = ct_series(name="overlapping")
    return Case(ct_findings(images, nodule(1, (2, 5, 8)), nodule(2, (3, 7, 10))), images)


def ct_many() -> Case:
    images = ct_series(name="many nodules", shape=(16, 48, 64))
    found = [nodule(n, (n % 13, 6 * (n % 7), 8 * (n % 6))) for n in range(1, 31)]
    return Case(ct_findings(images, *found), images)


def ct_nothing() -> Case:
    images = ct_series(name="nothing")
    return Case(ct_findings(images), images)


def ct_oblique() -> Case:
    images = ct_series(name="oblique", orientation="oblique", descending=True, shuffled_instance_numbers=True)
    return Case(ct_findings(images, nodule(1, (4, 10, 12))), images)


def ct_enhanced(*, legacy: bool = False) -> Case:
    """Two nodules on the frames of one image; what describes a frame is in its own functional groups."""
    slices = ct_series(name="enhanced")
    image = enhanced_ct(slices, legacy=legacy, shared=legacy)
    findings = ct_findings(slices, nodule(1, (2, 5, 8)), nodule(2, (7, 20, 25)))
    return Case(replace(findings, images=refs([image])), [image])


def ct_legacy() -> Case:
    """The same as a legacy converted image; what all frames have in common is in the shared functional groups."""
    return ct_enhanced(legacy=True)


def us_one() -> Case:
    image = us_image()
    return Case(us_findings([image], mass(1, (0, 12, 20))), [image])


def us_normal() -> Case:
    image = us_image(name="normal")
    normal = (Evaluation(codes.FINDING, codes.ULTRASOUND_NORMAL),)
    return Case(us_findings([image], evaluations=normal), [image])


def us_several() -> Case:
    """Three images of one size and two of another, in one series."""
    images = [us_image(name="several", number=n, shape=(48, 64) if n < 4 else (40, 80)) for n in range(1, 6)]
    return Case(us_findings(images, mass(1, (0, 12, 20)), mass(2, (2, 8, 9)), mass(3, (4, 20, 50))), images)


def us_clip() -> Case:
    """A lesion on three frames of a clip and one on a single frame."""
    clip = us_image(name="clip", frames=6, colour=True)
    return Case(us_findings([clip], mass(1, (1, 12, 20), ball(3, 10, 14)), mass(2, (5, 3, 4))), [clip])


def us_uncalibrated() -> Case:
    image = us_image(name="uncalibrated", spacing_mm=None)
    in_pixels = (Measurement(codes.LONG_AXIS, 14.0, codes.PIXELS),)
    found = replace(mass(1, (0, 12, 20)), measurements=in_pixels)
    return Case(us_findings([image], found, warnings=("no calibration: sizes in pixels",)), [image])


def us_followed() -> Case:
    """A lesion followed over a clip: out of sight on one frame, moving, measured on the last but one."""
    clip = us_image(name="followed", frames=7)
    mask = np.zeros((5, 14, 24), bool)
    for k, (y, x, size) in enumerate([(0, 0, 5), (1, 3, 7), (0, 0, 0), (2, 9, 11), (4, 12, 9)]):
        mask[k, y : y + size, x : x + size] = True
    return Case(us_findings([clip], mass(1, (1, 12, 20), mask)), [clip])


def us_dual() -> Case:
    """A clip of two pictures side by side, each calibrated in its own way, a lesion in each; the same frames."""
    clip = us_image(name="dual", frames=4)
    left, right = (copy.deepcopy(clip.SequenceOfUltrasoundRegions[0]) for _ in range(2))
    left.RegionLocationMaxX1, right.RegionLocationMinX0 = 30, 33
    right.PhysicalDeltaX, right.PhysicalDeltaY = 0.011, 0.017
    clip.SequenceOfUltrasoundRegions = [left, right]
    found = mass(1, (0, 12, 5), ball(3, 10, 14)), mass(2, (1, 20, 40), ball(3, 10, 14))
    return Case(us_findings([clip], *found), [clip])


def box(number: int, corner_zyx: tuple[int, int, int], **changes: Any) -> Finding:
    """As `nodule`, marked by a box of 8 x 6 pixels on one image, and not measured."""
    plain = replace(nodule(number, corner_zyx), long_axis=None, short_axis=None, measurements=())
    mask = np.ones((1, 6, 8), bool)
    return replace(plain, mask=mask, key_image=corner_zyx[0], extent="box", **changes)


def seen(number: int, image: int, **changes: Any) -> Finding:
    """A finding that is on an image, nobody says where."""
    return replace(box(number, (image, 0, 0)), mask=NOTHING, extent="none", **changes)


def ct_boxes() -> Case:
    """A detector: boxes only."""
    images = ct_series()
    return Case(ct_findings(images, box(1, (2, 5, 8)), box(2, (7, 20, 22))), images)


def ct_of_every_extent() -> Case:
    images = ct_series()
    typed = (Evaluation(codes.NODULE_TYPE, codes.SOLID),)
    found = nodule(1, (2, 5, 8)), box(2, (7, 20, 22)), seen(3, 5, evaluations=typed)
    return Case(ct_findings(images, *found), images)


def us_boxes() -> Case:
    clip = us_image(frames=4)
    found = box(1, (1, 12, 15), label="Mass 1", type=codes.MASS, site=codes.BREAST, laterality=None)
    return Case(us_findings([clip], found, seen(2, 2, label="Mass 2", type=codes.MASS, site=codes.BREAST)), [clip])


def us_classified() -> Case:
    """A classifier: nothing was sought, the image as a whole has a probability."""
    image = us_image()
    return Case(us_findings([image], sought=None), [image])


def us_evaluated() -> Case:
    """A classifier that says a class and no number."""
    image = us_image()
    said = (Evaluation(codes.US_ORIENTATION, codes.PARALLEL),)
    return Case(us_findings([image], sought=None, measurements=(), evaluations=said), [image])


CASES = {
    case.__name__: case
    for case in (
        ct_two,
        ct_rated,
        ct_lymph_nodes,
        ct_compared,
        ct_overlapping,
        ct_many,
        ct_nothing,
        ct_oblique,
        ct_enhanced,
        ct_legacy,
        us_one,
        us_normal,
        us_several,
        us_clip,
        us_followed,
        us_dual,
        us_uncalibrated,
        ct_boxes,
        ct_of_every_extent,
        us_boxes,
        us_classified,
        us_evaluated,
    )
}


@cache
def encoded(name: str) -> tuple[Case, tuple[Dataset, ...]]:
    """A case and the objects made of it. Shared by tests: not to be changed."""
    case = CASES[name]()
    return case, tuple(encode(case.findings, case.headers, when=WHEN))


def assert_same(read: Findings, meant: Findings) -> None:
    """Everything the objects carry is equal: masks voxel by voxel, numbers as they are said, calipers to float32."""
    left_out = {"findings", "facts", "measurements"} | (
        {"sought", "sought_site"} if meant.findings else {"not_calibrated"}  # there is no number to say it of
    )
    for field in fields(Findings):
        if field.name not in left_out:
            assert getattr(read, field.name) == getattr(meant, field.name), field.name
    assert read.measurements == tuple(map(as_said, meant.measurements))
    assert len(read.findings) == len(meant.findings)
    for mine, theirs in zip(read.findings, meant.findings, strict=True):
        assert voxels(mine) == voxels(theirs)
        assert mine.measurements == tuple(map(as_said, theirs.measurements))
        for field in fields(Finding):
            if field.name in ("long_axis", "short_axis"):
                name = codes.LONG_AXIS if field.name == "long_axis" else codes.SHORT_AXIS
                measured = any((m.name, m.derivation) == (name, None) for m in theirs.measurements)
                # an axis is drawn below its number
                _assert_same_axis(getattr(mine, field.name), getattr(theirs, field.name) if measured else None)
            elif field.name == "certainty":
                assert abs(mine.certainty - theirs.certainty) <= 0.00501  # shown in whole per cent
            elif field.name not in ("mask", "offset_zyx", "measurements"):
                assert getattr(mine, field.name) == getattr(theirs, field.name), field.name


def voxels(finding: Finding) -> set[tuple[int, ...]]:
    return {tuple(index) for index in (np.argwhere(finding.mask) + finding.offset_zyx).tolist()}


def _assert_same_axis(mine: Axis | None, theirs: Axis | None) -> None:
    if mine is None or theirs is None:
        assert mine is theirs
        return
    assert mine.image == theirs.image
    np.testing.assert_allclose([mine.start_xy, mine.end_xy], [theirs.start_xy, theirs.end_xy], rtol=1e-6)
