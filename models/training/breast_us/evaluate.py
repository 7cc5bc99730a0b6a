"""The figures that CARD.md quotes: the pipeline, as the node runs it, on the images of a split it has not learned from.

BUSI has no patient ids: intervals come from drawing images, not patients, and are narrower than they should be.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from models.breast_us.letterbox import PREPROCESSING
from models.breast_us.pipeline import (
    INSIDE,
    PRIOR_POWER,
    SMALLEST_SHARE,
    WEIGHTS,
    BreastUltrasound,
    Prediction,
)
from models.breast_us.triple import read_triple
from models.nets.breast_triple import CLASSES
from models.training.breast_us.calibrate import at
from models.training.breast_us.data import read_busi
from models.training.breast_us.judged import Judged
from models.training.breast_us.triple_files import parts_for
from models.training.breast_us.worst_cases import worst_cases
from models.training.evaluation.metrics import (
    Interval,
    Judgement,
    accuracy,
    auc,
    bootstrap,
    calibration_error,
    count_words,
    dice,
    iou,
    macro_f1,
)
from models.training.files import write_text
from models.weights import load, packed

NORMAL, MALIGNANT = CLASSES.index("normal"), CLASSES.index("malignant")


def evaluate(
    data: Path,
    device: str,
    split: str,
    *,
    paths: Sequence[Path] | None = None,
    flips: bool = False,
    out: Path | None = None,
    strategy: str | None = None,
    cache: Path | None = None,
) -> Judgement:
    """Figures with 95 % intervals over images; "seconds per image" has no interval of its own.

    paths     weights whose answers are averaged; the shipped ones when not given
    out       folder for worst_cases.md
    strategy  of data.parts; when not given, the one that the weights were trained with

    Raises ValueError for a split without images, and for flips and cache, which there are not here; WeightsError for
    weights that are missing, spoilt, or learnt on another split.
    """
    if flips:
        raise ValueError("breast_us takes no --flips: the pipeline shows every image mirrored too, as it is served")
    if cache is not None:
        raise ValueError("breast_us takes no --cache: its images are read as they are")
    weights = list(paths or [packed("breast_us", name) for name in WEIGHTS])
    known = read_busi(data)
    found = parts_for(weights, known, strategy)
    images = found[split]
    if not images:
        raise ValueError(f"{data} has no image for split {split}: of its {len(known)} there are {count_words(found)}")
    pipeline = BreastUltrasound(device, weights=weights)
    pipeline.warm()
    start = time.perf_counter()
    looks = [pipeline.look(image.pixels) for image in images]
    seconds = (time.perf_counter() - start) / len(images)
    labels = np.array([image.label for image in images])
    rows = [judge_one(one.name, one.label, look, one.mask) for one, look in zip(images, looks, strict=True)]
    figures = pooled(rows)
    if pipeline.temperature is not None:
        tempered = at(np.stack([look.classes for look in looks]), pipeline.temperature)
        figures["expected calibration error, at the temperature"] = calibration(tempered, labels)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "worst_cases.md", worst_cases(rows, {image.name: image for image in images}))
    return Judgement(
        {**figures, "seconds per image": Interval(seconds, seconds, seconds)},
        split=split,
        split_sha256=str(load(weights[0]).about["split_sha256"]),  # parts_for has compared all with the split here
        weights={sha256: name for path in weights for name, sha256 in read_triple(path, PREPROCESSING).sha256.items()},
        choices={
            "mask threshold": INSIDE,
            "normal": "the most probable class",
            "prior power": PRIOR_POWER,
            "smallest share": SMALLEST_SHARE,
            "sizes": pipeline.sizes,
            "temperature": "none" if pipeline.temperature is None else pipeline.temperature,
            "runtime": str(pipeline.nets[0]),
        },
        judged={"images": len(images)},
    )


def judge(looks: list[Prediction], masks: list[np.ndarray], labels: np.ndarray) -> dict[str, Interval]:
    """Overlap over images with a lesion, empty masks over normal images, classes over all."""
    triples = zip(looks, masks, labels, strict=True)
    return pooled([judge_one(str(row), int(label), look, mask) for row, (look, mask, label) in enumerate(triples)])


def judge_one(name: str, label: int, look: Prediction, mask: np.ndarray) -> Judged:
    """mask: bool (rows, columns), the true one on the pixels of the image."""
    return Judged(
        name=name,
        label=label,
        shares=tuple(float(share) for share in look.classes),
        dice=dice(look.lesion, mask),
        raw_dice=dice(look.probability > INSIDE, mask),
        iou=iou(look.lesion, mask),
        hd95_px=hd95(look.lesion, mask),
        empty=not look.lesion.any(),
    )


def hd95(predicted: np.ndarray, truth: np.ndarray) -> float | None:
    """The larger of the 95th percentiles of the distances from either border to the other, in pixels, as MONAI has it:
    bool (rows, columns) twice. None when one is empty: there is no distance to nothing."""
    if not predicted.any() or not truth.any():
        return None
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, truth)]
    far = [ndimage.distance_transform_edt(~border) for border in borders]
    return float(max(np.percentile(far[1][borders[0]], 95), np.percentile(far[0][borders[1]], 95)))


def pooled(rows: Sequence[Judged]) -> dict[str, Interval]:
    """The figures of all images together, with intervals from 1000 draws of images."""
    shares = np.array([row.shares for row in rows])
    labels = np.array([row.label for row in rows])
    called = shares.argmax(axis=1)
    normal, has_lesion = labels == NORMAL, labels != NORMAL
    reported = np.array([row.dice for row in rows])
    distance = np.array([np.nan if row.hd95_px is None else row.hd95_px for row in rows])

    def over(chosen: np.ndarray, values: np.ndarray) -> Interval:
        found = np.flatnonzero(chosen)
        if not len(found):
            return Interval(float("nan"), float("nan"), float("nan"))
        return bootstrap(lambda drawn: float(values[found[drawn]].mean()), [str(row) for row in found])

    def one_against_rest(chosen: np.ndarray) -> float:
        return float(np.mean([auc(shares[chosen, label], labels[chosen] == label) for label in range(len(CLASSES))]))

    everyone = [str(row) for row in range(len(labels))]
    return {
        "Dice, lesion images": over(has_lesion, reported),
        "Dice, lesion images, network's whole mask": over(has_lesion, np.array([row.raw_dice for row in rows])),
        "IoU, lesion images": over(has_lesion, np.array([row.iou for row in rows])),
        "HD95 in pixels, lesion images with a finding": over(has_lesion & ~np.isnan(distance), distance),
        "lesion images with Dice above 0.5": over(has_lesion, (reported > 0.5).astype(float)),
        "normal images without a finding": over(normal, np.array([row.empty for row in rows], float)),
        "accuracy": bootstrap(lambda drawn: accuracy(called[drawn], labels[drawn]), everyone),
        "sensitivity for malignant": over(labels == MALIGNANT, (called == MALIGNANT).astype(float)),
        "specificity for malignant": over(labels != MALIGNANT, (called != MALIGNANT).astype(float)),
        "macro F1": bootstrap(lambda drawn: macro_f1(called[drawn], labels[drawn], len(CLASSES)), everyone),
        "macro AUC, one against rest": bootstrap(one_against_rest, everyone),
        "AUC, malignant against rest": bootstrap(
            lambda drawn: auc(shares[drawn, MALIGNANT], labels[drawn] == MALIGNANT), everyone
        ),
        "expected calibration error": calibration(shares, labels),
    }


def calibration(shares: np.ndarray, labels: np.ndarray) -> Interval:
    """Expected calibration error of the class called: (N, 3), (N)"""
    right = shares.argmax(axis=1) == labels
    return bootstrap(
        lambda drawn: calibration_error(shares[drawn].max(axis=1), right[drawn]),
        [str(row) for row in range(len(labels))],
    )
