"""Candidates of whole scans, from phantoms or from the collection at TCIA, with what is true about each.

Phantoms: our own candidate generator proposes, and a proposal that lies within a node is positive. TCIA: the published
candidates, positive and negative, as everybody uses them; see tcia.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.progress import track

from dicom_sr import attributes
from models.lymph_node.propose import propose
from models.lymph_node.regions import find_regions
from models.patches import SOFT_TISSUE, PatchConfig, patch
from models.phantoms.chest_anatomy import Ball
from models.phantoms.lymph_nodes import lymph_node_volume
from models.pipeline import UnfitInput
from models.read import Volume, header_of, read_ct
from models.training.files import write_text
from models.training.layouts import UnknownLayout
from models.training.lymph_node.tcia import REGIONS, Patient, Region, read_patients
from models.training.recurrent_attention.candidates import STORED_SHAPE, Candidates

VERSION = 1  # of the phantoms' candidates; change it with every change of what is made
INDEX, PATCHES = "candidates.json", "candidates.npz"


@dataclass(frozen=True)
class Place:
    """One candidate of a scan.

    node     number of the node that it hits, or None
    scan     whose candidates are judged together: false positives are counted per scan
    """

    patient: str
    scan: str
    point_lps_mm: tuple[float, float, float]
    node: int | None


@dataclass(frozen=True, eq=False)
class Set:
    """Candidates with their places, how many nodes each scan has (found or not), and what they are."""

    candidates: Candidates
    places: list[Place]
    nodes: dict[str, int]
    semi_synthetic: bool
    digest: str


# -------------------------------------------------------------------------------------------------------- phantoms


def hits(place_mm: np.ndarray, ball: Ball) -> bool:
    """Within the node, or nearer to its middle than half its short axis."""
    return bool(ball.depth_mm(place_mm) >= 0)


def phantom_candidates(
    seed: int, region: Region, config: PatchConfig = SOFT_TISSUE
) -> tuple[np.ndarray, list[Place], int]:
    """Patches (n, *STORED_SHAPE), their places and the number of nodes, of one phantom."""
    hu, grid, balls = lymph_node_volume(seed, region)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    spacing_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    volume = Volume(hu, (), spacing_mm, grid.affine, ())
    name = f"{region}-{seed}"
    patches, places = [], []
    for one in propose(find_regions(volume)):
        index = one.centre_zyx(spacing_mm)
        point = volume.position_lps_mm(index)
        node = next((number for number, ball in enumerate(balls) if hits(np.array(point), ball)), None)
        places.append(Place(name, name, point, node))
        patches.append(patch(hu, index, spacing_mm, config, STORED_SHAPE).astype(np.float16))
    return np.stack(patches), places, len(balls)


def make_phantoms(out: Path, region: Region, count: int, first_seed: int = 1000) -> Path:
    """A folder of candidates of so many phantoms; each phantom is a patient of its own."""
    out.mkdir(parents=True, exist_ok=True)
    patches, places, nodes = [], [], {}
    for seed in track(range(first_seed, first_seed + count), f"phantoms of the {region}"):
        cut, found, there = phantom_candidates(seed, region)
        patches.append(cut)
        places += found
        nodes[f"{region}-{seed}"] = there
    np.savez(out / PATCHES, patches=np.concatenate(patches))
    about = {
        "version": VERSION,
        "semi_synthetic": True,
        "region": region,
        "seeds": [first_seed, first_seed + count],
        "nodes": nodes,
        "places": [asdict(place) for place in places],
    }
    write_text(out / INDEX, json.dumps(about) + "\n")
    return out


def read_made(path: Path) -> Set:
    """What make_phantoms has written."""
    text = (path / INDEX).read_text("utf-8")
    about = json.loads(text)
    if about["version"] != VERSION:
        raise UnknownLayout(
            f"{path} holds candidates of version {about['version']}, {VERSION} is read: make them again"
        )
    places = [Place(**{**row, "point_lps_mm": tuple(row["point_lps_mm"])}) for row in about["places"]]
    with np.load(path / PATCHES) as arrays:
        patches = arrays["patches"]
    return _set(patches, places, about["nodes"], semi_synthetic=True, digest=hashlib.sha256(text.encode()).hexdigest())


# ------------------------------------------------------------------------------------------------------------ TCIA


def scans_of(path: Path) -> Iterator[tuple[str, list[Path]]]:
    """PatientID and files of every CT series below a folder, one series in each folder, as TCIA gives it."""
    folders: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob("*.dcm")):
        folders.setdefault(file.parent, []).append(file)
    for files in folders.values():
        header = header_of(files[0])
        if attributes.text(header, "Modality") == "CT":
            yield attributes.text(header, "PatientID"), files


def read_tcia(path: Path, region: Region, config: PatchConfig = SOFT_TISSUE) -> Set:
    """A folder with the annotations as published and the DICOM images of the patients.

    A candidate's position in mm finds its voxel. Raises UnknownLayout when a patient of the region has no images.
    """
    patients = {patient.name: patient for patient in read_patients(path) if patient.region == region}
    images = {patient: files for patient, files in scans_of(path) if patient in patients}
    if missing := sorted(patients.keys() - images.keys()):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UnknownLayout(f"{path} has no CT images of {missing[0]}{more}; fetch the images of CT Lymph Nodes, too")
    patches, places = [], []
    for name, patient in track(sorted(patients.items()), f"patients of the {region}"):
        try:
            volume = read_ct(images[name])
        except UnfitInput as error:
            raise UnknownLayout(f"{name}: {error}") from error
        for place in places_of(patient):
            index = volume.index_zyx(place.point_lps_mm)
            patches.append(patch(volume.hu, index, volume.spacing_mm, config, STORED_SHAPE).astype(np.float16))
            places.append(place)
    digest = hashlib.sha256(json.dumps([asdict(place) for place in places]).encode()).hexdigest()
    nodes = {name: len(patient.nodes) for name, patient in patients.items()}
    return _set(np.stack(patches), places, nodes, semi_synthetic=False, digest=digest)


def places_of(patient: Patient) -> list[Place]:
    return [Place(patient.name, patient.name, one.point_lps_mm, one.node_id) for one in patient.candidates]


def read_any(path: Path, region: Region | Literal["pooled"]) -> Set:
    """Phantoms that were made, or the collection. Raises UnknownLayout.

    pooled: both regions together, of the collection, or of folders of phantoms that are called as the regions are.
    """
    if region != "pooled":
        return read_made(path) if (path / INDEX).is_file() else read_tcia(path, region)
    made = [path / each for each in REGIONS.values()]
    if all((each / INDEX).is_file() for each in made):
        return _joined([read_made(each) for each in made])
    return _joined([read_tcia(path, each) for each in REGIONS.values()])


def _joined(sets: Sequence[Set]) -> Set:
    places = [place for each in sets for place in each.places]
    nodes = {scan: count for each in sets for scan, count in each.nodes.items()}
    digest = hashlib.sha256("".join(each.digest for each in sets).encode()).hexdigest()
    patches = np.concatenate([each.candidates.patches for each in sets])
    return _set(patches, places, nodes, semi_synthetic=sets[0].semi_synthetic, digest=digest)


def _set(
    patches: np.ndarray, places: Sequence[Place], nodes: dict[str, int], *, semi_synthetic: bool, digest: str
) -> Set:
    labels = np.array([place.node is not None for place in places], int)
    names = [f"{place.scan} {number}" for number, place in enumerate(places)]
    candidates = Candidates(patches, labels, [place.patient for place in places], names, SOFT_TISSUE)
    return Set(candidates, list(places), nodes, semi_synthetic, digest)
