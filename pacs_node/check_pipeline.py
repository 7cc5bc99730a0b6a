"""`pacs-node check-pipeline`: does a pipeline keep its promises, on series that a day in a hospital brings?

Each check is a synthetic series and what must come of it. Whatever it is, an answer is a result or a refusal in words:
never a crash. A phantom says nothing about patients, and nothing about how good a model is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from dicom_sr import attributes
from dicom_sr.modalities import VOLUME_CLASSES
from models.phantoms import breast_ultrasound, chest_balls, chest_ct
from models.pipeline import Card
from pacs_node.infer import Inference
from pacs_node.run import Outcome, find_series, run

WHEN = datetime(2026, 1, 1, 12, tzinfo=UTC)  # of all results: equal answers are equal bytes
SENTENCE = "Research use only, not for diagnostic use."
SLICES, SIZE, SPACING_MM = 60, 256, (4.0, 1.4, 1.4)
NODULES = 4
SAME_MM = 6.0  # between the places of one finding in two acquisitions of the phantom: one and a half slices
SAME_SHARE = 0.8  # of the findings must have a partner; a network may see a small one on one grid and not on the other
ELSEWHERE = "FOOT"
FINE = "fine"  # the check that the others are held against
AIR_HU = -1000

Expected = Literal["result", "refusal", "either"]


@dataclass(frozen=True)
class Check:
    """One series, and what must come of it.

    make    writes the files of the series into a folder
    as_of   the check whose findings must come again: "bytes" the very same objects, "places" at the same places
    """

    name: str
    make: Callable[[Path], None]
    expected: Callable[[Card], Expected]
    as_of: tuple[str, Literal["bytes", "places"]] | None = None
    finds_nothing: bool = False


@dataclass(frozen=True)
class Said:
    """What came of one check."""

    check: str
    passed: bool
    text: str


@dataclass
class Tried:
    """One run of the pipeline."""

    outcome: Outcome
    seconds: float
    files: dict[str, bytes] = field(default_factory=dict)


def check_pipeline(
    name: str,
    options: Mapping[str, Any],
    card: Card,
    inference: Inference,
    folder: Path,
    only: Collection[str] | None = None,
) -> Iterator[Said]:
    """Every check of a pipeline, one after the other.

    folder: for phantoms and results; it must be empty. only: names of checks; "fine" is always made, for the others
    are held against it.
    """
    yield _declared(name, card)
    for modality in sorted(card.modality):
        checks = [each for each in checks_for(modality, card) if only is None or each.name in (FINE, *only)]
        if not checks:
            yield Said(modality, False, "there is no phantom of this modality")
        done: dict[str, Tried] = {}
        for check in checks:
            place = folder / modality / check.name.replace(" ", "-")
            yield _judged(check, _tried(check, name, options, card, inference, place), card, done, modality)
            shutil.rmtree(place, ignore_errors=True)
        if FINE in done:
            yield Said(f"{modality}: time and memory", True, _cost(done[FINE], inference))


def _declared(name: str, card: Card) -> Said:
    wrong = [
        text
        for text, holds in (
            (f"its name is '{card.name}'", card.name != name),
            (f"its intended use does not end with '{SENTENCE}'", not card.intended_use.endswith(SENTENCE)),
            ("its algorithm has no version", not card.algorithm.version),
            ("it takes no modality", not card.modality),
            ("its body parts are not in capitals", any(part != part.upper() for part in card.body_part)),
        )
        if holds
    ]
    return Said("card", not wrong, "; ".join(wrong) or f"{card.algorithm.name} {card.algorithm.version}")


def _tried(check: Check, name: str, options: Mapping[str, Any], card: Card, inference: Inference, place: Path) -> Tried:
    images, out = place / "images", place / "results"
    images.mkdir(parents=True)
    check.make(images)
    started = time.monotonic()
    [outcome] = run(find_series([images]), name, options, out, inference, card=card, now=lambda: WHEN)
    seconds = time.monotonic() - started
    return Tried(outcome, seconds, {path.name: path.read_bytes() for path in outcome.files if path.suffix == ".dcm"})


def _judged(check: Check, tried: Tried, card: Card, done: dict[str, Tried], modality: str) -> Said:
    done[check.name] = tried
    outcome, named = tried.outcome, f"{modality}: {check.name}"
    told = f"{outcome.state}, {outcome.reason} ({tried.seconds:.1f} s)"
    wanted = check.expected(card)
    if outcome.state == "failed":
        return Said(named, False, told)
    if wanted != "either" and outcome.state != {"result": "done", "refusal": "refused"}[wanted]:
        return Said(named, False, f"{told}: a {wanted} was expected")
    if outcome.state == "refused" or check.as_of is None:
        fails = check.finds_nothing and outcome.findings
        return Said(named, not fails, f"{told}: there is nothing to be found" if fails else told)
    other, how = check.as_of
    if done[other].outcome.state != "done":
        return Said(named, True, told)
    wrong = _other_bytes(done[other], tried) if how == "bytes" else _other_places(done[other], tried)
    return Said(named, wrong is None, told if wrong is None else f"{told}: {wrong}")


def _other_bytes(one: Tried, other: Tried) -> str | None:
    names = one.files.keys() | other.files.keys()
    differ = sorted(name for name in names if one.files.get(name) != other.files.get(name))
    return f"the same images gave other bytes in {', '.join(differ)}" if differ else None


def _other_places(one: Tried, other: Tried) -> str | None:
    """None, or how far the findings of two acquisitions of one phantom are apart in the patient."""
    here, there = (_places(tried.outcome) for tried in (one, other))
    if here is None or there is None:
        return None  # it does not say where
    if not len(here) or not len(there):
        return None if len(here) == len(there) else f"{len(there)} findings, not {len(here)}"
    apart = np.linalg.norm(here[:, np.newaxis] - there[np.newaxis], axis=-1)
    partners = int((apart.min(axis=1) <= SAME_MM).sum()), int((apart.min(axis=0) <= SAME_MM).sum())
    if partners[0] >= SAME_SHARE * len(here) and partners[1] >= SAME_SHARE * len(there):
        return None
    return (
        f"of {len(there)} findings {partners[1]} lie where one of the {len(here)} of the plain series lies, within"
        f" {SAME_MM:g} mm in the patient"
    )


def _places(outcome: Outcome) -> np.ndarray | None:
    places = [finding["centre_lps_mm"] for finding in outcome.findings if "centre_lps_mm" in finding]
    return np.array(places, float).reshape(-1, 3) if len(places) == len(outcome.findings) else None


def _cost(tried: Tried, inference: Inference) -> str:
    peak = inference.peak_memory_bytes()
    memory = f", at most {peak / 1e9:.1f} GB of memory in all runs" if peak else ""
    return f"{tried.seconds:.1f} s with loading{memory}"


# The series --------------------------------------------------------------------------------------------------------


def checks_for(modality: str, card: Card) -> Iterator[Check]:
    """The checks of a pipeline on one modality, "fine" first: the others are held against it."""
    if card.requires.volume and modality in VOLUME_CLASSES:
        yield from _of_volumes(modality, card)
    elif modality in PICTURES:
        yield from _of_images(modality, card)


def _always(expected: Expected) -> Callable[[Card], Expected]:
    return lambda card: expected


def _of_volumes(modality: str, card: Card) -> Iterator[Check]:
    def chest(**knobs: Any) -> Callable[[Path], None]:
        change = knobs.pop("change", lambda image: None)
        drop = knobs.pop("drop", ())

        def make(folder: Path) -> None:
            files = _chest(folder, **knobs)
            for place in drop:
                files[place].unlink()
            for path in files:
                if path.exists():
                    _changed(path, modality, card, change)

        return make

    yield Check("fine", chest(), _always("result"))
    yield Check("twice", chest(), _always("result"), ("fine", "bytes"))
    yield Check("shuffled", chest(order="shuffled"), _always("result"), ("fine", "places"))
    yield Check("flipped", chest(orientation="FFS"), _always("result"), ("fine", "places"))
    yield Check("prone", chest(orientation="HFP"), _always("result"), ("fine", "places"))
    yield Check("oblique", chest(orientation="oblique"), _always("either"), ("fine", "places"))
    yield Check("coronal", chest(orientation="coronal"), lambda card: "refusal" if card.requires.axial else "either")
    yield Check(
        "tilted",
        chest(gantry_deg=10.0),
        lambda card: "either" if (most := card.requires.max_tilt_deg) is None or most >= 10.0 else "refusal",
    )
    yield Check("thick", chest(slices=24, spacing_mm=(10.0, 1.4, 1.4)), _always("either"))
    yield Check(
        "few slices",
        chest(drop=range(3, SLICES)),
        lambda card: "refusal" if card.requires.min_slices > 3 else "either",
    )
    yield Check("missing slice", chest(drop=(SLICES // 2,)), _always("refusal"))
    yield Check("wrong body part", chest(change=_of_foot), _where_stated)
    yield Check("other modality", chest(change=_of_no_modality), _always("refusal"))
    yield Check("empty", chest(change=_emptied), _always("either"), finds_nothing=True)


def _chest(
    folder: Path,
    *,
    slices: int = SLICES,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    orientation: str = "HFS",
    order: str = "ascending",
    gantry_deg: float = 0.0,
) -> list[Path]:
    balls = chest_balls(3, NODULES)
    truth = chest_ct(
        folder,
        seed=3,
        slices=slices,
        size=SIZE,
        spacing_mm=spacing_mm,
        orientation=orientation,
        order=order,
        balls=balls,
        gantry_deg=gantry_deg,
        patient_id="PHANTOM-CHECK",
    )
    return list(truth.files)


def _changed(path: Path, modality: str, card: Card, change: Callable[[Dataset], None]) -> None:
    image = pydicom.dcmread(path)
    if modality != "CT":
        _as_slice(image, modality)
    if card.body_part:
        image.BodyPartExamined = min(card.body_part)
    change(image)
    image.save_as(path, enforce_file_format=True)


def _as_slice(image: Dataset, modality: str) -> None:
    """The same picture as a slice of an MR or PET: values from 0, in the scanner's own unit."""
    values = np.frombuffer(image.PixelData, "<i2").astype(np.int32) - AIR_HU
    image.Modality = modality
    image.SOPClassUID = {"MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}[modality]
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.PixelRepresentation = 0
    image.PixelData = np.clip(values, 0, 4095).astype("<u2").tobytes()
    for keyword in ("KVP", "ConvolutionKernel", "RescaleType", "WindowCenter", "WindowWidth"):
        if keyword in image:
            del image[keyword]
    if modality == "MR":
        del image.RescaleSlope, image.RescaleIntercept
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "SE", "NONE", ""
        image.MRAcquisitionType, image.EchoTime, image.RepetitionTime = "2D", 10, 500
    else:
        image.ImageType = ["ORIGINAL", "PRIMARY"]
        image.Units, image.RescaleSlope, image.RescaleIntercept = "BQML", 1, 0


def _of_foot(image: Dataset) -> None:
    image.BodyPartExamined = ELSEWHERE


def _where_stated(card: Card) -> Expected:
    return "refusal" if card.body_part and ELSEWHERE not in card.body_part else "either"


def _of_no_modality(image: Dataset) -> None:
    image.Modality = "XA"


def _emptied(image: Dataset) -> None:
    """Nothing but air, or black."""
    kind = np.dtype(f"{'i' if image.PixelRepresentation else 'u'}{image.BitsAllocated // 8}")
    darkest = AIR_HU if attributes.text(image, "Modality") == "CT" else 0
    image.PixelData = np.full(image.Rows * image.Columns, darkest, kind).tobytes()


# Single images


def _of_images(modality: str, card: Card) -> Iterator[Check]:
    def pictures(change: Callable[[Dataset], None] = lambda image: None) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            for path in PICTURES[modality](folder):
                _pictured(path, modality, card, change)

        return make

    yield Check("fine", pictures(), _always("result"))
    yield Check("twice", pictures(), _always("result"), ("fine", "bytes"))
    yield Check(
        "uncalibrated", pictures(_uncalibrated), lambda card: "refusal" if card.requires.calibrated else "either"
    )
    yield Check("wrong body part", pictures(_of_foot), _where_stated)
    yield Check("other modality", pictures(_of_no_modality), _always("refusal"))
    yield Check("empty", pictures(_emptied), _always("either"), finds_nothing=True)


def _ultrasounds(folder: Path) -> Sequence[Path]:
    return breast_ultrasound(folder, images=2).files


def _slices(folder: Path) -> Sequence[Path]:
    files = _chest(folder)
    for path in files[3:]:
        path.unlink()
    return files[:3]


PICTURES: dict[str, Callable[[Path], Sequence[Path]]] = {
    "US": _ultrasounds,
    **dict.fromkeys(("CR", "DX", "MG"), _ultrasounds),  # the same picture as a radiograph
    **dict.fromkeys(VOLUME_CLASSES, _slices),
}
RADIOGRAPHS = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "MG": DigitalMammographyXRayImageStorageForPresentation,
}


def _pictured(path: Path, modality: str, card: Card, change: Callable[[Dataset], None]) -> None:
    image = pydicom.dcmread(path)
    if modality in RADIOGRAPHS:
        _as_radiograph(image, modality)
    elif modality in VOLUME_CLASSES and modality != "CT":
        _as_slice(image, modality)
    if card.sop_classes and image.SOPClassUID not in card.sop_classes:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UID(min(card.sop_classes))
    if card.body_part:
        image.BodyPartExamined = min(card.body_part)
    change(image)
    image.save_as(path, enforce_file_format=True)


def _as_radiograph(image: Dataset, modality: str) -> None:
    """The same picture with 12 bits, and the size of a pixel at the detector."""
    grey = np.frombuffer(image.PixelData, np.uint8)[: image.Rows * image.Columns].astype("<u2") * 16
    image.Modality = modality
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = RADIOGRAPHS[modality]
    del image.SequenceOfUltrasoundRegions
    image.ImageType = ["ORIGINAL", "PRIMARY"]
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.ImagerPixelSpacing = [0.15, 0.15]
    image.PixelData = grey.tobytes()
    image["PixelData"].VR = "OW"


def _uncalibrated(image: Dataset) -> None:
    for keyword in ("SequenceOfUltrasoundRegions", "PixelSpacing", "ImagerPixelSpacing"):
        if keyword in image:
            del image[keyword]
