"""How far sizes are off, and what takes them off: on phantoms whose size is known, and against readers.

    python -m models.training.lung_nodule.figures.sizes --volumes lidc_voi3d.zip

Phantoms: slabs of chests of PHANTOM_MM and of every kernel, nodules of 4 to 20 mm, looked at by the whole pipeline.
Readers: the nodule volumes of the validation patients that are reported, each outlined on its own pixels, against
the outline of two of four readers (LIDC-IDRI). Each part of the way has a row: an outline that is perfect, one brought
to 1 mm and back, NoduleNet's own, the refinement's, both together at their threshold, and the border at half height
that lies under the last. Writes docs/results/sizes.json, and the margin of categories.py that follows.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from models.grid import first_voxel, in_common, isotropic, on_source
from models.lung_nodule.detections import Candidate
from models.lung_nodule.detectors import NoduleNetDetector, candidate
from models.lung_nodule.lungs import find_lungs
from models.lung_nodule.pipeline import LungNodule
from models.lung_nodule.refine import Mix, refine
from models.measure import axial, calipers
from models.phantoms.chest import KERNELS, chest_grid, chest_hu
from models.phantoms.chest_anatomy import Ball, Grid, ball_lesion, place_nodules, vessel_tree
from models.read import Volume
from models.training.evaluation.metrics import bootstrap
from models.training.evaluation.provenance import digests, write_figures
from models.training.files import write_text
from models.training.lung_nodule.data.nodule_volumes import on_its_pixels
from models.training.lung_nodule.data.semisynthetic import donor_names, read_donor, why_not_donor
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.figures.borders import at_half_height
from models.training.lung_nodule.figures.found import surest_on

FILE = Path(__file__).parents[4] / "docs/results/sizes.json"
MARGIN_FILE = Path(__file__).parents[3] / "lung_nodule/size_margin.json"
PHANTOM_MM = ((0.625, 0.5), (1.0, 0.6), (1.25, 0.8), (2.0, 0.7), (2.5, 0.9), (3.0, 1.0))  # slice step, pixel
HEIGHT_MM, WIDTH_MM = 130.0, 350.0  # of a slab
RADII_MM = 2.0, 10.0
NODULES = 12  # in a slab
FINE_MM = 0.2  # steps by which a phantom's volume is counted
SEEDS = 2, 3, 4
CLOSE = 0.75  # share of the sizes that are no farther off than the margin of categories.py
SERVED, BORDER = "both, as served", "the border at half height"
BANDS = {"below 6 mm": (0.0, 6.0), "6 to 10 mm": (6.0, 10.0), "from 10 mm on": (10.0, np.inf)}
WHAT = ("long axis, mm", "short axis, mm", "mean diameter, mm", "volume, %")


@dataclass(frozen=True)
class Size:
    """In mm and mm3."""

    long_mm: float
    short_mm: float
    mm3: float

    @classmethod
    def of(cls, mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> Size:
        """As a finding with this bool mask (d, h, w) is measured, not rounded."""
        _, lines = axial(mask, spacing_mm)
        return cls(lines.long_mm, lines.short_mm, float(mask.sum() * np.prod(spacing_mm)))

    def off(self, true: Size) -> dict[str, float]:
        """By how much this is larger than the truth: WHAT."""
        mean_mm = (self.long_mm + self.short_mm - true.long_mm - true.short_mm) / 2
        grown = 100 * (self.mm3 / true.mm3 - 1)
        return dict(
            zip(WHAT, (self.long_mm - true.long_mm, self.short_mm - true.short_mm, mean_mm, grown), strict=True)
        )


@dataclass(frozen=True, eq=False)
class Known:
    """A nodule whose outline is known, bool on the box of `volume` that starts there, and its size."""

    volume: Volume
    mask: np.ndarray
    offset_zyx: tuple[int, int, int]
    size: Size
    group: str  # spacing and kernel of a phantom, or the patient
    mark: Candidate  # what the detector reports of it

    def dice(self, one: Candidate) -> float:
        shared = in_common(one.mask, one.offset_zyx, self.mask, self.offset_zyx)
        return 2 * shared / float(one.mask.sum() + self.mask.sum())


# ------------------------------------------------------------------------------------------------------------ phantoms


def slab(seed: int, spacing_mm: tuple[float, float], kernel: str) -> tuple[Volume, list[Ball]]:
    """The middle of a chest, with NODULES nodules. spacing_mm: slice step, pixel."""
    step, pixel = spacing_mm
    rng = np.random.default_rng((seed, 80))
    grid = chest_grid(round(HEIGHT_MM / step), round(WIDTH_MM / pixel), (step, pixel, pixel), "HFS")
    vessels = [tube for side in (-1, 1) for tube in vessel_tree(rng, side)]
    balls = place_nodules(rng, grid, vessels, NODULES, RADII_MM)
    hu = chest_hu(rng, grid, vessels, balls, KERNELS[kernel])
    return Volume(hu, (), (step, pixel, pixel), grid.affine, ()), balls


def ball_mm3(ball: Ball) -> float:
    reach = 1.5 * float(ball.half_axes_mm.max())
    line = np.arange(-reach, reach, FINE_MM)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1) + ball.centre_mm
    return float((ball.depth_mm(points) >= 0).sum() * FINE_MM**3)


def phantoms(pipeline: LungNodule, seed: int) -> Iterator[Known | None]:
    """Every nodule of a slab of each spacing; None for one that is not reported. Three seeds show all kernels."""
    for number, mm in enumerate(track(PHANTOM_MM, f"slabs of seed {seed}")):
        kernel = [*KERNELS][(number + seed) % len(KERNELS)]
        volume, balls = slab(100 * seed + number, mm, kernel)
        marks = pipeline.detector(volume, find_lungs(volume), lambda _share, _what: None).candidates
        for ball in balls:
            truth = ball_lesion(ball, Grid(volume.hu.shape, volume.affine))
            size = Size(truth.long_axis_mm, truth.short_axis_mm, ball_mm3(ball))
            on = [one for one in marks if in_common(one.mask, one.offset_zyx, truth.mask, truth.offset_zyx)]
            best = max(on, key=lambda one: one.certainty, default=None)
            group = f"{mm[0]:g} x {mm[1]:g} mm, {kernel}"
            yield Known(volume, truth.mask, truth.offset_zyx, size, group, best) if best else None


# ------------------------------------------------------------------------------------------------------------- readers


def read(pipeline: LungNodule, volumes: Path, patients: Sequence[str]) -> Iterator[Known | None]:
    """Every nodule volume of these patients; None for one that is not reported."""
    assert isinstance(pipeline.detector, NoduleNetDetector)
    with zipfile.ZipFile(volumes) as archive:
        for name in track(donor_names(archive, patients), "nodule volumes"):
            donor = read_donor(archive, name)
            if why_not_donor(donor) is not None:
                continue
            volume = on_its_pixels(donor)
            found = surest_on(pipeline.detector, donor)
            sure = found is not None and found.score >= pipeline.detector.certainty
            mark = candidate(found, (0, 0, 0), volume) if found is not None and sure else None
            size = Size.of(donor.mask, donor.spacing_mm)
            yield Known(volume, donor.mask, (0, 0, 0), size, donor.patient, mark) if mark else None


# --------------------------------------------------------------------------------------------------------------- parts


def back_and_forth(known: Known) -> Candidate | None:
    """The known outline brought to voxels of 1 mm and back, as a detector's is."""
    first = isotropic(known.mask, known.volume.spacing_mm, known.offset_zyx)
    start = first_voxel(known.offset_zyx, known.volume.spacing_mm)
    there = on_source(first, start, known.volume.spacing_mm, known.volume.hu.shape) if first.any() else None
    return there and Candidate(*there, 1.0)


def parts(pipeline: LungNodule, known: Known) -> dict[str, Candidate | None]:
    """What each part of the way makes of a nodule. None where a mask falls between the voxels."""
    network = pipeline.refiner
    assert network is not None

    def again(mix: Mix | None) -> Candidate:
        within_mm = pipeline.detector.within_mm
        return refine(known.volume, [known.mark], network, side=network.side, within_mm=within_mm, mix=mix)[0].candidate

    return {
        "the known outline, measured": Candidate(known.mask, known.offset_zyx, 1.0),
        "the known outline, to 1 mm and back": back_and_forth(known),
        "NoduleNet's outline": known.mark,
        "the refinement's outline": again(None),
        SERVED: again(pipeline.mix()),
    }


def half_height(known: Known, one: Candidate) -> tuple[float, float] | None:
    """Long axis and mean diameter, in mm, at half height between nodule and lung, on the slice a candidate is measured
    on; None where there is no such border."""
    z = int(one.mask.sum(axis=(1, 2)).argmax())
    hu = known.volume.hu[z + one.offset_zyx[0]].astype(float)
    drawn = np.zeros(hu.shape, bool)
    drawn[one.box[1:]] = one.mask[z]
    spacing_mm = known.volume.spacing_mm[1:]
    try:
        lines = calipers(at_half_height(hu, drawn, spacing_mm)[0], spacing_mm)
    except ValueError:
        return None
    return lines.long_mm, (lines.long_mm + lines.short_mm) / 2


# ------------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Off:
    """How far the parts are off of one nodule: part -> figure -> value."""

    group: str
    cluster: str  # what is drawn as a whole for an interval: patient, or slab
    true_mm: float  # mean diameter
    parts: Mapping[str, Mapping[str, float]]


def off(pipeline: LungNodule, known: Known, cluster: str) -> Off:
    made: dict[str, dict[str, float]] = {}
    border = None
    for name, one in parts(pipeline, known).items():
        if one is not None:
            size = Size.of(one.mask, known.volume.spacing_mm)
            made[name] = {**size.off(known.size), "Dice": known.dice(one)}
            border = half_height(known, one) if name == SERVED else None
    mean_mm = (known.size.long_mm + known.size.short_mm) / 2
    if border is not None:
        made[BORDER] = {WHAT[0]: border[0] - known.size.long_mm, WHAT[2]: border[1] - mean_mm}
    return Off(known.group, cluster, mean_mm, made)


def median(values: np.ndarray, rows: np.ndarray) -> float:
    return float(np.median(values[rows]))


def summary(found: Sequence[Off], part: str) -> dict[str, Any]:
    """Nodules, and of each figure the median with its interval, and the standard deviation.

    The interval is over patients or slabs; of one slab alone over its nodules.
    """
    some = [one for one in found if part in one.parts]
    owners = [one.cluster for one in some]
    owners = owners if len(set(owners)) > 1 else [str(number) for number in range(len(some))]
    made: dict[str, Any] = {"nodules": len(some)}
    for what in some[0].parts[part] if some else ():
        values = np.array([one.parts[part][what] for one in some])
        middle = bootstrap(partial(median, values), owners)
        made[what] = {**middle.rounded(2), "standard deviation": round(float(values.std()), 2)}
    return made


def within(found: Sequence[Off], share: float) -> float:
    """mm within which this share of the served mean diameters lies of the known ones."""
    return float(np.quantile([abs(one.parts[SERVED][WHAT[2]]) for one in found], share))


def margin_mm(groups: Sequence[Sequence[Off]]) -> float:
    """What a size may be off before a category is no longer sure: CLOSE of each group are no farther off; to 0.1."""
    return float(np.ceil(10 * max(within(found, CLOSE) for found in groups) - 1e-9) / 10)


def document(found: Mapping[str, Sequence[Off]], sought: Mapping[str, int]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, some in found.items():
        names = list(dict.fromkeys(part for one in some for part in one.parts))
        made[name] = {
            "nodules": sought[name],
            "reported": len(some),
            "off by": {part: summary(some, part) for part in names},
            f"mean diameter, {CLOSE:.0%} within, mm": round(within(some, CLOSE), 2),
            "as served, by size": {
                label: summary(those, SERVED)
                for label, (low, high) in BANDS.items()
                if (those := [one for one in some if low <= one.true_mm < high])
            },
        }
    made["phantoms"]["as served, by spacing and kernel"] = {
        group: summary([one for one in found["phantoms"] if one.group == group], SERVED)
        for group in sorted({one.group for one in found["phantoms"]})
    }
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=Path, required=True)
    parser.add_argument("--seed", type=int, action="append", help="of phantoms; 2, 3 and 4 unless given")
    given = parser.parse_args(arguments)
    pipeline = LungNodule("cpu", {"threads": 1})
    found: dict[str, list[Off]] = {"readers": [], "phantoms": []}
    sought = dict.fromkeys(found, 0)
    for known in read(pipeline, given.volumes, stored_split()[0]["val"]):
        sought["readers"] += 1
        found["readers"] += [] if known is None else [off(pipeline, known, known.group)]
    for seed in given.seed or SEEDS:
        for known in phantoms(pipeline, seed):
            sought["phantoms"] += 1
            found["phantoms"] += [] if known is None else [off(pipeline, known, f"{known.group} {seed}")]
    weights = pipeline.card.weights_sha256
    write_figures(FILE, document(found, sought), weights, digests([given.volumes]))
    write_text(MARGIN_FILE, json.dumps({"margin_mm": margin_mm([*found.values()])}, indent=1) + "\n")
    print(FILE.read_text())


if __name__ == "__main__":
    main()
