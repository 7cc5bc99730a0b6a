"""LUNA16: scans as MetaImage, the readers' contours from the XML of LIDC-IDRI, nodules as annotations.csv lists them.

Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules in
computed tomography images: the LUNA16 challenge", Med. Image Anal. 42 (2017) 1-13. The MetaImages hold the pixels of
the DICOM images row by row and column by column, so the XML's coordinates hold there; its positions are in mm.
"""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from models.pipeline import UnfitInput
from models.read import Volume
from models.training.lung_nodule.data.crops import Cut, LeftOut, Whole, one_by_one
from models.training.lung_nodule.data.lidc import cut_scan, patients_by_series, read_xml, readings_by_series

log = logging.getLogger(__name__)


def read_mhd(path: Path) -> Volume:
    """A MetaImage of HU -> Volume without images and headers. Raises UnfitInput when it cannot be read."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UnfitInput(f"{path.name} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    if image.GetDimension() != 3:
        raise UnfitInput(f"{path.name} has {image.GetDimension()} dimensions, a volume has 3")
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, :3] = directions[:, ::-1]  # (x, y, z) columns -> (z, y, x)
    affine[:3, 3] = image.GetOrigin()
    x_mm, y_mm, z_mm = image.GetSpacing()
    hu = np.clip(sitk.GetArrayFromImage(image), -1024, 32767).astype(np.int16)  # -3024 and the like are padding
    return Volume(hu, (), (z_mm, y_mm, x_mm), affine, ())


def listed_nodules(path: Path) -> dict[str, list[tuple[np.ndarray, float]]]:
    """annotations.csv: series -> (centre LPS mm, diameter mm) of each nodule."""
    found: dict[str, list[tuple[np.ndarray, float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            centre = np.array([float(row[name]) for name in ("coordX", "coordY", "coordZ")])
            found[row["seriesuid"]].append((centre, float(row["diameter_mm"])))
    return found


def listed_candidates(path: Path) -> dict[str, list[tuple[np.ndarray, bool]]]:
    """candidates.csv or candidates_V2.csv: series -> (LPS mm, whether it is a nodule) of each candidate."""
    found: dict[str, list[tuple[np.ndarray, bool]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            place = np.array([float(row[name]) for name in ("coordX", "coordY", "coordZ")])
            found[row["seriesuid"]].append((place, row["class"] == "1"))
    return found


def cut_all(scans: Sequence[Path], xml: Sequence[Path], annotations: Path, size: int) -> Iterator[Cut | LeftOut]:
    """See crops.one_by_one.

    Patients: LUNA16 does not name them. The metadata.csv of a TCIA download beside annotations.csv does; without it
    each series is a patient of its own.
    """
    nodules, readings = listed_nodules(annotations), readings_by_series(xml)
    patients = patients_by_series(annotations.with_name("metadata.csv"))
    if not patients:
        log.warning("no metadata.csv beside annotations.csv: each series is taken for a patient of its own")

    def annotated() -> Iterator[Whole]:
        for scan in sorted(scans, key=lambda p: p.stem):
            if (uid := scan.stem) in nodules and uid in readings:
                patient = patients.get(uid, uid)
                yield uid, patient, partial(cut_one, scan, readings[uid], nodules[uid], patient, size)

    yield from one_by_one(annotated())


def cut_one(
    scan: Path, xml: Path, nodules: Sequence[tuple[np.ndarray, float]], patient: str, size: int, first: int
) -> Iterator[Cut]:
    """See lidc.cut_scan; `nodules` as from listed_nodules. Raises UnfitInput when one of the files cannot be read."""
    volume, drawn = read_mhd(scan), read_xml(xml)

    def is_listed(centre_zyx: tuple[float, float, float], readers: int) -> bool:
        at = np.array(volume.position_lps_mm(centre_zyx))
        return any(np.linalg.norm(at - centre) <= diameter / 2 for centre, diameter in nodules)

    return cut_scan(volume, drawn, patient=patient, size=size, is_nodule=is_listed, first=first)
