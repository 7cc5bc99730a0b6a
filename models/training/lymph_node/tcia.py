"""TCIA "CT Lymph Nodes": where the nodes of 176 patients lie, and the candidates that a detector proposed.

Roth et al., "A new 2.5D representation for lymph node detection", MICCAI 2014; TCIA, doi 10.7937/K9/TCIA.2015.AQIIDCNM.
Read from a zip or a folder as published: for each patient a folder of annotations and one of candidates, a line of text
for each node or candidate. Positions are in mm, LPS. The images are a download of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.training.layouts import Root, UnknownLayout, open_root

ANNOTATIONS, CANDIDATES = "MED_ABD_LYMPH_ANNOTATIONS", "MED_ABD_LYMPH_CANDIDATES"
PATIENT = re.compile(r"(?P<region>MED|ABD)_LYMPH_\d{3}")
KINDS = {"pos": "positive", "neg": "negative"}
NO_NODE = -1  # in the place of a node's id, of a candidate that is none

Region = Literal["mediastinum", "abdomen"]
REGIONS: dict[str, Region] = {"MED": "mediastinum", "ABD": "abdomen"}
LpsMm = tuple[float, float, float]


@dataclass(frozen=True)
class Node:
    """One lymph node.

    index_xyz   column, row and slice of its middle in the images
    sizes_mm    short axis, and the long one where it was measured (abdomen)
    """

    point_lps_mm: LpsMm
    index_xyz: tuple[int, int, int]
    sizes_mm: tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A place that a detector proposed. node_id: of the node that it hits, as the files call it; None: it hits none."""

    point_lps_mm: LpsMm
    node_id: int | None


@dataclass(frozen=True)
class Patient:
    name: str  # "MED_LYMPH_046"
    region: Region
    nodes: tuple[Node, ...]
    candidates: tuple[Candidate, ...]


def read_patients(path: Path) -> list[Patient]:
    """All patients, by name. Raises UnknownLayout, which names the file that is missing or cannot be read."""
    root = open_root(path)
    if not (root / ANNOTATIONS).is_dir() or not (root / CANDIDATES).is_dir():
        raise UnknownLayout(f"{path} holds no {ANNOTATIONS} and {CANDIDATES}; give the annotations of CT Lymph Nodes")
    found = sorted(folder.name for folder in (root / ANNOTATIONS).iterdir() if PATIENT.fullmatch(folder.name))
    if not found:
        raise UnknownLayout(f"{path}: no folder of {ANNOTATIONS} is named as a patient, such as MED_LYMPH_001")
    return [_patient(root, name) for name in found]


def _patient(root: Root, name: str) -> Patient:
    match = PATIENT.fullmatch(name)
    assert match is not None
    drawn, proposed = root / ANNOTATIONS / name, root / CANDIDATES / name
    points = [_triple(row) for row in _rows(drawn / f"{name}_lymphnodes_physicalPoints.txt", 3)]
    indices = [_indices(row) for row in _rows(drawn / f"{name}_lymphnodes_indices.txt", 3)]
    sizes = _rows(drawn / f"{name}_lymphnodes_sizes.txt", None)
    _alike(name, "lymphnodes", points, indices, sizes)
    nodes = [Node(*each) for each in zip(points, indices, sizes, strict=True)]
    return Patient(
        name,
        REGIONS[match["region"]],
        tuple(nodes),
        (*_candidates(proposed, name, "pos"), *_candidates(proposed, name, "neg")),
    )


def _candidates(folder: Root, name: str, kind: Literal["pos", "neg"]) -> list[Candidate]:
    points = [_triple(row) for row in _rows(folder / f"{name}_{kind}CADe_physicalPoints.txt", 3)]
    ids = [int(row[0]) for row in _rows(folder / f"{name}_{kind}CADe_grtIDs.txt", 1)]
    _alike(name, f"{kind}CADe", points, ids)
    if wrong := [each for each in ids if (each == NO_NODE) != (kind == "neg")]:
        raise UnknownLayout(f"{name}_{kind}CADe_grtIDs.txt holds {wrong[0]}, the id of no {KINDS[kind]} candidate")
    return [Candidate(point, None if kind == "neg" else each) for point, each in zip(points, ids, strict=True)]


def _rows(path: Root, columns: int | None) -> list[tuple[float, ...]]:
    """The numbers of each line, so many on each; None: one or two."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, KeyError) as error:
        raise UnknownLayout(f"{path.name} is missing; fetch the annotations again") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = tuple(float(word) for word in line.split())
        except ValueError:
            row = ()
        if len(row) not in ((1, 2) if columns is None else (columns,)):
            raise UnknownLayout(f"{path.name}, line {number}: {line.strip()[:40]!r} is not what is written there")
        rows.append(row)
    return rows


def _alike(name: str, what: str, *lists: Sequence[object]) -> None:
    if len({len(each) for each in lists}) > 1:
        counts = ", ".join(str(len(each)) for each in lists)
        raise UnknownLayout(f"{name}: the files of {what} have {counts} lines; they must have the same")


def _triple(row: tuple[float, ...]) -> LpsMm:
    x, y, z = row
    return x, y, z


def _indices(row: tuple[float, ...]) -> tuple[int, int, int]:
    x, y, z = row
    return int(x), int(y), int(z)
