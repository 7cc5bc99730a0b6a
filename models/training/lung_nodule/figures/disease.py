"""What lung-nodule, as served, does with lungs that are not healthy: phantoms whose disease and nodules are known.

    python -m models.training.lung_nodule.figures.disease --phantoms 3

Chests of models.phantoms with each disease in each severity, and healthy ones, once with NODULES nodules and once
without, through the whole pipeline with default options. Nodules in pleural fluid are left out: there are none. A
nodule is found when a finding overlaps it; a finding that overlaps none is a false mark. Within: most of what lies
round the nodule has no air, so that nobody could tell it; beside: something within BESIDE_MM has none. 95 % intervals
by bootstraps over phantoms. Writes lung_disease.json and lung_disease.md into --out, anew after each round of phantoms.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from models.grid import in_common
from models.lung_nodule.pipeline import LungNodule
from models.measure import calipers
from models.phantoms.chest import chest_balls, chest_ct, chest_grid, paint_body
from models.phantoms.chest_anatomy import Ball, Grid, unit
from models.phantoms.chest_disease import AERATED_BELOW_HU, KINDS, SOLID_ABOVE_HU, Disease, Kind, paint_disease
from models.pipeline import UnfitInput
from models.training.evaluation.metrics import Interval, bootstrap, rounded
from models.training.evaluation.provenance import NONE, write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.training.lung_nodule.figures.found import long_axis_mm

FIRST_SEED = 9000  # no set of training phantoms begins so low
SEVERITIES = 0.4, 0.8
HEALTHY = "healthy"
NODULES = 8
SHAPE: dict[str, Any] = {"slices": 104, "size": 340, "spacing_mm": (2.5, 1.0, 1.0)}
CANVAS_MM = 2.0
FLUID_HU = (-5.0, 22.0)  # of an effusion; above is collapsed lung, below its rim: models.phantoms.chest_disease
WITHIN, BESIDE, AIR = "within what has no air", "beside it", "in aerated lung"
BESIDE_MM = 8.0


@dataclass(frozen=True)
class Nodule:
    zone: str
    found: bool
    off_mm: float | None  # long axis less the true one; None where it is not found


@dataclass(frozen=True)
class Looked:
    """A chest with nodules, and the same one without them, as the pipeline reports them."""

    disease: Disease | None
    seed: int
    refused: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    nodules: tuple[Nodule, ...] = ()
    false_marks: int = 0  # with nodules
    false_marks_without: int = 0
    airless_ml: float = 0.0  # what the disease left without air
    said_ml: float = 0.0  # what the pipeline says that it did not look at

    @property
    def told(self) -> bool:
        """Whether the report says that something was not looked at."""
        return any("not looked at" in one for one in self.warnings)


# ---------------------------------------------------------------------------------------------------------- one chest


def canvas(disease: Disease) -> tuple[Grid, np.ndarray, np.ndarray]:
    """(a grid of CANVAS_MM, bool: lung that the disease left without air, bool: what of it is fluid)"""
    grid = chest_grid(135, (100, 150), (CANVAS_MM,) * 3, "HFS")
    hu = np.empty(grid.shape, np.float32)
    x, y, z = np.moveaxis(grid.points(tuple(slice(0, n) for n in grid.shape)), -1, 0)
    for one, *place in zip(hu, x, y, z, strict=True):
        paint_body(one, *place)
    aerated = hu < AERATED_BELOW_HU
    paint_disease(hu, grid, disease)
    airless = aerated & (hu > SOLID_ABOVE_HU)
    low, high = FLUID_HU
    return grid, airless, airless & (hu > low) & (hu < high) & (disease.kind == "effusion")


def zone_of(ball: Ball, grid: Grid, airless: np.ndarray, fluid: np.ndarray) -> str | None:
    """Where a nodule lies; None for one in pleural fluid."""
    directions = np.array([unit(one) for one in np.random.default_rng(0).normal(size=(200, 3))])

    def at(beyond_mm: float) -> tuple[np.ndarray, ...]:
        places = ball.centre_mm + directions * (float(ball.half_axes_mm.mean()) + beyond_mm)
        index = np.rint((places - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T).astype(int)
        return tuple(np.clip(index, 0, np.array(grid.shape) - 1).T)

    if fluid[at(0)].mean() > 0.1:
        return None
    if airless[at(2)].mean() >= 0.5:
        return WITHIN
    return BESIDE if any(airless[at(mm)].any() for mm in (2, 5, BESIDE_MM)) else AIR


def look(pipeline: LungNodule, seed: int, disease: Disease | None) -> Looked:
    balls, zones, airless_ml = chest_balls(seed, NODULES), [AIR] * NODULES, 0.0
    if disease is not None:
        grid, airless, fluid = canvas(disease)
        placed = [(ball, zone) for ball in balls if (zone := zone_of(ball, grid, airless, fluid))]
        balls, zones = [ball for ball, _ in placed], [zone for _, zone in placed]
        airless_ml = float(airless.sum()) * CANVAS_MM**3 / 1000
    refused, reported = [], []
    for some in (balls, []):
        with tempfile.TemporaryDirectory() as folder:
            truth = chest_ct(Path(folder), seed=seed, balls=some, disease=disease, **SHAPE)
            try:
                reported.append((truth, pipeline.run(truth.files, lambda _share, _what: None)))
            except UnfitInput as error:
                refused.append(str(error))
    if refused:
        return Looked(disease, seed, tuple(refused), airless_ml=airless_ml)
    (truth, made), (_, bare) = reported
    nodules, taken = [], set()
    for lesion, zone in zip(truth.lesions, zones, strict=True):
        shared = [in_common(lesion.mask, lesion.offset_zyx, one.mask, one.offset_zyx) for one in made.findings]
        hits = [number for number, voxels in enumerate(shared) if voxels]
        taken |= set(hits)
        off_mm = None
        if hits:
            best = made.findings[max(hits, key=lambda number: shared[number])]
            middle = lesion.mask[int(lesion.mask.sum(axis=(1, 2)).argmax())]
            off_mm = long_axis_mm(best) - calipers(middle, SHAPE["spacing_mm"][1:]).long_mm
        nodules.append(Nodule(zone, bool(hits), off_mm))
    return Looked(
        disease,
        seed,
        warnings=made.warnings,
        nodules=tuple(nodules),
        false_marks=len(made.findings) - len(taken),
        false_marks_without=len(bare.findings),
        airless_ml=airless_ml,
        said_ml=float(made.facts["not_looked_at_ml"]),
    )


# ------------------------------------------------------------------------------------------------------------- figures


def figures(looked: Sequence[Looked]) -> dict[str, Any]:
    """Of the phantoms of one disease and severity, intervals over phantoms; nothing of what there is none of."""
    seen = [one for one in looked if not one.refused]
    made: dict[str, Any] = {
        "phantoms": len(looked),
        "refused": len(looked) - len(seen),
        "refused in the words": sorted({words for one in looked for words in one.refused}),
        "told that something was not looked at": sum(one.told for one in seen),
        "too many candidates": sum(any("candidates were found" in words for words in one.warnings) for one in seen),
    }
    means: dict[str, Callable[[Looked], Sequence[float]]] = {
        "false marks with nodules": lambda one: [one.false_marks],
        "false marks without nodules": lambda one: [one.false_marks_without],
        "lost air, ml": lambda one: [one.airless_ml],
        "said to be lost, ml": lambda one: [one.said_ml],
    }
    if seen:
        made |= rounded({what: over(seen, f) for what, f in means.items()}, 2)
    for zone in (AIR, BESIDE, WITHIN):
        inside = [replace(one, nodules=tuple(n for n in one.nodules if n.zone == zone)) for one in seen]
        if count := sum(len(one.nodules) for one in inside):
            found = over(inside, lambda one: [float(n.found) for n in one.nodules])
            silent = sum(not n.found for one in inside if not one.told for n in one.nodules)
            made[zone] = {"nodules": count, **rounded({"found": found}), "missed without a word": silent}
    off = over(seen, lambda one: [n.off_mm for n in one.nodules if n.off_mm is not None])
    return made | (rounded({"long axis less the true one, mm": off}, 2) if np.isfinite(off.value) else {})


def over(looked: Sequence[Looked], values_of: Callable[[Looked], Sequence[float]]) -> Interval:
    """The mean of all values, with its interval over phantoms; nan where there are none."""
    values = [values_of(one) for one in looked]

    def mean(rows: np.ndarray) -> float:
        some = [value for row in rows for value in values[row]]
        return float(np.mean(some)) if some else float("nan")

    if not any(values):
        return Interval(*[float("nan")] * 3)
    return bootstrap(mean, [str(one.seed) for one in looked])


def name_of(disease: Disease | None) -> str:
    return HEALTHY if disease is None else f"{disease.kind}, severity {disease.severity:g}"


def page(made: Mapping[str, Any]) -> str:
    """The Markdown of what was measured."""
    rows, zones, words = [], [], []
    for name, one in made["chests"].items():
        number, shown = one["phantoms"], one["phantoms"] - one["refused"]
        words += [f"- {name}: {text}" for text in one["refused in the words"]]
        if shown:
            rows.append(
                [name, str(number), str(one["refused"])]
                + [cell(one[f"false marks {how} nodules"], ".1f") for how in ("with", "without")]
                + [cell(one[what], ".0f") for what in ("lost air, ml", "said to be lost, ml")]
                + [f"{one['told that something was not looked at']} of {shown}"]
                + [cell(one[what], ".2f") if (what := "long axis less the true one, mm") in one else ""]
            )
        zones += [
            [name, zone, str(part["nodules"]), cell(part["found"], ".3f"), str(part["missed without a word"])]
            for zone in (AIR, BESIDE, WITHIN)
            if (part := one.get(zone))
        ]
    return (
        "\n\n".join(
            [
                "# Lungs that are not healthy",
                "Phantoms of models/phantoms, of which disease, nodules and sizes are known, through lung-nodule with"
                f" default options: up to {NODULES} nodules each, and the same chests without any. They are drawings,"
                " not patients: what a rule says of them holds for rules, what a network finds in them says little of"
                " its sensitivity in patients. 95 % intervals by 1000 bootstraps over phantoms.",
                sheet(
                    [
                        "",
                        "phantoms",
                        "refused",
                        "false marks, with nodules",
                        "without",
                        "lost air, ml",
                        "said to be lost, ml",
                        "told of it",
                        "long axis less the true one, mm",
                    ],
                    rows,
                ),
                "Said to be lost is what lies between lung and ribs where the lungs are widest: of a drawn chest, whose"
                " ribs do not taper with its lungs, some in health, too.",
                *(["Refused:", "\n".join(words)] if words else []),
                f"Nodules by where they lie: within, where most of what is round them has no air; beside, within"
                f" {BESIDE_MM:g} mm of that. Missed without a word: not found, and no warning that something was not"
                " looked at.",
                sheet(["", "where", "nodules", "found", "missed without a word"], zones),
            ]
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=3, help="of each disease and severity")
    parser.add_argument("--kind", action="append", choices=[HEALTHY, *KINDS], help="these alone; repeat it")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args(arguments)
    kinds = given.kind or [HEALTHY, *KINDS]
    ill = [(kind, severity) for kind in KINDS if kind in kinds for severity in SEVERITIES]
    asked: list[tuple[Kind | None, float]] = [*([(None, 0.0)] if HEALTHY in kinds else []), *ill]
    pipeline = LungNodule("cpu")
    given.out.mkdir(parents=True, exist_ok=True)
    looked: dict[str, list[Looked]] = {}
    for number in range(given.phantoms):
        seed = FIRST_SEED + number
        for kind, severity in track(asked, f"round {number + 1}"):
            disease = None if kind is None else Disease(kind, severity, seed)
            looked.setdefault(name_of(disease), []).append(look(pipeline, seed, disease))
        made = {
            "first_seed": FIRST_SEED,
            "rounds": number + 1,
            "chests": {name: figures(some) for name, some in looked.items()},
        }
        path = given.out / "lung_disease.json"
        write_figures(path, made, pipeline.card.weights_sha256, NONE)
        write_text(path.with_suffix(".md"), page(made))
    print(page(made))


if __name__ == "__main__":
    main()
