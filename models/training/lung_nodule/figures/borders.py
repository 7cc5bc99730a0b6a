"""Where readers draw the border of a nodule, against where the picture has it: how much of a size is a convention.

    python -m models.training.lung_nodule.figures.borders --volumes lidc_voi3d.zip

Of each nodule of the validation patients, on the slice on which readers drew most of it, the long axis of their
outline (two of four, LIDC-IDRI) is held against that of the border at half height: where the Hounsfield units are
midway between the middle of the nodule and the lung beside it. On blurred discs, whose size is known, the border at
half height is measured in the same way. No network is asked. Writes docs/results/lung_borders.json.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from models.measure import calipers
from models.training.evaluation.metrics import bootstrap
from models.training.evaluation.provenance import NONE, digests, write_figures
from models.training.lung_nodule.data.semisynthetic import donor_names, read_donor
from models.training.lung_nodule.data.slices import stored_split

FILE = Path(__file__).parents[4] / "docs/results/lung_borders.json"
REACH_MM = 2.0  # beyond the outline the border is not looked for
BESIDE_MM = 2.0, 5.0  # from the outline: the lung beside it
LUNG_SHARE = 25  # percentile of what lies there: vessels and the chest wall are denser
LEAST_PX = 4  # of the middle
GROUND_GLASS_HU, SOFT_HU = -300.0, 0.0  # of the middle: the groups of the table

DISC_MM = 4.0, 6.0, 8.0, 12.0, 20.0
DISC_SPACING_MM = 0.5, 0.7, 0.98
BLUR_MM = 0.0, 0.5, 0.8  # standard deviation: from a sharp border to that of a soft kernel
FINE = 8  # parts of a pixel that a disc is drawn with


@dataclass(frozen=True)
class Border:
    """One nodule: its middle in HU, and by how much readers draw its long axis and mean diameter longer, in mm."""

    patient: str
    middle_hu: float
    long_mm: float
    mean_mm: float


def at_half_height(hu: np.ndarray, outline: np.ndarray, spacing_mm: tuple[float, float]) -> tuple[np.ndarray, float]:
    """(bool like `outline`, the middle in HU): what is denser than midway between the middle and the lung beside it.

    hu, outline   (rows, columns). Raises ValueError where nothing is.
    """
    inner = (ndimage.binary_erosion(outline, iterations=n) for n in (2, 1))
    middle = float(np.median(hu[next((one for one in inner if one.sum() >= LEAST_PX), outline)]))
    away_mm = ndimage.distance_transform_edt(~outline, sampling=spacing_mm)
    beside = hu[(away_mm > BESIDE_MM[0]) & (away_mm < BESIDE_MM[1])]
    if not beside.size:
        raise ValueError("nothing lies beside it")
    dense = (away_mm <= REACH_MM) & (hu > (middle + float(np.percentile(beside, LUNG_SHARE))) / 2)
    parts, count = ndimage.label(dense)
    if not count:
        raise ValueError("nothing is denser than the lung beside it")
    return ndimage.binary_fill_holes(parts == 1 + np.bincount(parts.ravel())[1:].argmax()), middle


def borders(volumes: Path, split: str) -> Iterator[Border]:
    with zipfile.ZipFile(volumes) as archive:
        for name in donor_names(archive, stored_split()[0][split]):
            donor = read_donor(archive, name)
            z = int(donor.mask.sum(axis=(1, 2)).argmax())
            spacing_mm = donor.spacing_mm[1:]
            try:
                half, middle_hu = at_half_height(donor.hu[z], donor.mask[z], spacing_mm)
            except ValueError:
                continue
            drawn, seen = calipers(donor.mask[z], spacing_mm), calipers(half, spacing_mm)
            yield Border(donor.patient, middle_hu, drawn.long_mm - seen.long_mm, drawn.mean_mm - seen.mean_mm)


def off_on_discs(rng: np.random.Generator) -> list[float]:
    """mm by which the long axis at half height is longer than a disc, of all sizes, pixels and blurs, at any place."""
    found = []
    for diameter_mm in DISC_MM:
        for mm in DISC_SPACING_MM:
            for blur_mm in BLUR_MM:
                side = 2 * round((diameter_mm / 2 + 8) / mm) + 1
                fine = (np.arange(side * FINE) + 0.5) / FINE - side / 2 + rng.uniform(-0.5, 0.5)
                inside = np.hypot(fine[:, None], fine[None]) * mm <= diameter_mm / 2
                share = inside.reshape(side, FINE, side, FINE).mean(axis=(1, 3))
                hu = ndimage.gaussian_filter(-860 + 890 * share, blur_mm / mm)
                half, _ = at_half_height(hu, share > 0.5, (mm, mm))
                found.append(calipers(half, (mm, mm)).long_mm - diameter_mm)
    return found


def median(values: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """With its 95 % bootstrap interval over patients."""
    figures = np.asarray(values)
    return bootstrap(lambda rows: float(np.median(figures[rows])), patients).rounded(2)


def figures(volumes: Path, split: str) -> dict[str, object]:
    found = list(borders(volumes, split))
    groups = {
        "all": found,
        "middle below -300 HU": [one for one in found if one.middle_hu < GROUND_GLASS_HU],
        "middle -300 to 0 HU": [one for one in found if GROUND_GLASS_HU <= one.middle_hu < SOFT_HU],
        "middle from 0 HU on": [one for one in found if one.middle_hu >= SOFT_HU],
    }
    readers = {
        name: {
            "nodules": len(some),
            "long axis, mm": median([one.long_mm for one in some], [one.patient for one in some]),
            "mean diameter, mm": median([one.mean_mm for one in some], [one.patient for one in some]),
        }
        for name, some in groups.items()
        if some
    }
    discs = off_on_discs(np.random.default_rng(0))
    return {
        "split": split,
        "readers' outline less the border at half height": readers,
        "border at half height less the disc, mm": {
            "discs": len(discs),
            "mean": round(float(np.mean(discs)), 2),
            "standard deviation": round(float(np.std(discs)), 2),
            "most": round(float(np.abs(discs).max()), 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--split", default="val")
    given = parser.parse_args()
    write_figures(FILE, figures(given.volumes, given.split), NONE, digests([given.volumes]))
    print(FILE.read_text())


if __name__ == "__main__":
    main()
