"""How well a lesion is followed through a cine: on pans over real images, whose shift from frame to frame is known.

    python -m models.training.breast_us.pans --data FOLDER    # busi.zip and bus_bra.zip

There are no annotated cines. So a window is moved over validation images that show a lesion, from the upper left to the
lower right, in whole pixels, so that the speckle stays what it was; each pan is a DICOM cine that the whole pipeline
reads. A pan is easier than a sweep: the tissue moves and does not change, and neither do speckle and gain. Writes
docs/results/breast_us_pans.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import UltrasoundMultiFrameImageStorage
from rich.progress import track

from dicom_sr.findings import Findings
from models.breast_us.pipeline import SMALLEST_SIDE_PX, BreastUltrasound
from models.grid import box_at
from models.phantoms.breast import ultrasound_dicom
from models.pipeline import UnfitInput
from models.training.breast_us.hospitals import HOSPITALS, Picture, divided, family_of, read_hospitals
from models.training.breast_us.two_hospitals import BUS_BRA_FILE, BUSI_FILE
from models.training.evaluation.metrics import bootstrap, dice
from models.training.evaluation.provenance import digests, write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text

FILE = Path(__file__).parents[3] / "docs/results/breast_us_pans.json"
FRAMES = 12
WINDOW = 0.7  # of each side
IN_VIEW = 0.5  # of the lesion's pixels: with less of it on a frame nothing is asked of that frame
EACH = 40  # images of a hospital, of families of their own
KEPT = "frames in view on which the lesion has its number"
SWITCHES = "changes of its number, per pan"
DICE = "Dice by frame, 0 where it is not marked"
OTHERS = "other findings, per pan"


@dataclass(frozen=True, eq=False)
class Pan:
    """frames uint8 and the truth bool, both (FRAMES, rows, columns); which frames are in view, bool (FRAMES,)"""

    frames: np.ndarray
    truth: np.ndarray
    in_view: np.ndarray

    @classmethod
    def over(cls, one: Picture) -> Pan | None:
        """None for a picture too small for a window, or whose lesion no window shows."""
        sides = [round(WINDOW * side) for side in one.pixels.shape]
        if min(sides) < SMALLEST_SIDE_PX:
            return None
        room = np.subtract(one.pixels.shape, sides)
        corners = (np.linspace(0, 1, FRAMES)[:, None] * room).round().astype(int)
        boxes = [box_at(corner, sides) for corner in corners.tolist()]
        truth = np.stack([one.mask[box] for box in boxes])
        in_view = truth.sum(axis=(1, 2)) >= IN_VIEW * one.mask.sum()
        return cls(np.stack([one.pixels[box] for box in boxes]), truth, in_view) if in_view.any() else None

    def save(self, path: Path) -> None:
        """As a multi-frame ultrasound image, without calibration: the sets have none."""
        cine = ultrasound_dicom(self.frames[0], spacing_mm=None, patient_id="PAN")
        cine.SOPClassUID = UltrasoundMultiFrameImageStorage
        cine.NumberOfFrames, cine.FrameTime, cine.FrameIncrementPointer = len(self.frames), "50", 0x00181063
        data = self.frames.tobytes()
        cine.PixelData = data + b"\0" * (len(data) % 2)
        cine.save_as(path, enforce_file_format=True)


def marks(found: Findings) -> dict[int, dict[int, np.ndarray]]:
    """Number of a finding -> frame, from 0 -> the pixels of its mask there, (n, 2)"""
    told: dict[int, dict[int, np.ndarray]] = {}
    for one in found.findings:
        z, y, x = one.offset_zyx
        for k, mask in enumerate(one.mask):
            if mask.any():
                frame = (found.images[z + k].frame or 1) - 1
                told.setdefault(one.number, {})[frame] = np.argwhere(mask) + np.array([y, x])
    return told


def judged(pan: Pan, found: Findings | None) -> dict[str, float]:
    """The figures of one pan; found: None for a pan that was refused."""
    drawn: dict[int, np.ndarray] = {}
    for number, places in marks(found).items() if found else ():
        masks = np.zeros(pan.truth.shape, bool)
        for frame, place in places.items():
            masks[frame, place[:, 0], place[:, 1]] = True
        drawn[number] = masks
    on = [
        max(shared, key=lambda number: shared[number])
        if (shared := {n: m for n, masks in drawn.items() if (m := int((masks[f] & pan.truth[f]).sum()))})
        else None
        for f in np.flatnonzero(pan.in_view)
    ]
    numbers = [number for number in on if number is not None]
    own = Counter(numbers).most_common(1)[0][0] if numbers else None
    overlaps = [
        0.0 if number is None else dice(drawn[number][f], pan.truth[f])
        for number, f in zip(on, np.flatnonzero(pan.in_view), strict=True)
    ]
    return {
        KEPT: sum(number == own for number in numbers) / len(on),
        SWITCHES: float(sum(a != b for a, b in pairwise(numbers))),
        DICE: float(np.mean(overlaps)),
        OTHERS: float(len(drawn.keys() - set(numbers))),
    }


def chosen(pictures: Sequence[Picture], families: Sequence[str]) -> list[tuple[str, Picture]]:
    """Family and picture: the first of each family, EACH of a hospital, evenly over all of them."""
    first: dict[str, Picture] = {}
    for one, family in zip(pictures, families, strict=True):
        if one.mask.any() and Pan.over(one) is not None:
            first.setdefault(family, one)
    some: list[tuple[str, Picture]] = []
    for hospital in HOSPITALS:
        own = [pair for pair in first.items() if pair[1].hospital == hospital]
        some += [own[k] for k in np.linspace(0, len(own) - 1, min(EACH, len(own))).astype(int)]
    return some


def mean(values: np.ndarray, rows: np.ndarray) -> float:
    return float(values[rows].mean())


def followed(pipeline: BreastUltrasound, pictures: Sequence[tuple[str, Picture]]) -> dict[str, Any]:
    """The figures of each hospital's pans, with intervals over families."""
    rows: dict[str, list[tuple[str, dict[str, float]]]] = {hospital: [] for hospital in HOSPITALS}
    refused: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pan.dcm"
        for family, one in track(pictures, "pans"):
            pan = Pan.over(one)
            assert pan is not None
            pan.save(path)
            found = None
            try:
                found = pipeline.run([path], lambda _share, _what: None)
            except UnfitInput:
                refused[one.hospital] += 1
            alone = dice(pipeline.look(one.pixels).lesion, one.mask)
            rows[one.hospital].append((family, {**judged(pan, found), "Dice of the whole image alone": alone}))
    made: dict[str, Any] = {}
    for hospital, of in rows.items():
        owners = [family for family, _ in of]
        made[hospital] = {"pans": len(of), "refused": refused[hospital]}
        for name in of[0][1] if of else ():
            values = np.array([row[name] for _, row in of])
            made[hospital][name] = bootstrap(partial(mean, values), owners).rounded(3)
    return made


def page(made: Mapping[str, Any]) -> str:
    hospitals = [name for name in HOSPITALS if name in made]
    names = [name for name in made[hospitals[0]] if name not in ("pans", "refused")]
    heads = [f"{name}, {made[name]['pans']} pans, {made[name]['refused']} refused" for name in hospitals]
    rows = [[name, *(cell(made[hospital][name], ".3f") for hospital in hospitals)] for name in names]
    return (
        f"# breast-us: a lesion followed through pans over real images\n\n{FRAMES} frames of {WINDOW:.0%} of each side,"
        " moved over validation images in whole pixels; a frame is in view with half of the lesion or more on it. The"
        " whole pipeline, on a DICOM cine of each. 95 % intervals over families. A pan is easier than a sweep: tissue,"
        f" speckle and gain stay the same.\n\n{sheet(['', *heads], rows)}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"a folder with {BUSI_FILE} and {BUS_BRA_FILE}")
    given = parser.parse_args(arguments)
    files = [given.data / BUSI_FILE, given.data / BUS_BRA_FILE]
    pictures = divided(read_hospitals(*files))[0]["val"]
    pipeline = BreastUltrasound("cpu", {"threads": 1})
    made = {"split": "val", **followed(pipeline, chosen(pictures, family_of(pictures)))}
    write_figures(FILE, made, pipeline.card.weights_sha256, digests(files))
    write_text(FILE.with_suffix(".md"), page(made))
    print(page(made))


if __name__ == "__main__":
    main()
