"""BUSI's test images, those that look most like training images by themselves.

    python -m models.training.breast_us.judge_hospitals answers --data FOLDER --part test --out runs/judged
    python -m models.training.breast_us.near_training --data FOLDER --out runs/judged

BUSI has no patient ids. By the rule of hospitals_split.json no test image looks like a training image; two pictures of
one patient may be less alike than that. So the answers of the served weights are told again without the test images
that a looser rule takes for look-alikes of a training image, and of these alone. A looser rule takes strangers, too:
how many, images of another hospital show. Writes docs/results/breast_us_hospitals_alike.json and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.breast_us.pipeline import WEIGHTS
from models.training.breast_us.hospitals import ALIKE, ALIKE_BITS, Picture, divided, family_of, read_hospitals
from models.training.breast_us.judge_hospitals import Told, answers_in, figures
from models.training.breast_us.look_alikes import correlated, hashed_alike
from models.training.breast_us.two_hospitals import BUS_BRA_FILE, BUSI_FILE
from models.training.evaluation.metrics import rounded
from models.training.evaluation.provenance import digests, write_figures
from models.training.evaluation.tables import cell, sheet
from models.training.files import write_text
from models.weights import load, packed

FILE = Path(__file__).parents[3] / "docs/results/breast_us_hospitals_alike.json"
RULES = ((ALIKE, ALIKE_BITS), (0.7, 10), (0.65, 12))  # correlation above it, or hashes within so many bits
TOLD = (
    "Dice, lesion images", "normal images without a finding", "accuracy", "AUC, malignant against benign",
    "sensitivity for malignant, most probable class",
)  # fmt: skip


def alike(asked: Sequence[np.ndarray], known: Sequence[np.ndarray]) -> dict[tuple[float, int], np.ndarray]:
    """For each of RULES which of the pictures asked for look like a known one: bool (asked,); all uint8 (y, x)"""
    both = [*asked, *known]
    correlation = correlated(both)
    found = {}
    for above, bits in RULES:
        pairs = {pair for pair, value in correlation.items() if value > above} | hashed_alike(both, bits)
        like = np.zeros(len(asked), bool)
        like[[a for a, b in pairs if a < len(asked) <= b]] = True
        found[above, bits] = like
    return found


def told_apart(told: Told, like: Mapping[tuple[float, int], np.ndarray]) -> dict[str, Any]:
    """Of all, and for each rule without and with the look-alikes alone."""
    every = np.ones(len(told.rows), bool)
    groups = {"all": every}
    for (above, bits), one in like.items():
        groups[f"without, above {above:g} or {bits} bits"] = ~one
        groups[f"these alone, above {above:g} or {bits} bits"] = one
    made: dict[str, Any] = {}
    for name, chosen in groups.items():
        made[name] = {"images": int(chosen.sum())}
        if chosen.any():
            found = figures(told.only(chosen), wanted=TOLD.__contains__)
            made[name] |= rounded({what: one for what, one in found.items() if one.value == one.value}, 3)
    return made


def page(made: Mapping[str, Any]) -> str:
    rows = [
        [name, str(one["images"]), *(cell(one.get(what), ".3f") for what in TOLD)] for name, one in made["test"].items()
    ]
    strangers = "; ".join(f"{name}: {share:.1%}" for name, share in made["strangers"].items())
    return (
        "# breast-us: BUSI's test images by how much they look like training images\n\n"
        "Answers of the served weights. An image is left out when it looks like one of BUSI's training images: a"
        " correlation after alignment above, or perceptual hashes within so many bits of, what the row says; the first"
        " rule is that of the split. Of BUS-BRA's test images, which are of other patients for sure, as many look like"
        f" one of BUSI's training images by each rule: {strangers}.\n\n{sheet(['', 'images', *TOLD], rows)}\n"
    )


def of_busi(pictures: Sequence[Picture]) -> list[Picture]:
    return [one for one in pictures if one.hospital == "busi"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"a folder with {BUSI_FILE} and {BUS_BRA_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="the folder of answers")
    given = parser.parse_args(arguments)
    files = [given.data / BUSI_FILE, given.data / BUS_BRA_FILE]
    parts, split_sha256 = divided(read_hospitals(*files))
    known = [one.pixels for one in of_busi(parts["train"])]
    asked = of_busi(parts["test"])
    strangers = [one for one in parts["test"] if one.hospital != "busi"]
    rows = {row.name: row for row in answers_in(given.out)["test", "as it is"]}
    told = Told([rows[one.name] for one in asked], family_of(asked))
    like = alike([one.pixels for one in [*asked, *strangers]], known)
    own = {rule: one[: len(asked)] for rule, one in like.items()}
    loaded = load(packed("breast_us", WEIGHTS[0]))
    made = {
        "split_sha256": split_sha256,
        "strangers": {
            f"above {above:g} or {bits} bits": round(float(one[len(asked) :].mean()), 4)
            for (above, bits), one in like.items()
        },
        "test": told_apart(told, own),
    }
    write_figures(FILE, made, {loaded.name: loaded.sha256}, digests(files))
    write_text(FILE.with_suffix(".md"), page(made))
    print(page(made))


if __name__ == "__main__":
    main()
