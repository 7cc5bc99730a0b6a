"""Two studies of one phantom patient: displaced, on another grid, one nodule grown, one new, one gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from scipy.spatial.transform import Rotation

from dicom_sr import codes, encode
from dicom_sr.findings import Algorithm, Finding, Findings
from models.measure import measure_nodule
from models.phantoms import Truth, chest_balls, chest_ct
from models.phantoms.chest_anatomy import Ball
from models.pipeline import Prior
from models.read import read_ct

SEED, DAYS = 3, 184
DATES = "20250701", "20260101"
GREW = 1.3  # in diameter
GROWN, NEW, GONE = 0, 5, 4  # indices of BALLS
BALLS = chest_balls(SEED, 6)
BEFORE = [ball for k, ball in enumerate(BALLS) if k != NEW]
AFTER = [
    replace(ball, half_axes_mm=GREW * ball.half_axes_mm) if k == GROWN else ball
    for k, ball in enumerate(BALLS)
    if k != GONE
]
POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_euler("xyz", [4, -3, 6], degrees=True).as_matrix()
POSE[:3, 3] = 15, -20, 30


@dataclass(frozen=True, eq=False)
class Study:
    """One CT series, what is truly in it as findings, and where that is."""

    files: tuple[Path, ...]
    findings: Findings
    centres_mm: tuple[np.ndarray, ...]

    @property
    def headers(self) -> list[Dataset]:
        return [pydicom.dcmread(file, stop_before_pixels=True) for file in self.files]

    def results(self, revision: int = 1, findings: Findings | None = None) -> list[Dataset]:
        day = datetime.strptime(str(self.headers[0].StudyDate), "%Y%m%d")
        return encode(findings or self.findings, self.headers, when=day, revision=revision)

    def as_prior(self, folder: Path, days: int = DAYS) -> Prior:
        """As `pacs_node.priors` would have fetched it."""
        folder.mkdir(exist_ok=True)
        paths: dict[str, list[Path]] = {"SEG": [], "SR": []}
        for number, result in enumerate(self.results()):
            path = folder / f"{number}.dcm"
            result.save_as(path, enforce_file_format=True)
            paths[result.Modality].append(path)
        return Prior(paths["SR"][0], tuple(paths["SEG"]), self.files, days)


def before(folder: Path) -> Study:
    spacing_mm = (2.5, 1.4, 1.4)
    return study(chest_ct(folder, seed=SEED, balls=BEFORE, size=256, spacing_mm=spacing_mm, study_date=DATES[0]))


def same(findings: Findings, finding: Finding) -> Finding:
    """The finding of that place, whatever its number has become: what grew comes first."""
    [one] = [each for each in findings.findings if np.array_equal(each.offset_zyx, finding.offset_zyx)]
    return one


def after(folder: Path, balls: Sequence[Ball] = AFTER, slices: int = 110) -> Study:
    """Feet first, on the belly, turned, moved, on another grid."""
    return study(
        chest_ct(
            folder,
            seed=SEED,
            balls=balls,
            pose=POSE,
            slices=slices,
            size=300,
            spacing_mm=(2.5, 1.25, 1.25),
            orientation="FFP",
            study_date=DATES[1],
        )
    )


def study(truth: Truth) -> Study:
    volume = read_ct(truth.files)
    findings = []
    for number, lesion in enumerate(truth.lesions, 1):
        sizes = measure_nodule(lesion.mask, lesion.offset_zyx, volume)
        findings.append(
            Finding(
                number=number,
                label=f"Nodule {number}",
                category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
                type=codes.NODULE,
                site=codes.LUNG,
                laterality=None,
                mask=lesion.mask,
                offset_zyx=lesion.offset_zyx,
                key_image=sizes.key_image,
                certainty=1.0,
                long_axis=sizes.long_axis,
                short_axis=sizes.short_axis,
                measurements=sizes.measurements,
            )
        )
    said = Findings(
        pipeline="lung-nodule",
        geometry="volume",
        images=volume.images,
        findings=tuple(findings),
        algorithm=Algorithm("pacs-node lung-nodule", "0.1.0+1a2b3c4d"),
        sought=codes.NODULE,
        sought_site=codes.LUNG,
    )
    return Study(truth.files, said, tuple(np.array(lesion.centre_lps_mm) for lesion in truth.lesions))
