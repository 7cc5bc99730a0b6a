"""What is known of a phantom, to be compared with what is found in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid


@dataclass(frozen=True, eq=False)
class Lesion:
    """One thing to be found. Same grid and same order of axes as dicom_sr.findings.Finding."""

    mask: np.ndarray  # bool (d, h, w), the smallest box that holds the lesion
    offset_zyx: tuple[int, int, int]  # z counts Truth.files; of a cine, its frames
    long_axis_mm: float
    short_axis_mm: float
    centre_lps_mm: tuple[float, float, float] | None = None  # where there is a patient coordinate system (CT)
    hu: float | None = None  # CT


@dataclass(frozen=True)
class Truth:
    """The files of one series, in order, and what is in them."""

    files: tuple[Path, ...]
    lesions: tuple[Lesion, ...]


def phantom_uid(*what: str) -> str:
    return generate_uid(prefix="2.25.", entropy_srcs=["pacs-node phantom", *what])
