"""Crops round lung nodules with the readers' votes: read from files of crops, or cut from scans once and kept.

A thousand CTs take 150 GB, their crops one: scans are read one at a time, their crops appended to two files in a cache
folder, and the training maps those files instead of loading them. Memory stays at one CT while cutting, and at one
byte per pixel (the masks) while training.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from models.pipeline import UnfitInput
from models.training.files import filling
from models.training.layouts import Root, UnknownLayout
from models.training.lung_nodule.data.hounsfield import key, ranges_of

log = logging.getLogger(__name__)

COLUMNS = {"patient", "nodule", "file"}  # of the index.csv of a set of crops

# what a scan unlike all others may raise where it is read or cut, besides UnfitInput
ODD = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
MODELS = str(Path(__file__).parents[3])  # our own code, to say where


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


@dataclass(frozen=True)
class LeftOut:
    """A scan of which no crop is taken, and why."""

    series_uid: str
    why: str


Whole = tuple[str, str, Callable[[int], Iterable[Cut]]]  # series, patient, and its crops with nodules numbered from


def one_by_one(scans: Iterable[Whole]) -> Iterator[Cut | LeftOut]:
    """The crops of all scans, one scan in memory at a time; none of a scan that fails, however far it had come.

    The nodules of a patient's second scan are numbered on. The reason names an unforeseen error and its place without
    its text, which may quote what stands in a header.
    """
    numbers: dict[str, int] = defaultdict(int)
    for series_uid, patient, crops_from in scans:
        try:
            cuts = list(crops_from(numbers[patient]))
        except UnfitInput as why:
            yield LeftOut(series_uid, str(why))
            continue
        except ODD as error:
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(MODELS)]
            place = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"
            yield LeftOut(series_uid, f"{type(error).__name__} in {place}")
            continue
        yield from cuts
        numbers[patient] = max([numbers[patient], *(int(cut.nodule.rsplit("-", 1)[1]) + 1 for cut in cuts)])


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


def keep(folder: Path, cuts: Iterable[Cut | LeftOut], size: int) -> None:
    """Write cuts as they come, into a folder that appears whole or not at all. Scans that are left out are logged, and
    named in its about.json. Raises ValueError when no cuts come."""
    names, left_out = [], {}
    with filling(folder) as new:
        with (new / "images.i2").open("wb") as images, (new / "votes.u1").open("wb") as votes:
            for cut in cuts:
                if isinstance(cut, LeftOut):
                    log.warning("series %s left out: %s", cut.series_uid, cut.why)
                    left_out[cut.series_uid] = cut.why
                    continue
                images.write(np.ascontiguousarray(cut.hu, "<i2").tobytes())
                votes.write(np.ascontiguousarray(cut.votes, np.uint8).tobytes())
                names.append((cut.patient, cut.nodule))
        if not names:
            raise ValueError("no crop could be cut: no series has images, readers' contours and enough readers")
        about = {"size": size, "crops": names, "left_out": left_out}
        (new / "about.json").write_text(json.dumps(about), "utf-8")


def load_crops(folder: Path) -> Crops:
    """The crops of a folder that `keep` wrote; pixels stay on the disk until they are needed."""
    about = json.loads((folder / "about.json").read_text("utf-8"))
    if left_out := about.get("left_out"):
        log.warning("%s lacks %d series, about.json says why; delete it to cut them all again", folder, len(left_out))
    shape = len(about["crops"]), about["size"], about["size"]
    return Crops(
        np.memmap(folder / "images.i2", "<i2", "c", shape=shape),  # "c": nothing written here reaches the disk
        np.memmap(folder / "votes.u1", np.uint8, "c", shape=shape),
        [patient for patient, _ in about["crops"]],
        [nodule for _, nodule in about["crops"]],
    )
