"""lung-nodule's findings against the report of an earlier study: registration of the lungs, pairing by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from dicom_sr import read
from dicom_sr.changes import THIN_MM, Comparison, Lesion, Match, size_of
from dicom_sr.findings import ComparedWith, Finding, Findings
from models.lung_nodule.lungs import find_lungs
from models.lung_nodule.register import Rigid, chest, register
from models.pairing import pairing
from models.pipeline import Prior, UnfitInput
from models.read import Volume, header_of, read_ct

# Two lesions may be the same one if they lie this near after registration: what rigid registration leaves (a breath
# moves the lung bases by centimetres), and half their diameter, by which the middle of a growing lesion can move.
GATE_MM = 6.0
GATE_RESIDUALS = 2.0
MOST = 20  # lesions in either study: above it, positions alone do not tell which is which


def compare(findings: Findings, files: Sequence[Path], prior: Prior) -> Comparison:
    """What became of the nodules. Deterministic. Raises UnfitInput with the reason when the studies cannot be compared.

    files   the images of `findings`, in any order
    """
    report = header_of(prior.report)
    lesions = lesions_of(report)
    if max(len(findings.findings), len(lesions)) > MOST:
        raise UnfitInput(
            f"{max(len(findings.findings), len(lesions))} candidates in one study; with more than {MOST} their"
            " positions do not tell which is which"
        )
    volume = read_ct(files)
    here = chest(volume, find_lungs(volume))
    spacing_mm, grid = volume.spacing_mm, Grid.of(volume)
    present = {finding.number: middle_of(finding, volume) for finding in findings.findings}
    del volume  # two whole CT at a time would take twice the memory
    former = read_ct(prior.images)
    centres = centres_of([dcmread(path) for path in prior.segmentations], former)
    rigid = register(here, chest(former, find_lungs(former)))

    missing = [lesion.label for lesion in lesions if lesion.tracking_uid not in centres]
    if missing:
        raise UnfitInput(f"the earlier Segmentation does not hold {', '.join(missing)} of its report")
    warnings = []
    if report.get("DeviceSerialNumber") != findings.algorithm.version:
        warnings.append(
            f"the earlier study was read by version {report.get('DeviceSerialNumber')}, this one by"
            f" {findings.algorithm.version}: some of the change may be the software's"
        )
    if max(spacing_mm[0], former.spacing_mm[0]) > THIN_MM:
        warnings.append(
            f"slices {former.spacing_mm[0]:.1f} and {spacing_mm[0]:.1f} mm apart in the studies compared: changes of"
            " size are coarse"
        )
    compared_with = ComparedWith(
        study_uid=str(report.StudyInstanceUID),
        series_uid=str(report.SeriesInstanceUID),
        sop_class_uid=str(report.SOPClassUID),
        sop_instance_uid=str(report.SOPInstanceUID),
        study_date=date.fromisoformat(str(report.StudyDate)),
        days=prior.days,
        residual_mm=round(rigid.residual_mm, 1),
    )
    comparison = Comparison(
        compared_with=compared_with,
        thin=max(spacing_mm[0], former.spacing_mm[0]) <= THIN_MM,
        matches=(),
        new=(),
        not_shown=(),
        gone=(),
        warnings=tuple(warnings),
    )
    places = {lesion.tracking_uid: rigid.to_present(centres[lesion.tracking_uid]) for lesion in lesions}
    return paired(comparison, findings.findings, present, lesions, places, rigid, grid, Grid.of(former))


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a scan looks."""

    shape: tuple[int, ...]
    to_index: np.ndarray  # 4x4, LPS mm -> (z, y, x)
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, volume: Volume) -> Grid:
        return cls(volume.hu.shape, np.linalg.inv(volume.affine), volume.spacing_mm)

    def shows(self, point_mm: np.ndarray, radius_mm: float) -> bool:
        """Is all of a ball in the field of view?"""
        index = (self.to_index @ [*point_mm, 1.0])[:3]
        margin = radius_mm / np.array(self.spacing_mm)
        return bool(((index >= margin - 0.5) & (index <= np.array(self.shape) - 0.5 - margin)).all())


def paired(
    comparison: Comparison,
    findings: Sequence[Finding],
    present: Mapping[int, np.ndarray],
    lesions: Sequence[Lesion],
    places: Mapping[str, np.ndarray],
    rigid: Rigid,
    here: Grid,
    there: Grid,
) -> Comparison:
    """The comparison with its pairs, and what is new or gone.

    present   LPS mm of each finding by its number
    places    LPS mm of each lesion by its Tracking UID, brought to the present study
    """
    measured = [(finding, size) for finding in findings if (size := size_of(finding.measurements)) is not None]
    diameters = [size.mean_mm for _, size in measured], [lesion.size.mean_mm for lesion in lesions]
    shape = len(measured), len(lesions)
    distance_mm = np.array(
        [[float(np.linalg.norm(present[f.number] - places[e.tracking_uid])) for e in lesions] for f, _ in measured]
    ).reshape(shape)
    gate_mm = GATE_MM + GATE_RESIDUALS * rigid.residual_mm + np.maximum.outer(*diameters).reshape(shape) / 2
    pairs = pairing(distance_mm, gate_mm)
    near = distance_mm < gate_mm
    matches = tuple(
        Match(
            number=measured[i][0].number,
            lesion=lesions[j],
            distance_mm=round(float(distance_mm[i, j]), 1),
            rivals=int(near[i].sum() + near[:, j].sum()) - 2,
        )
        for i, j in pairs
    )
    unpaired = [each for i, each in enumerate(measured) if i not in {i for i, _ in pairs}]
    shown = {f.number: there.shows(rigid.to_earlier(present[f.number]), size.mean_mm / 2) for f, size in unpaired}
    return replace(
        comparison,
        matches=matches,
        new=tuple(number for number, was_shown in shown.items() if was_shown),
        not_shown=tuple(number for number, was_shown in shown.items() if not was_shown),
        gone=tuple(
            lesion
            for j, lesion in enumerate(lesions)
            if j not in {j for _, j in pairs} and here.shows(places[lesion.tracking_uid], lesion.size.mean_mm / 2)
        ),
    )


def lesions_of(report: Dataset) -> list[Lesion]:
    """The nodules of one of our reports that have a mean diameter and a volume."""
    return [
        Lesion(group.tracking_id, group.tracking_uid, size)
        for group in read.groups(report)
        if group.template == "1411" and (size := size_of(group.measurements)) is not None
    ]


def centres_of(segmentations: Sequence[Dataset], volume: Volume) -> dict[str, np.ndarray]:
    """LPS mm of the middle of each segment, by its Tracking UID; only the slices that the volume has count."""
    index = {ref: z for z, ref in enumerate(volume.images)}
    centres = {}
    for segmentation in segmentations:
        for segment in read.segments(segmentation):
            voxels = [
                np.insert(np.argwhere(mask), 0, index[ref], axis=1)
                for ref, mask in segment.masks.items()
                if ref in index and mask.shape == volume.hu.shape[1:]
            ]
            if voxels:
                centres[segment.tracking_uid] = np.array(volume.position_lps_mm(np.concatenate(voxels).mean(axis=0)))
    return centres


def middle_of(finding: Finding, volume: Volume) -> np.ndarray:
    """LPS mm of the middle of a finding's mask."""
    return np.array(volume.position_lps_mm(np.argwhere(finding.mask).mean(axis=0) + finding.offset_zyx))
