"""How real pasted nodules look: what tells them from the same nodules where they came from.

    python -m models.training.lung_nodule.figures.semisynthetic --set FOLDER --volumes lidc_voi3d.zip

Of each nodule of a semi-synthetic set in a real CT, and of its donor in its own scan, both at 1 mm, on the mask's
slices only (donors' volumes end there):

noise   of lung 1 to 3 mm off the mask, where the paste ends, over that of lung farther off
step    mean HU gradient of lung 2 to 4 mm off the mask over that of lung farther off: a seam would raise it
edge    mean HU gradient at the mask's border over the nodule's contrast, per mm

and the AUC with which each figure tells pasted from original: 0.5 when it cannot.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import ndimage

from models.grid import isotropic
from models.training.evaluation.metrics import Interval, auc, bootstrap
from models.training.lung_nodule.data.scans import INDEX, Lesion, Scan, Scans
from models.training.lung_nodule.data.semisynthetic import LUNG_BELOW_HU, noise_of, read_donor

AROUND_MM = 12
FIGURES = ("noise", "step", "edge")


@dataclass(frozen=True, eq=False)
class Pair:
    """The three figures of a nodule where it was pasted and where it came from; nan where there is too little lung."""

    patient: str
    pasted: np.ndarray
    original: np.ndarray


def looks(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """FIGURES of the nodule in its surroundings, both at 1 mm and (z, y, x)."""
    hu = hu.astype(np.float32)
    away = ndimage.distance_transform_edt(~mask)
    lung = hu < LUNG_BELOW_HU
    near, seam, far = (lung & (away > low) & (away <= high) for low, high in ((1, 3), (2, 4), (5, AROUND_MM)))
    border = (away <= 1) & ~ndimage.binary_erosion(mask)
    slope = np.hypot(*np.gradient(hu, axis=(1, 2)))  # in the plane: slices are of all thicknesses
    contrast = float(np.median(hu[mask]) - np.median(hu[far])) if far.any() else 0.0
    if min(near.sum(), seam.sum(), far.sum()) < 30 or contrast < 100:
        return np.full(len(FIGURES), np.nan)
    noise = noise_of(hu, near) / max(noise_of(hu, far), 1.0)
    return np.array([noise, np.median(slope[seam]) / np.median(slope[far]), slope[border].mean() / contrast])


def around(scan: Scan, lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """HU and mask on the lesion's slices, with AROUND_MM beside it."""
    z, *plane = lesion.box
    wide = [slice(max(0, s.start - AROUND_MM), s.stop + AROUND_MM) for s in plane]
    box = z, *wide
    mask = np.zeros(scan.hu.shape, bool)
    mask[lesion.box] = lesion.mask
    return scan.hu[box], mask[box]


def pairs(folder: Path, volumes: Path) -> Iterator[Pair]:
    """Every nodule of the set that lies in a real CT."""
    scans = Scans(folder)
    listed = json.loads((folder / INDEX).read_text("utf-8"))["scans"]
    with zipfile.ZipFile(volumes) as archive:
        for one in track([one for one in listed if not one["background"].startswith("phantom-")], "scans"):
            scan = scans.load(one["name"])
            for lesion, fact in zip(scan.lesions, one["lesions"], strict=True):
                donor = read_donor(archive, f"image/{fact['donor']}.nii.gz")
                original = isotropic(donor.hu, donor.spacing_mm), isotropic(donor.mask, donor.spacing_mm)
                if original[1].any():
                    yield Pair(fact["patient"], looks(*around(scan, lesion)), looks(*original))


def figures(found: list[Pair]) -> dict[str, Interval]:
    """Medians of both sides and the AUC between them, with 95 % intervals over donors' patients.

    found   pairs that could be measured: no nan
    """
    patients = [pair.patient for pair in found]
    pasted, original = (np.array([getattr(pair, side) for pair in found]) for side in ("pasted", "original"))
    result = {}
    for column, name in enumerate(FIGURES):
        one, other = pasted[:, column], original[:, column]

        def median(rows: np.ndarray, side: np.ndarray) -> float:
            return float(np.median(side[rows]))

        def told(rows: np.ndarray, one: np.ndarray = one, other: np.ndarray = other) -> float:
            return auc(np.concatenate([one[rows], other[rows]]), np.repeat([True, False], len(rows)))

        result[f"{name}, pasted"] = bootstrap(partial(median, side=one), patients)
        result[f"{name}, original"] = bootstrap(partial(median, side=other), patients)
        result[f"{name}, AUC of pasted against original"] = bootstrap(told, patients)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set", type=Path, required=True, dest="folder", help="of models.training.lung_nodule.data.semisynthetic"
    )
    parser.add_argument("--volumes", type=Path, required=True)
    given = parser.parse_args()
    found = list(pairs(given.folder, given.volumes))
    measured = [pair for pair in found if np.isfinite([pair.pasted, pair.original]).all()]
    print(f"{len(measured)} of {len(found)} nodules have enough lung around")
    for name, figure in figures(measured).items():
        print(f"{name:40} {figure}")


if __name__ == "__main__":
    main()
