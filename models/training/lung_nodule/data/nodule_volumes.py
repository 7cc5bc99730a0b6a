"""Nodule volumes of LIDC-IDRI as small scans of their own: real nodules where they were, outlined by readers.

    python -m models.training.lung_nodule.data.nodule_volumes --volumes lidc_voi3d.zip --out FOLDER

FOLDER is then what scans.Scans reads, with the stored split of patients. It is for outlines: a mask
head learns from real surroundings there. For detection there is too little round a nodule.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import ndimage
from skimage.morphology import disk

from models.grid import isotropic
from models.read import Volume
from models.training.files import write_text
from models.training.lung_nodule.data.scans import FORMAT, INDEX, Lesion, Scan, store
from models.training.lung_nodule.data.semisynthetic import (
    LUNG_BELOW_HU,
    NO_LUNG_HU,
    WALL_ABOVE_HU,
    WHOLE_CHEST_ML,
    Donor,
    donor_names,
    read_donor,
    why_not_donor,
)

VERSION = 2  # change it with every change of the scans: caches go by it
BEYOND_MM = 16  # added on every side
CLOSED_MM = 5  # a nodule volume has no lung mask: its lung is what is dark, closed by so much
WALL_MM = 8  # radius of a disc: soft tissue that has room for it is wall, what has none is compact
BRIGHTER_HU = 150  # than lung: no lung any more. Ground glass is, noise is not


def on_its_pixels(donor: Donor) -> Volume:
    """A nodule volume as a pipeline reads one: whole HU, on its own pixels, of no images."""
    affine = np.diag([*donor.spacing_mm, 1.0])
    return Volume(np.rint(donor.hu).astype(np.int16), (), donor.spacing_mm, affine, ())


def small_scan(donor: Donor) -> Scan:
    """A nodule volume at 1 mm, BEYOND_MM wider on every side; voxel 0 of the volume is voxel BEYOND_MM.

    Beyond it the image alone decides, never the mask: the same padding serves to learn and to judge. In the plane the
    edges go on. Most volumes end with the nodule's first and last slices, so above and below lung and wall go on.
    There is no lung mask either: what is dark is lung, closed.
    """
    truth = np.pad(isotropic(donor.mask, donor.spacing_mm), BEYOND_MM)
    hu = np.pad(np.rint(isotropic(donor.hu, donor.spacing_mm)).astype(np.int16), BEYOND_MM, mode="edge")
    dark = hu[hu < LUNG_BELOW_HU]
    lung_hu = float(np.median(dark)) if dark.size else NO_LUNG_HU
    for end, last in ((slice(None, BEYOND_MM), BEYOND_MM), (slice(-BEYOND_MM, None), -BEYOND_MM - 1)):
        hu[end] = without_compact(hu[last], lung_hu)
    lungs = ndimage.binary_closing(hu < LUNG_BELOW_HU, iterations=CLOSED_MM)
    lesions = (Lesion.of(truth),) if truth.any() else ()  # a nodule may fall between two voxels
    share = float(np.clip(lungs.sum() / 1000 / WHOLE_CHEST_ML, 0.001, 1))
    return Scan(donor.name, donor.patient, hu, lungs, lesions, semi_synthetic=False, share=share)


def without_compact(slice_hu: np.ndarray, lung_hu: float) -> np.ndarray:
    """A slice (y, x) of 1 mm with lung instead of what is brighter and compact: nodules, vessels; the wall stays."""
    soft = np.pad(slice_hu > WALL_ABOVE_HU, WALL_MM, mode="edge")  # wall goes on beyond the picture
    wall = ndimage.binary_opening(soft, disk(WALL_MM))[WALL_MM:-WALL_MM, WALL_MM:-WALL_MM]
    return np.where(wall | (slice_hu < lung_hu + BRIGHTER_HU), slice_hu, round(lung_hu))


def write(volumes: Path, out: Path) -> int:
    """All volumes whose nodule is whole, and the list of them; how many there are."""
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    with zipfile.ZipFile(volumes) as archive:
        for name in track(donor_names(archive), "nodule volumes"):
            donor = read_donor(archive, name)
            if why_not_donor(donor) is None:
                store(out / f"{donor.name}.npz", small_scan(donor))
                listed.append({"name": donor.name, "patient": donor.patient, "file": f"{donor.name}.npz"})
    made_of = {"version": VERSION, "name": volumes.name, "size": volumes.stat().st_size}
    index = {"format": FORMAT, "semi_synthetic": False, "whole": True, "made_of": made_of, "scans": listed}
    write_text(out / INDEX, json.dumps(index, indent=1) + "\n")
    return len(listed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make a scan of each nodule volume.")
    parser.add_argument("--volumes", type=Path, required=True, help="zip of image/*.nii.gz and nodule_mask/*.nii.gz")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    print(f"{write(given.volumes, given.out)} nodules in {given.out}")


if __name__ == "__main__":
    main()
