"""The figures of each hospital by itself, of the pipeline as it is served, on a part of hospitals_split.json.

    python -m models.training.breast_us.judge_hospitals answers --data FOLDER --part val --out runs/judged
    ... judge_hospitals answers --data FOLDER --part val --out runs/judged --shown "black margins"
    python -m models.training.breast_us.judge_hospitals figures --data FOLDER --out runs/judged --to docs/results/NAME

`answers` asks the pipeline and keeps what it says, image by image, so that a killed run goes on; `figures` makes the
tables of all that is kept. What is chosen (a temperature for each hospital, the probability above which a lesion is
called malignant) is chosen on val. A look at the test part is counted first, by hand, in docs/results/looks.csv.
Intervals: 1000 draws of families (BUS-BRA: cases and their look-alikes; BUSI, which has no patient ids: look-alikes).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from models.breast_us.pipeline import PRIOR_POWER, TRAINED_ON, WEIGHTS, BreastUltrasound
from models.nets.breast_triple import CLASSES
from models.training.breast_us.acquisition import paint_calipers
from models.training.breast_us.calibrate import at, fit
from models.training.breast_us.cross_validate import read_rows
from models.training.breast_us.evaluate import judge_one
from models.training.breast_us.hospitals import HOSPITALS, Picture, divided, family_of, read_hospitals
from models.training.breast_us.judged import Judged
from models.training.breast_us.two_hospitals import BUS_BRA_FILE, BUSI_FILE
from models.training.breast_us.worst_cases import (
    BRIGHT,
    DARK_AROUND,
    FAINT,
    SMALL_SHARE,
    burned_in,
    contrast,
    touches_border,
    worst_cases,
)  # fmt: skip
from models.training.evaluation.metrics import Interval, accuracy, auc, bootstrap, calibration_error, rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.files import write_text
from models.weights import load, packed

NORMAL, BENIGN, MALIGNANT = (CLASSES.index(name) for name in ("normal", "benign", "malignant"))
PARTS = ("val", "test")
WANTED = 0.95  # of the cancers in val: where the operating point is set
LARGE_SHARE = 0.12  # of the image
BOTH = "both"  # hospitals together
SERVED_PRIOR = "the mix of BUSI's former training part, as served"


# ---- how a picture may be shown


def painted(one: Picture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Calipers drawn at the lesion, or anywhere where there is none."""
    grey = np.ascontiguousarray(one.pixels, np.float32) / 255
    side = max(grey.shape)
    square, lesion = np.zeros((side, side), np.float32), np.zeros((side, side), bool)
    square[: grey.shape[0], : grey.shape[1]], lesion[: grey.shape[0], : grey.shape[1]] = grey, one.mask
    paint_calipers(square, lesion, rng)
    return (square[: grey.shape[0], : grey.shape[1]] * 255).astype(np.uint8), one.mask


def cleaned(one: Picture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Thin white marks painted over with what is round them."""
    around = ndimage.median_filter(one.pixels, 11)
    thin = (one.pixels >= BRIGHT) & (ndimage.median_filter(one.pixels, 7) < DARK_AROUND)
    return np.where(ndimage.binary_dilation(thin, iterations=2), around, one.pixels), one.mask


def framed(one: Picture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Black margins, of up to half the side each."""
    high, wide = one.pixels.shape
    top, bottom, left, right = (int(rng.uniform(0, 0.5) * side) for side in (high, high, wide, wide))
    around = ((top, bottom), (left, right))
    return np.pad(one.pixels, around), np.pad(one.mask, around)


SHOWN: Mapping[str, Callable[[Picture, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "as it is": lambda one, rng: (one.pixels, one.mask),
    "calipers drawn in": painted,
    "white marks painted over": cleaned,
    "black margins": framed,
}


# ---- answers


def ask(pipeline: BreastUltrasound, pictures: Sequence[Picture], shown: str, file: Path) -> None:
    """Add what the pipeline says of those that the file does not hold yet, a line each."""
    known = {json.loads(line)["name"] for line in file.read_text("utf-8").splitlines()} if file.exists() else set()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        for number, one in enumerate(pictures):
            if one.name in known:
                continue
            pixels, mask = SHOWN[shown](one, np.random.default_rng(number))
            row = judge_one(one.name, one.label, pipeline.look(pixels), mask)
            lines.write(json.dumps(asdict(row)) + "\n")
            lines.flush()


def answers_in(folder: Path) -> dict[tuple[str, str], list[Judged]]:
    """(part, how shown) -> answers, by name"""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        part, shown = file.stem.split("_", 1)
        rows = read_rows([json.loads(line) for line in file.read_text("utf-8").splitlines()])
        found[part, shown.replace("_", " ")] = sorted(rows, key=lambda row: row.name)
    return found


# ---- figures


@dataclass(frozen=True, eq=False)
class Told:
    """Answers to the pictures of one hospital."""

    rows: Sequence[Judged]
    families: Sequence[str]

    @property
    def labels(self) -> np.ndarray:
        return np.array([row.label for row in self.rows])

    @property
    def shares(self) -> np.ndarray:
        return np.array([row.shares for row in self.rows])

    @property
    def suspicion(self) -> np.ndarray:
        """Of malignant against benign, whatever is said of normal: (N,)"""
        shares = np.maximum(self.shares, 1e-9)
        return shares[:, MALIGNANT] / (shares[:, BENIGN] + shares[:, MALIGNANT])

    def only(self, chosen: np.ndarray) -> Told:
        return Told([r for r, c in zip(self.rows, chosen, strict=True) if c],
                    [f for f, c in zip(self.families, chosen, strict=True) if c])  # fmt: skip


def operating_point(told: Told) -> float:
    """The largest threshold on the suspicion that calls WANTED of the cancers malignant."""
    cancers = np.sort(told.suspicion[told.labels == MALIGNANT])
    return float(cancers[int((1 - WANTED) * len(cancers))])


def figures(
    told: Told,
    point: float | None = None,
    temperature: float | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> dict[str, Interval]:
    """Of one hospital; those of the operating point and the temperature where these are given."""
    labels, shares, suspicion = told.labels, told.shares, told.suspicion
    called, lesion = shares.argmax(axis=1), labels != NORMAL
    made: dict[str, Interval] = {}

    def over(name: str, chosen: np.ndarray, figure: Callable[[np.ndarray], float]) -> None:
        rows = np.flatnonzero(chosen)
        if len(rows) and wanted(name):
            made[name] = bootstrap(lambda drawn: figure(rows[drawn]), [told.families[int(row)] for row in rows])

    mean = lambda values: lambda rows: float(np.asarray(values, float)[rows].mean())  # noqa: E731
    over("Dice, lesion images", lesion, mean([row.dice for row in told.rows]))
    over("IoU, lesion images", lesion, mean([row.iou for row in told.rows]))
    over("lesion images with Dice above 0.5", lesion, mean([row.dice > 0.5 for row in told.rows]))
    over("normal images without a finding", ~lesion, mean([row.empty for row in told.rows]))
    over("lesion images without a finding", lesion, mean([row.empty for row in told.rows]))
    over("accuracy", labels >= 0, lambda rows: accuracy(called[rows], labels[rows]))
    over("AUC, malignant against benign", lesion, lambda rows: auc(suspicion[rows], labels[rows] == MALIGNANT))
    if not lesion.all():
        over("AUC, normal against lesion", labels >= 0, lambda rows: auc(shares[rows, NORMAL], labels[rows] == NORMAL))
        over("macro AUC, one against rest", labels >= 0, partial(macro_auc, shares, labels))
    over("sensitivity for malignant, most probable class", labels == MALIGNANT, mean(called == MALIGNANT))
    over("specificity for malignant, most probable class", labels != MALIGNANT, mean(called != MALIGNANT))
    over("cancers called normal", labels == MALIGNANT, mean(called == NORMAL))
    if point is not None:
        over("sensitivity at the operating point", labels == MALIGNANT, mean(suspicion >= point))
        over("specificity at the operating point, benign", labels == BENIGN, mean(suspicion < point))
    tempered = None if temperature is None else at(shares, temperature)
    for name, used in {"": shares, ", at the hospital's temperature": tempered}.items():
        if used is not None:
            over(f"expected calibration error{name}", labels >= 0, partial(miscalibration, used, labels))
    return made


def macro_auc(shares: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> float:
    """Mean over the classes of the AUC of each against the others, of these rows: (N, 3), (N), (M,)"""
    return float(np.mean([auc(shares[rows, label], labels[rows] == label) for label in range(len(CLASSES))]))


def miscalibration(shares: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> float:
    """Expected calibration error of the class called, of these rows: (N, 3), (N), (M,)"""
    used = shares[rows]
    return calibration_error(used.max(axis=1), used.argmax(axis=1) == labels[rows])


def groups(pictures: Sequence[Picture]) -> Iterator[tuple[str, np.ndarray]]:
    """What the pictures of a hospital are told apart by."""
    share = np.array([one.mask.mean() for one in pictures])
    clear = [contrast(one.pixels, one.mask) for one in pictures]
    yield "small lesion, below 2 % of the image", (share > 0) & (share < SMALL_SHARE)
    yield "lesion of 2 to 12 %", (share >= SMALL_SHARE) & (share < LARGE_SHARE)
    yield "large lesion, from 12 %", share >= LARGE_SHARE
    yield "lesion at the border of the image", np.array([touches_border(one.mask) for one in pictures])
    yield "faint lesion", np.array([value is not None and value < FAINT for value in clear])
    yield "white marks burnt in", np.array([burned_in(one.pixels, one.mask) for one in pictures])
    for kind in ("device", "birads"):
        for value in sorted({getattr(one, kind) for one in pictures} - {""}):
            yield (
                f"{'BI-RADS ' * (kind == 'birads')}{value}",
                np.array([getattr(one, kind) == value for one in pictures]),
            )


def tables(pictures: Sequence[Picture], folder: Path, learnt: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Everything that is kept in the folder, by part, hospital, and how the pictures were shown.

    learnt   images of each class that the weights learnt from: val is told with that mix as the class prior, too
    """
    told = answers_in(folder)
    by_name = {one.name: one for one in pictures}
    family = dict(zip(by_name, family_of(list(by_name.values())), strict=True))

    def of(part: str, shown: str, hospital: str) -> Told:
        rows = [row for row in told.get((part, shown), []) if hospital == BOTH or row.name.startswith(f"{hospital}/")]
        return Told(rows, [family[row.name] for row in rows])

    chosen = {h: of("val", "as it is", h) for h in HOSPITALS}
    pooled = of("val", "as it is", BOTH)
    point = operating_point(pooled) if pooled.rows else None
    heat = {h: fit(t.shares, t.labels).temperature for h, t in chosen.items() if t.rows}
    made: dict[str, Any] = {"operating point": point, "temperatures": heat}
    for part, shown in told:
        for hospital in (*HOSPITALS, BOTH) if shown == "as it is" else HOSPITALS:
            one = of(part, shown, hospital)
            if not one.rows:
                continue
            entry: dict[str, Any] = {"images": len(one.rows), "families": len(set(one.families))}
            entry["figures"] = rounded(figures(one, point, heat.get(hospital)))
            if shown == "as it is" and hospital != BOTH:
                seen = [by_name[row.name] for row in one.rows]
                entry["groups"] = {
                    name: {"images": int(which.sum()), **rounded(brief(one.only(which), point))}
                    for name, which in groups(seen)
                    if which.sum() >= 5
                }
            made.setdefault(part, {}).setdefault(shown, {})[hospital] = entry
    if learnt and pooled.rows:
        made["class priors, val"] = {
            name: {hospital: rounded(by_class(at_prior(one, prior))) for hospital, one in chosen.items() if one.rows}
            for name, prior in priors(learnt).items()
        }
    return made


def priors(learnt: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What the class probabilities may be multiplied by, in the order of CLASSES: the served one first."""
    mixes = {SERVED_PRIOR: TRAINED_ON, "the mix of the images learnt from": learnt, "none": dict.fromkeys(CLASSES, 1)}
    return {name: np.array([mix[label] for label in CLASSES]) / sum(mix.values()) for name, mix in mixes.items()}


def at_prior(told: Told, prior: np.ndarray) -> Told:
    """The same answers, had the pipeline multiplied by this prior (3,) instead of the one that it serves with."""
    shares = told.shares / priors(TRAINED_ON)[SERVED_PRIOR] ** PRIOR_POWER * prior
    shares /= shares.sum(axis=1, keepdims=True)
    return Told([replace(row, shares=tuple(one)) for row, one in zip(told.rows, shares.tolist(), strict=True)],
                told.families)  # fmt: skip


BY_CLASS = (
    "accuracy", "sensitivity for malignant, most probable class", "specificity for malignant, most probable class",
    "cancers called normal", "expected calibration error",
)  # fmt: skip
NORMALS = "normal images called normal"


def by_class(told: Told) -> dict[str, Interval]:
    """The figures that the class probabilities alone decide, and the share of normal images called normal."""
    made = figures(told, wanted=BY_CLASS.__contains__)
    normal = told.labels == NORMAL
    if normal.any():
        called = (told.only(normal).shares.argmax(axis=1) == NORMAL).astype(float)
        families = [family for family, one in zip(told.families, normal, strict=True) if one]
        made[NORMALS] = bootstrap(lambda drawn: float(called[drawn].mean()), families)
    return made


BRIEF = (
    "Dice, lesion images", "AUC, malignant against benign", "sensitivity at the operating point",
    "specificity at the operating point, benign",
)  # fmt: skip


def brief(told: Told, point: float | None) -> dict[str, Interval]:
    made = figures(told, point, wanted=BRIEF.__contains__)
    return {name: one for name, one in made.items() if one.value == one.value}  # no AUC without both classes


def page(made: Mapping[str, Any], title: str) -> str:
    """The same as Markdown."""
    lines = [f"# {title}", ""]
    say = lambda one: f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"  # noqa: E731
    point = made["operating point"]
    if point is not None:
        heat = ", ".join(f"{hospital} {value:.2f}" for hospital, value in made["temperatures"].items())
        lines += [
            f"Chosen on val: malignant from {point:.3f} of P(malignant) / (P(benign) + P(malignant)), which"
            f" {WANTED:.0%} of the cancers of both hospitals reach; temperatures {heat}.",
            "",
        ]
    for part in (name for name in ("test", "val") if name in made):
        for shown, entries in made[part].items():
            names = list(dict.fromkeys(name for entry in entries.values() for name in entry["figures"]))
            heads = [f"{h}, {e['images']} images, {e['families']} families" for h, e in entries.items()]
            lines += [f"## {part}, {shown}", "", "| | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
            for name in names:
                cells = [say(e["figures"][name]) if name in e["figures"] else "" for e in entries.values()]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
            lines.append("")
            for hospital, entry in entries.items():
                if entry.get("groups"):
                    lines += [f"{hospital}, {part}:", "", "| | images | " + " | ".join(BRIEF) + " |"]
                    lines.append("| --- " * (len(BRIEF) + 2) + "|")
                    for name, of in entry["groups"].items():
                        cells = [say(of[figure]) if figure in of else "" for figure in BRIEF]
                        lines.append(f"| {name} | {of['images']} | " + " | ".join(cells) + " |")
                    lines.append("")
    if "class priors, val" in made:
        names = [*BY_CLASS, NORMALS]
        lines += ["## val, other class priors", "", f"| | hospital | {' | '.join(names)} |"]
        lines.append("| --- " * (len(names) + 2) + "|")
        for prior, entries in made["class priors, val"].items():
            for hospital, of in entries.items():
                cells = [say(of[n]) if n in of else "" for n in names]
                lines.append(f"| {prior} | {hospital} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.breast_us.judge_hospitals", description="Judge each hospital by itself."
    )
    parser.add_argument("what", choices=("answers", "figures"))
    parser.add_argument("--data", type=Path, required=True, help=f"a folder with {BUSI_FILE} and {BUS_BRA_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="the folder of answers; one for each set of weights")
    parser.add_argument("--part", default="val", choices=PARTS)
    parser.add_argument("--shown", default="as it is", choices=sorted(SHOWN))
    parser.add_argument("--weights", type=Path, default=packed("breast_us", WEIGHTS[0]))
    parser.add_argument("--to", type=Path, help="figures: NAME.json and NAME.md")
    parser.add_argument("--title", default="breast-us: each hospital by itself")
    given = parser.parse_args(arguments)

    pictures = read_hospitals(given.data / BUSI_FILE, given.data / BUS_BRA_FILE)
    parts, split_sha256 = divided(pictures)
    if given.what == "answers":
        pipeline = BreastUltrasound("cpu", {"threads": 1}, weights=[given.weights])
        ask(pipeline, parts[given.part], given.shown, given.out / f"{given.part}_{given.shown.replace(' ', '_')}.jsonl")
        return
    learnt = Counter(CLASSES[one.label] for one in parts["train"])
    made = tables([*parts["val"], *parts["test"]], given.out, learnt)
    files = (given.data / BUSI_FILE, given.data / BUS_BRA_FILE)
    document = {
        "split_sha256": split_sha256,
        **made,
    }
    loaded = load(given.weights)
    text = page(made, given.title)
    if rows := answers_in(given.out).get(("test", "as it is")):
        text += f"\n## Ten worst cases of test\n\n{worst_cases(rows, {one.name: one for one in parts['test']})}"
    print(text)
    if given.to:
        write_figures(given.to.with_suffix(".json"), document, {loaded.name: loaded.sha256}, digests(files))
        write_text(given.to.with_suffix(".md"), text)


if __name__ == "__main__":
    main(sys.argv[1:])
