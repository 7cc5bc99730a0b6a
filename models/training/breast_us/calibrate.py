"""Fit the temperature of a breast checkpoint on images it has not learned from, and write it into its JSON.

    python -m models.training.breast_us.calibrate \
        --data busi.zip                  # the shipped weights, on BUSI's val split
    python -m models.training.breast_us.calibrate --data ours.zip --weights runs/x/breast_triple_lite0_w16.safetensors \
        --split all --on "St. Elsewhere 2026"

One number divides the logits of the averaged probabilities after the class prior (Guo 2017, arXiv:1706.04599):
certainty changes, the most likely class does not. What share of the images is malignant one temperature cannot take in:
the class prior stays that of BUSI (27 %), so a BI-RADS category follows only where a route asks for it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from models.breast_us.birads import apply_temperature
from models.breast_us.pipeline import WEIGHTS, BreastUltrasound
from models.training.breast_us.data import Labelled, parts, read_busi
from models.training.breast_us.hospitals import split_of_busi
from models.training.breast_us.triple_files import parts_for, strategy_of
from models.training.evaluation.metrics import calibration_error
from models.training.export import note
from models.weights import WeightsError, load, packed

RANGE = (0.25, 10.0)  # few images that are all called right would ask for certainty without end


@dataclass(frozen=True)
class Calibration:
    """Figures of the probabilities as they are and at the temperature, on the images it was fitted on."""

    temperature: float
    images: int
    nll: tuple[float, float]  # before, after
    ece: tuple[float, float]

    @property
    def helps(self) -> bool:
        return self.ece[1] <= self.ece[0]


def nll(shares: np.ndarray, labels: np.ndarray) -> float:
    """Mean -log of the true class' probability: (N, 3), (N) -> nats"""
    return float(-np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-12)).mean())


def ece(shares: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the class called: (N, 3), (N)"""
    return calibration_error(shares.max(axis=1), shares.argmax(axis=1) == labels)


def at(shares: np.ndarray, temperature: float) -> np.ndarray:
    """(N, 3) -> (N, 3), each row as the pipeline tempers it"""
    return np.stack([apply_temperature(row, temperature) for row in shares])


def fit(shares: np.ndarray, labels: np.ndarray) -> Calibration:
    """The temperature of least NLL: (N, 3) probabilities, (N) true classes. Raises ValueError without images."""
    if not len(labels):
        raise ValueError("no images to calibrate on")
    low, high = map(math.log, RANGE)
    found = minimize_scalar(
        lambda log_t: nll(at(shares, math.exp(log_t)), labels), bounds=(low, high), method="bounded"
    )
    best = math.exp(float(found.x)) if found.fun < nll(shares, labels) else 1.0
    after = at(shares, best)
    return Calibration(
        round(best, 4),
        len(labels),
        (nll(shares, labels), nll(after, labels)),
        (ece(shares, labels), ece(after, labels)),
    )


def unlearnt(weights: Sequence[Path], images: Sequence[Labelled], split: str) -> Sequence[Labelled]:
    """The images to calibrate on: the val part of the split that the weights learnt on, or all where none is of it.

    Raises WeightsError when the weights have, or may have, learnt from them; ValueError when val is empty.
    """
    if split == "val":
        chosen = parts_for(weights, images)["val"]
        if not chosen:
            raise ValueError("no image of these is in the val part of the split; of data never trained on: --split all")
        return chosen
    found, split_sha256 = parts(images, strategy_of(weights))
    theirs = {load(path).about.get("split_sha256") for path in weights}
    # the split of two hospitals trains on all of BUSI that the stored one does, and some more
    if found["train"] and theirs & {split_sha256, split_of_busi()[1]}:
        raise WeightsError(f"the weights learnt from {len(found['train'])} of these images; calibrate with --split val")
    return images


def calibrate(weights: Sequence[Path], images: Sequence[tuple[np.ndarray, int]], device: str = "cpu") -> Calibration:
    """Probabilities by the pipeline with these weights for images (rows, columns) uint8 with their true classes."""
    pipeline = BreastUltrasound(device, weights=weights)
    shares = np.stack([pipeline.look(pixels).classes for pixels, _ in images])
    return fit(shares, np.array([label for _, label in images]))


def write(weights: Sequence[Path], found: Calibration, on: str) -> None:
    """Say in the JSON beside each weights what came of it; calibrated only if the error did not grow."""
    rounded = {name: [round(value, 4) for value in getattr(found, name)] for name in ("nll", "ece")}
    for path in weights:
        note(
            path,
            {
                "calibrated": found.helps,
                "temperature": found.temperature,
                "calibrated_on": on,
                "calibration": {"images": found.images, **rounded},
            },
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.breast_us.calibrate", description="Calibrate weights."
    )
    parser.add_argument("--data", type=Path, required=True, help="the zip of images, as models.training.train reads it")
    parser.add_argument("--split", default="val", choices=("val", "all"), help="all: of data never trained on")
    parser.add_argument("--weights", type=Path, action="append", help="several are averaged; default: the shipped ones")
    parser.add_argument("--on", help="what the images are, for the card; default: the file's name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")
    given = parser.parse_args(arguments)

    weights = given.weights or [packed("breast_us", name) for name in WEIGHTS]
    try:
        images = unlearnt(weights, read_busi(given.data), given.split)
        found = calibrate(weights, [(image.pixels, image.label) for image in images], given.device)
    except (ValueError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    print(
        f"temperature {found.temperature:.3f} on {found.images} images:"
        f" NLL {found.nll[0]:.4f} -> {found.nll[1]:.4f}, calibration error {found.ece[0]:.4f} -> {found.ece[1]:.4f}"
    )
    if not found.helps:
        print("the calibration error grew: the weights are not called calibrated")
    if not given.dry_run:
        write(weights, found, given.on or f"{given.data.name}, {given.split}")


if __name__ == "__main__":
    main(sys.argv[1:])
