"""Nodule volumes of LIDC-IDRI and how suspicious four radiologists found each: their rating, no histology.

lidc_voi3d.zip holds a volume and a mask of each nodule, and metadata.xlsx with "Malignancy_value": 1 (highly unlikely)
to 5 (highly suspicious), the mean of the readers brought to a whole number by whoever made the table. Above 3 counts as
suspicious, below 3 as not; 3 ("indeterminate") in neither class.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from models.lung_nodule.malignancy_patch import NODULE, nodule_patch
from models.patches import PatchConfig
from models.training.layouts import UnknownLayout
from models.training.lung_nodule.data.semisynthetic import donor_names, read_donor
from models.training.recurrent_attention.candidates import NEITHER, STORED_SHAPE, Candidates

TABLE = "metadata.xlsx"
COLUMNS = ("patient_id", "nodule_id", "diameter_mm", "Malignancy_value")
INDETERMINATE = 3


@dataclass(frozen=True)
class Rated:
    """A row of the table. diameter_mm: as the readers' outlines gave it."""

    patient: str
    name: str  # of the volume, "LIDC-IDRI-0001_R_1"
    rating: int
    diameter_mm: float


def read_ratings(archive: ZipFile) -> dict[str, Rated]:
    """Name of a volume -> its row. Raises UnknownLayout when the table, a column or a number is not there."""
    import openpyxl  # of the extra `train`

    if TABLE not in archive.namelist():
        raise UnknownLayout(f"{archive.filename} holds no {TABLE}; give the zip of nodule volumes with ratings")
    rows = openpyxl.load_workbook(io.BytesIO(archive.read(TABLE)), read_only=True).active.values
    head = list(next(rows))
    if missing := [column for column in COLUMNS if column not in head]:
        raise UnknownLayout(f"{TABLE} has no column {missing[0]}")
    where = [head.index(column) for column in COLUMNS]
    found = {}
    for number, row in enumerate(rows, start=2):
        patient, nodule, diameter, rating = (row[place] for place in where)
        if rating not in (1, 2, 3, 4, 5) or not isinstance(diameter, int | float):
            raise UnknownLayout(f"{TABLE}, line {number}: a rating of {rating!r} or a diameter of {diameter!r}")
        name = f"{patient}_R_{nodule}"
        found[name] = Rated(patient, name, int(rating), float(diameter))
    return found


def read_nodules(path: Path, config: PatchConfig = NODULE) -> tuple[Candidates, list[Rated]]:
    """Every rated volume with a mask as a candidate, and its row. Raises UnknownLayout."""
    if not zipfile.is_zipfile(path):
        raise UnknownLayout(f"{path} is no zip of nodule volumes")
    patches, rows = [], []
    with ZipFile(path) as archive:
        ratings = read_ratings(archive)
        for name in donor_names(archive):
            donor = read_donor(archive, name)
            if donor.name in ratings and donor.mask.any():
                cut = nodule_patch(donor.hu, donor.mask, (0, 0, 0), donor.spacing_mm, STORED_SHAPE, config)
                patches.append(cut.astype(np.float16))
                rows.append(ratings[donor.name])
    if not rows:
        raise UnknownLayout(f"{path.name} holds no volume that {TABLE} rates")
    ratings_ = np.array([row.rating for row in rows], float)
    labels = np.where(ratings_ == INDETERMINATE, NEITHER, (ratings_ > INDETERMINATE).astype(int))
    names = [row.name for row in rows]
    return Candidates(np.stack(patches), labels, [row.patient for row in rows], names, config, ratings_), rows
