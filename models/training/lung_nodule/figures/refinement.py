"""What the refinement of each detection is worth: Dice of the outline before and after, of nodules in a real chest CT.

    python -m models.training.lung_nodule.figures.refinement --volumes lidc_voi3d.zip --scan ct_LungFCP-01-0001.zip

Semi-synthetic, for there is no annotated whole scan: LIDC nodule volumes (Hounsfield units, masks, native pixels) of
the validation patients are pasted with a soft edge at random places in the lungs of one scan. Detections are what the
sliding window marks, its windows at a random offset from the nodule; and, as of a detector of boxes, ellipsoids in the
truth's box, moved and resized at random. The default of `Options.refine` is to follow from these figures.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from scipy import ndimage

from models.grid import box_at
from models.lung_nodule.detections import Candidate
from models.lung_nodule.lungs import find_lungs
from models.lung_nodule.pipeline import LungNodule
from models.lung_nodule.preprocess import SIDE
from models.lung_nodule.refine import refine
from models.lung_nodule.sliding_unet import STRIDE, SlidingUNet, candidates
from models.read import Volume, read_ct
from models.training.evaluation.metrics import Interval, dice, interval, rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.lung_nodule.data.semisynthetic import donor_names, read_donor
from models.training.lung_nodule.data.slices import stored_split

FEATHER_PX = 4  # of the paste's edge
AROUND_PX = (SIDE + STRIDE) // 2  # of scan on each side of the nodule's middle
BEYOND = 6  # slices of scan above and below


@dataclass(frozen=True, eq=False)
class Case:
    """A nodule in a piece of a scan, on the nodule's own pixels."""

    patient: str
    volume: Volume
    truth: np.ndarray  # bool, as volume.hu


def cases(volumes: Path, scan: Volume, split: str, seed: int) -> Iterator[Case]:
    """Every nodule volume of the split's patients, pasted at a place of its own."""
    rng = np.random.default_rng(seed)
    lung = find_lungs(scan).mask
    low = np.array([0, AROUND_PX, AROUND_PX])
    lung[:, : low[1]] = lung[:, -low[1] :] = lung[:, :, : low[2]] = lung[:, :, -low[2] :] = False
    with zipfile.ZipFile(volumes) as archive:
        for name in donor_names(archive, stored_split()[0][split]):
            donor = read_donor(archive, name)
            depth = min(len(donor.hu) + 2 * BEYOND, len(scan.hu))
            hu, mask = (part[: depth - 2] for part in (donor.hu, donor.mask))
            places = np.argwhere(lung[: len(lung) - depth + 1])
            z, y, x = places[rng.integers(len(places))]
            box = slice(z, z + depth), slice(y - AROUND_PX, y + AROUND_PX), slice(x - AROUND_PX, x + AROUND_PX)
            canvas, truth = scan.hu[box].astype(np.float32), np.zeros((depth, 2 * AROUND_PX, 2 * AROUND_PX), bool)
            corner = ((depth - len(hu)) // 2, *(AROUND_PX - n // 2 for n in hu.shape[1:]))
            here = box_at(corner, hu.shape)
            share = feather(hu.shape[1:])
            canvas[here] += (hu - canvas[here]) * share
            truth[here] = mask
            affine = np.diag([*donor.spacing_mm, 1.0])
            volume = Volume(np.rint(canvas).astype(np.int16), (), donor.spacing_mm, affine, ())
            yield Case(donor.patient, volume, truth)


def feather(shape: tuple[int, ...]) -> np.ndarray:
    """(rows, columns): 1 inside, falling to 0 at the edge"""
    edge = ndimage.distance_transform_cdt(np.pad(np.ones(shape), 1), "chessboard")[1:-1, 1:-1]
    return np.clip((edge - 0.5) / FEATHER_PX, 0, 1)


def marked(sliding: SlidingUNet, case: Case, rng: np.random.Generator) -> Candidate | None:
    """What the sliding window marks at the nodule, its windows at a random offset."""
    where = np.zeros(case.truth.shape[1:], bool)
    start = AROUND_PX - STRIDE // 2 - rng.integers(0, STRIDE, 2)
    where[start[0] : start[0] + 2 * STRIDE, start[1] : start[1] + 2 * STRIDE] = True
    probability = np.stack(
        [
            (255 * sliding.slide(image, where)[0]).round().byte().cpu().numpy()
            for image in torch.from_numpy(case.volume.hu.astype(np.float32))
        ]
    )
    at = [(int(case.truth[c.box][c.mask].sum()), c) for c in candidates(probability, sliding.options)]
    overlap, best = max(at, key=lambda one: one[0], default=(0, None))
    return best if overlap else None


def boxed(case: Case, rng: np.random.Generator) -> Candidate:
    """The ellipsoid in the nodule's box, moved by up to a fifth of its sides and made 0.8 to 1.3 times as large."""
    (box,) = ndimage.find_objects(case.truth.astype(np.uint8))
    sides = np.array([s.stop - s.start for s in box])
    middle = np.array([(s.start + s.stop - 1) / 2 for s in box]) + rng.uniform(-0.2, 0.2, 3) * sides
    half = np.maximum(sides / 2 * rng.uniform(0.8, 1.3, 3), 0.75)
    grid = np.moveaxis(np.indices(case.truth.shape), 0, -1)
    mask = (((grid - middle) / half) ** 2).sum(axis=-1) <= 1
    return Candidate(mask, (0, 0, 0), 1.0).with_mask(mask, (0, 0, 0))


def figures(pipeline: LungNodule, volumes: Path, scan: Volume, split: str, seed: int = 0) -> dict[str, Interval]:
    """Mean Dice of the nodules that the sliding window marks, and of the boxes; 95 % intervals over patients.

    Raises ValueError when the pipeline has no refinement.
    """
    second = pipeline.refiner
    if second is None:
        raise ValueError("this pipeline looks once: give it the option refine")
    sliding = pipeline.detector
    if not isinstance(sliding, SlidingUNet):  # an option's value, not a type, is wrong
        raise ValueError(  # noqa: TRY004
            "these figures are of what the sliding window marks: give the pipeline detector sliding-unet"
        )
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    owners: dict[str, list[str]] = {}

    def note(name: str, patient: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        owners.setdefault(name, []).append(patient)

    for case in track(list(cases(volumes, scan, split, seed)), "nodules"):
        for source, detection in (("sliding window", marked(sliding, case, rng)), ("box", boxed(case, rng))):
            note(f"{source}: detected", case.patient, float(detection is not None))
            if detection is None:
                continue
            before = dice(painted(detection, case), case.truth)
            note(f"{source}: as detected", case.patient, before)
            for flips in (False, True):
                (one,) = refine(case.volume, [detection], second, side=second.side, flips=flips)
                after = dice(painted(one.candidate, case), case.truth)
                name = f"{source}: refined" + ", flips" * flips
                note(name, case.patient, after)
                note(f"{name}, difference", case.patient, after - before)
                note(f"{name}, own mask kept", case.patient, float(one.why_not is not None))
    return {name: interval(values, owners[name]) for name, values in found.items()}


def painted(candidate: Candidate, case: Case) -> np.ndarray:
    out = np.zeros(case.truth.shape, bool)
    out[candidate.box] = candidate.mask
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--scan", type=Path, required=True, help="zip of the DICOM files of one chest CT")
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, help="folder for lung_refinement.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(given.scan) as archive:
        archive.extractall(folder)
        scan = read_ct(sorted(Path(folder).rglob("*.dcm")))
    pipeline = LungNodule("cpu", {"detector": "sliding-unet"})
    found = figures(pipeline, given.volumes, scan, given.split)
    for name, figure in found.items():
        print(f"{name:60} {figure}")
    if given.out:
        document = {"semi_synthetic": True, "split": given.split, "figures": rounded(found)}
        weights, data = pipeline.card.weights_sha256, digests([given.volumes, given.scan])
        write_figures(given.out / "lung_refinement.json", document, dict(weights), data)


if __name__ == "__main__":
    main()
