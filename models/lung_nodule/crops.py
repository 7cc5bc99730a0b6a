"""Crops round lung nodules with the readers' votes: read from files of crops, or cut from scans once and kept.

A thousand CTs take 150 GB, their crops one: scans are read one at a time, their crops appended to two files in a cache
folder, and the training maps those files instead of loading them. Memory stays at one CT while cutting, and at one
byte per pixel (the masks) while training.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.layouts import Root, UnknownLayout
from models.lung_nodule.hounsfield import key, ranges_of

COLUMNS = {"patient", "nodule", "file"}  # of the index.csv of a set of crops


@dataclass(frozen=True, eq=False)
class Crops:
    """All crops of a set, in its own order.

    images   (n, s, s): int16 in HU, or uint8 stretched from its own minimum to its own maximum
    votes    (n, s, s) uint8, how many readers marked the pixel
    patients, nodules   of each crop; a nodule is named "patient/nodule"
    ranges   float32 (n, 2), HU of grey 0 and 255; None where images are in HU
    """

    images: np.ndarray
    votes: np.ndarray
    patients: list[str]
    nodules: list[str]
    ranges: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Cut:
    """One crop of a scan: HU int16 (s, s) and votes uint8 (s, s)."""

    patient: str
    nodule: str
    hu: np.ndarray
    votes: np.ndarray


def index_of(root: Root) -> list[dict[str, str]] | None:
    """The rows of index.csv, or None when this is no set of crops."""
    if not (root / "index.csv").is_file():
        return None
    rows = list(csv.DictReader(io.StringIO((root / "index.csv").read_text("utf-8"))))
    return rows if rows and set(rows[0]) >= COLUMNS else None


def read_crops(root: Root, rows: list[dict[str, str]], *, calibrated: bool = True) -> Crops:
    """Decode patient/nodule/file.png and file_raters.png (bit r set = reader r) of every row.

    Raises UnknownLayout, naming the file, unless all are of 8 bits, one channel and the first one's size.
    """
    images = votes = np.empty(0, np.uint8)
    for index, row in enumerate(rows):
        folder = root / row["patient"] / row["nodule"]
        files = folder / row["file"], folder / row["file"].replace(".png", "_raters.png")
        image, marks = (np.asarray(Image.open(io.BytesIO(file.read_bytes()))) for file in files)
        if index == 0:
            images = np.empty((len(rows), *image.shape[:2]), np.uint8)
            votes = np.empty_like(images)
        for file, pixels in zip(files, (image, marks), strict=True):
            if pixels.dtype != np.uint8 or pixels.shape != images.shape[1:]:
                raise UnknownLayout(
                    f"{file} holds {pixels.dtype} pixels of shape {pixels.shape}, not 8 bits of shape"
                    f" {images.shape[1:]} like the first crop; write all crops alike"
                )
        images[index] = image
        votes[index] = np.bitwise_count(marks)
    names = [key(row["patient"], row["nodule"], row["file"]) for row in rows]
    return Crops(
        images,
        votes,
        [row["patient"] for row in rows],
        [f"{row['patient']}/{row['nodule']}" for row in rows],
        ranges_of(images, names) if calibrated else None,
    )


def keep(folder: Path, cuts: Iterable[Cut], size: int) -> None:
    """Write cuts as they come, into a folder that appears whole or not at all. Raises ValueError when none come."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    names = []
    try:
        with (new / "images.i2").open("wb") as images, (new / "votes.u1").open("wb") as votes:
            for cut in cuts:
                images.write(np.ascontiguousarray(cut.hu, "<i2").tobytes())
                votes.write(np.ascontiguousarray(cut.votes, np.uint8).tobytes())
                names.append((cut.patient, cut.nodule))
        if not names:
            raise ValueError("no crop could be cut: no series has images, readers' contours and enough readers")
        (new / "about.json").write_text(json.dumps({"size": size, "crops": names}), "utf-8")
        if not folder.exists():  # another process may have been faster
            os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def kept(folder: Path) -> Crops:
    """The crops of a folder that `keep` wrote; pixels stay on the disk until they are needed."""
    about = json.loads((folder / "about.json").read_text("utf-8"))
    shape = len(about["crops"]), about["size"], about["size"]
    return Crops(
        np.memmap(folder / "images.i2", "<i2", "c", shape=shape),  # "c": nothing written here reaches the disk
        np.memmap(folder / "votes.u1", np.uint8, "c", shape=shape),
        [patient for patient, _ in about["crops"]],
        [nodule for _, nodule in about["crops"]],
    )
