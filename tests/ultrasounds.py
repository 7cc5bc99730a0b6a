"""Synthetic breast ultrasound images, written once per seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom

from models.phantoms import breast_ultrasound


@dataclass(frozen=True)
class Study:
    path: Path  # the image, or the folder of a series
    study_uid: str
    series_uid: str


def ultrasound_study(folder: Path, *, seed: int) -> Study:
    """One image with one lesion, in a study of its own."""
    place = folder / f"us-{seed}"
    breast_ultrasound(place, seed=seed, patient_id=f"PHANTOM-US-{seed}")
    path = next(place.rglob("*.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return Study(path, str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
