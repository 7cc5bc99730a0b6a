"""Two hospitals: BUSI (Cairo) and BUS-BRA (Rio de Janeiro), read, grouped, split once and for all.

    python -m models.training.breast_us.hospitals --busi busi.zip --bus-bra bus_bra.zip    # write the split again

BUS-BRA: Gomez-Flores, Gregorio-Calas, Pereira, "BUS-BRA: A breast ultrasound dataset for assessing computer-aided
diagnosis systems", Medical Physics 51 (2024) 3110. Four scanners, classes by biopsy, BI-RADS; no normal images. It is
split by case, never by image; a case has at most one picture of each side or two of one.
BUSI has no patient ids: its images keep the part of split.json (whatever was trained on stays trained on), unless they
look like one of another part by the stricter rule of look_alikes.py; then both go where more is known of them: to
training before validation before the test.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.breast_us.margins import without_margins
from models.nets.breast_triple import CLASSES
from models.training.breast_us.data import SHARES, Labelled, _grey, read_busi, read_split
from models.training.breast_us.look_alikes import Pair, correlated, grouped, hashed_alike
from models.training.files import write_text
from models.training.layouts import UnknownLayout, open_root

SPLIT_FILE = Path(__file__).with_name("hospitals_split.json")
SEED = 5
HOSPITALS = ("busi", "bus_bra")
PARTS = ("train", "val", "test", "left_out")

# Of 964 886 pairs of a BUSI with a BUS-BRA image, strangers all, 11 correlate more and 4 have hashes nearer than this.
ALIKE = 0.75
ALIKE_BITS = 8


@dataclass(frozen=True, eq=False)
class Picture(Labelled):
    """An image with where it comes from; the name begins with the hospital: "bus_bra/malignant/bus_0001-l.jpg"."""

    case: str = ""  # of the patient; "" where the hospital tells none
    device: str = ""
    birads: str = ""
    histology: str = ""
    original: tuple[int, int] = (0, 0)  # rows and columns before the set was reduced

    @property
    def hospital(self) -> str:
        return self.name.split("/")[0]


def read_bus_bra(path: Path) -> list[Picture]:
    """Every image, in the order of its index.csv. Raises UnknownLayout in words."""
    root = open_root(path)
    index = root / "index.csv"
    rows = list(csv.DictReader(io.StringIO(index.read_text("utf-8")))) if index.is_file() else []
    if not rows or not {"file", "case", "pathology", "device", "birads"} <= set(rows[0]):
        raise UnknownLayout(f"{path} has no index.csv with file, case, pathology, device and birads")
    return [
        Picture(
            f"bus_bra/{row['file']}",
            CLASSES.index(row["pathology"]),
            _grey(root / row["file"]),
            _grey(root / f"{row['file'].removesuffix('.jpg')}_mask.png") > 127,
            case=row["case"],
            device=row["device"].split(" @")[0],
            birads=row["birads"],
            histology=row["histology"],
            original=(int(row["original_rows"]), int(row["original_columns"])),
        )
        for row in rows
    ]


def read_hospitals(busi: Path, bus_bra: Path) -> list[Picture]:
    """The images of both, by name; black margins cut off, as the pipeline does before it looks."""
    cairo = [Picture(f"busi/{one.name}", one.label, one.pixels, one.mask) for one in read_busi(busi)]
    return [trimmed(one) for one in sorted([*cairo, *read_bus_bra(bus_bra)], key=lambda one: one.name)]


def trimmed(one: Picture) -> Picture:
    """The same without black margins. Where a mask reaches into one it stays: a reader saw something there."""
    kept = without_margins(one.pixels)
    if one.mask.sum() != one.mask[kept].sum():
        return one
    facts = {name: getattr(one, name) for name in ("case", "device", "birads", "histology", "original")}
    return Picture(one.name, one.label, one.pixels[kept].copy(), one.mask[kept].copy(), **facts)


# ---- the split


def links(pictures: Sequence[Picture]) -> tuple[set[Pair], dict[Pair, str]]:
    """Pairs of look-alikes, and how each is one, in words."""
    pixels = [one.pixels for one in pictures]
    said = {pair: f"correlation {value:.2f}" for pair, value in correlated(pixels).items() if value > ALIKE}
    for pair in hashed_alike(pixels, ALIKE_BITS):
        said[pair] = f"{said[pair]} and hash" if pair in said else "hash"
    return set(said), said


def contradictions(pictures: Sequence[Picture], said: Mapping[Pair, str]) -> dict[str, str]:
    """Name -> why it is left out: a look-alike of another class in the same hospital, and no biopsy says who is right.

    BUS-BRA's classes are biopsies of known cases: look-alikes of two cases there are two cases."""
    reasons: dict[str, str] = {}
    for (a, b), how in sorted(said.items()):
        one, other = pictures[a], pictures[b]
        if one.hospital == other.hospital == "busi" and one.label != other.label:
            reasons.setdefault(one.name, f"looks like {other.name}, which is {CLASSES[other.label]} ({how})")
            reasons.setdefault(other.name, f"looks like {one.name}, which is {CLASSES[one.label]} ({how})")
    return reasons


def make_split(pictures: Sequence[Picture], said: Mapping[Pair, str]) -> dict[str, Any]:
    """What hospitals_split.json holds, but for its digest."""
    left_out = contradictions(pictures, said)
    former = {f"busi/{name}": part for part, names in read_split().items() for name in names}
    for name, part in former.items():
        if part == "left_out":
            left_out.setdefault(name, "looks like one of another class by the rule of split.json")
    kept = [i for i, one in enumerate(pictures) if one.name not in left_out]
    by_case: dict[str, list[int]] = defaultdict(list)
    for i in kept:
        if pictures[i].case:
            by_case[pictures[i].case].append(i)
    ties = [(case[0], other) for case in by_case.values() for other in case[1:]]
    alike = [(a, b) for a, b in sorted(said) if pictures[a].name not in left_out and pictures[b].name not in left_out]
    chosen = set(kept)
    families = [group for group in grouped(len(pictures), [*ties, *alike]) if chosen.issuperset(group)]
    split: dict[str, list[str]] = {part: [] for part in PARTS}
    free: list[list[int]] = []
    for family in families:
        homes = {former[pictures[i].name] for i in family if pictures[i].name in former}
        if homes:
            split[next(part for part in PARTS if part in homes)] += [pictures[i].name for i in family]
        else:
            free.append(family)
    share_out(free, pictures, split)
    split["left_out"] = list(left_out)
    return {
        "seed": SEED,
        "rule": f"correlation after alignment above {ALIKE} or hashes within {ALIKE_BITS} bits, parts and mirrored too",
        "split": {part: sorted(names) for part, names in split.items()},
        "families": sorted(sorted(pictures[i].name for i in family) for family in families if len(family) > 1),
        "left_out": dict(sorted(left_out.items())),
        "look_alikes": [
            [pictures[a].name, pictures[b].name, how]
            for (a, b), how in sorted(said.items())
            if not pictures[a].case or pictures[a].case != pictures[b].case
        ],
    }


def share_out(families: Sequence[Sequence[int]], pictures: Sequence[Picture], split: dict[str, list[str]]) -> None:
    """Families of BUS-BRA onto train, val and test, stratified by class and scanner."""
    strata: dict[tuple[int, str], list[Sequence[int]]] = defaultdict(list)
    for family in families:
        strata[pictures[family[0]].label, pictures[family[0]].device].append(family)
    for _, own in sorted(strata.items()):
        wanted = {part: share * sum(map(len, own)) for part, share in SHARES.items()}
        order = np.random.default_rng(SEED).permutation(len(own))
        for family in sorted((own[k] for k in order), key=len, reverse=True):
            part = max(wanted, key=lambda p: wanted[p] / SHARES[p])
            wanted[part] -= len(family)
            split[part] += [pictures[i].name for i in family]


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of names, parts, families and reasons."""
    said = {name: document[name] for name in ("split", "families", "left_out")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_hospitals_split() -> dict[str, Any]:
    """The split that ships with the code. Raises ValueError when the file was edited by hand."""
    stored = json.loads(SPLIT_FILE.read_text("utf-8"))
    if digest(stored) != stored["sha256"]:
        raise ValueError(f"{SPLIT_FILE} does not match its own SHA-256; make it again: see hospitals.py")
    return stored


def split_of_busi() -> tuple[dict[str, list[str]], str]:
    """BUSI's own names in each part, as data.parts takes them, and the digest of the split of both."""
    stored, own = read_hospitals_split(), "busi/"
    names = {part: [n.removeprefix(own) for n in names if n.startswith(own)] for part, names in stored["split"].items()}
    return names, stored["sha256"]


def divided(pictures: Sequence[Picture], hospitals: Sequence[str] = HOSPITALS) -> tuple[dict[str, list[Picture]], str]:
    """The pictures of each part, of these hospitals, and the digest of the split. Raises ValueError for a picture that
    the split does not know."""
    stored = read_hospitals_split()
    home = {name: part for part, names in stored["split"].items() for name in names}
    if strangers := [one.name for one in pictures if one.name not in home]:
        raise ValueError(f"{strangers[0]} and {len(strangers) - 1} more are not in {SPLIT_FILE.name}")
    chosen = [one for one in pictures if one.hospital in hospitals]
    return {part: [one for one in chosen if home[one.name] == part] for part in PARTS}, stored["sha256"]


def family_of(pictures: Sequence[Picture]) -> list[str]:
    """For each picture the name of its family: its own where it stands alone. What a bootstrap draws."""
    owner = {name: family[0] for family in read_hospitals_split()["families"] for name in family}
    return [owner.get(one.name, one.name) for one in pictures]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.breast_us.hospitals", description="Make the split."
    )
    parser.add_argument("--busi", type=Path, required=True)
    parser.add_argument("--bus-bra", type=Path, required=True)
    given = parser.parse_args(arguments)
    pictures = read_hospitals(given.busi, given.bus_bra)
    _, said = links(pictures)
    document = make_split(pictures, said)
    write_text(SPLIT_FILE, json.dumps({"sha256": digest(document), **document}, indent=1) + "\n")
    for part, names in document["split"].items():
        print(part, {hospital: sum(name.startswith(hospital + "/") for name in names) for hospital in HOSPITALS})


if __name__ == "__main__":
    main(sys.argv[1:])
