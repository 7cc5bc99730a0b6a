"""Breast ultrasound images in, lesion outlines and class probabilities out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from scipy import ndimage

from dicom_sr import codes
from dicom_sr.findings import Algorithm, Axis, Evaluation, Finding, Findings, ImageRef, Measurement
from models.breast_us.data import PREPROCESSING, normalise, prepare, read_split
from models.breast_us.options import Options
from models.measure import measure_lesion
from models.nets.breast_triple import CLASSES, LITE_STEP_PX, ClassificationNet, TripleConfig
from models.pipeline import Card, Progress, UnfitInput
from models.read import Clip, read_ultrasound
from models.runtime import Runtime
from models.weights import load, packed

NAME = "breast-us"
WEIGHTS = ("breast_triple_lite0_w16",)  # several are averaged

# Chosen on the validation split.
INSIDE = 0.4  # mask probability; sizes are least biased here (1 % wide), overlap a little better at 0.3
NORMAL_ABOVE = 0.5  # the image is called normal, and a marked spot is not reported
PRIOR_POWER = 1.0  # 0: classes equally frequent; 1: as frequent as in BUSI
SIZES = (0.86, 1.0)  # of the working size; answers are averaged
SMALLEST_SHARE = 0.0005  # of the image: less is speckle (the smallest lesion of BUSI takes 0.0028)
SMALLEST_SIDE_PX = 64
MOST_FRAMES = 48  # of a cine, spread evenly over it

COLOURED = 40  # a channel differs this much from another: text, calipers or Doppler, not tissue
TINTED_SHARE = 0.25  # of the pixels: more than this is a tinted display, and grey as it is
REPAIR_PX = 15  # coloured pixels take the mean of the grey ones this near

# PS3.3 C.7.3.1.1: Laterality; ImageLaterality, when present, speaks for the image
SIDES = {"L": codes.LEFT, "R": codes.RIGHT, "B": codes.BILATERAL}

# Private, for want of a concept in PS3.16: the Standard names only the probability of cancer.
PROBABILITIES = {
    "normal": Code("PNORMAL", "99PACSNODE", "Probability of normal"),
    "benign": Code("PBENIGN", "99PACSNODE", "Probability of benign"),
    "malignant": codes.PROBABILITY_OF_CANCER,
}


@dataclass(frozen=True, eq=False)
class Look:
    """What the network says about one image."""

    probability: np.ndarray  # (rows, columns) of the source, of each pixel being lesion
    classes: np.ndarray  # (3,) in the order of CLASSES, sums to 1
    lesion: np.ndarray  # bool (rows, columns), one piece or empty

    @property
    def certainty(self) -> float:
        """Mean probability of the lesion's pixels."""
        return float(self.probability[self.lesion].mean()) if self.lesion.any() else 0.0


class BreastUltrasound:
    """Finds the most evident lesion of every image of a series and says how likely it is benign or malignant.

    Single images are read one by one. Of a cine, the frame with the largest confident lesion is reported.
    """

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.runtime = Runtime.choose(device, threads=Options.read(options).threads)
        weights = [load(packed("breast_us", name), PREPROCESSING) for name in WEIGHTS]
        working = int(weights[0].about["config"]["size"])
        self.sizes = [round(share * working / LITE_STEP_PX) * LITE_STEP_PX for share in SIZES]
        self.nets = [self.runtime.place(w.into(ClassificationNet(TripleConfig.of(w.about["config"])))) for w in weights]
        # Training weighed the classes as if they were equally frequent; this goes part of the way back to BUSI's mix.
        names = read_split()["train"]
        counts = np.array([sum(name.startswith(f"{label}/") for name in names) for label in CLASSES])
        self.prior = (counts / counts.sum()) ** PRIOR_POWER
        self.card = Card(
            name=NAME,
            modality=frozenset({"US"}),
            algorithm=Algorithm(f"pacs-node {NAME}", f"0.1.0+{weights[0].sha256[:8]}"),
            intended_use=(
                "Outlines the largest lesion of a breast ultrasound image and estimates whether the image is normal, "
                "benign or malignant. Research use only, not for diagnostic use."
            ),
            weights_sha256={w.name: w.sha256 for w in weights},
        )

    def warm(self) -> None:
        self.look(np.zeros((SMALLEST_SIDE_PX, SMALLEST_SIDE_PX), np.uint8))

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        start = time.monotonic()
        clips = sorted((read_ultrasound(path) for path in files), key=place_in_series)
        if not clips:
            raise UnfitInput("the series has no images")
        images: list[ImageRef] = []
        found: list[Finding] = []
        warnings: list[str] = []
        facts: dict[str, str | float] = {"device": str(self.runtime)}
        for z, clip in enumerate(clips):
            progress(z / len(clips), f"image {z + 1} of {len(clips)}")
            frame, look = self.best_frame(clip)
            images.append(clip.images[frame])
            warnings += [text for text in doubts(clip, frame) if text not in warnings]
            for name, share in zip(CLASSES, look.classes, strict=True):
                facts[f"image {z + 1} P({name})"] = round(float(share), 4)
            if look.lesion.any():
                found.append(finding(clip, look, z, number=len(found) + 1, alone=len(clips) == 1))
        progress(1.0, "done")
        facts["seconds"] = round(time.monotonic() - start, 3)
        return Findings(
            pipeline=NAME,
            geometry="image",
            images=tuple(images),
            findings=tuple(found),
            algorithm=self.card.algorithm,
            measurements=probabilities(look.classes) if len(clips) == 1 else (),
            warnings=tuple(warnings),
            facts=facts,
            sought=codes.MASS,
            sought_site=codes.BREAST,
        )

    def best_frame(self, clip: Clip) -> tuple[int, Look]:
        """Index and reading of the frame with the largest confident lesion; of a single image, that image."""
        count = len(clip.frames)
        chosen = range(count) if count <= MOST_FRAMES else np.linspace(0, count - 1, MOST_FRAMES).astype(int)
        looks = ((int(frame), self.look(tissue(clip, int(frame)), clip.region)) for frame in chosen)  # one at a time
        return max(looks, key=lambda one: one[1].lesion.sum() * one[1].certainty)

    def look(self, grey: np.ndarray, region: tuple[int, int, int, int] | None = None) -> Look:
        """(rows, columns) uint8 -> Look, on the same pixels. Averages the image, its mirror image, and two sizes.

        region: (x0, y0, x1, y1), inclusive, that shows tissue; nothing is looked for outside it.
        """
        rows, columns = window(grey.shape, region)
        answers = [self.answer(grey[rows, columns], size) for size in self.sizes]
        probability = np.zeros(grey.shape, np.float32)
        probability[rows, columns] = np.mean([mask for mask, _ in answers], axis=0)
        shares = np.mean([classes for _, classes in answers], axis=0) * self.prior
        shares /= shares.sum()
        lesion = strongest_piece(probability, INSIDE)
        if shares[CLASSES.index("normal")] > NORMAL_ABOVE or lesion.sum() < SMALLEST_SHARE * lesion.size:
            lesion = np.zeros_like(lesion)
        return Look(probability, shares, lesion)

    def answer(self, grey: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, columns) uint8 -> mask probability (rows, columns), class probabilities (3,), both as trained"""
        image, box = prepare(grey, size)
        both = self.runtime.take(normalise(torch.stack([image, image.flip(-1)])[:, None]))  # (2, 1, size, size)
        with torch.inference_mode(), self.runtime.precision():
            answers = [net(both) for net in self.nets]
        masks = torch.stack([mask.float().sigmoid().cpu() for mask, _ in answers])  # (nets, 2, 1, size, size)
        classes = torch.stack([logits.float().softmax(dim=1).cpu() for _, logits in answers])  # (nets, 2, 3)
        mask = (masks[:, 0, 0] + masks[:, 1, 0].flip(-1)).mean(dim=0) / 2
        return box.take_back(mask).numpy(), classes.mean(dim=(0, 1)).numpy()


def place_in_series(clip: Clip) -> tuple[int, str]:
    """Images of a series follow their InstanceNumber, whatever the order of the files."""
    return int(clip.header.get("InstanceNumber") or 0), clip.images[0].sop_instance_uid


def window(shape: tuple[int, ...], region: tuple[int, int, int, int] | None) -> tuple[slice, slice]:
    """Rows and columns to look at. Raises UnfitInput when there is too little of them."""
    x0, y0, x1, y1 = region or (0, 0, shape[1] - 1, shape[0] - 1)
    rows, columns = slice(max(y0, 0), min(y1 + 1, shape[0])), slice(max(x0, 0), min(x1 + 1, shape[1]))
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    if min(high, wide) < SMALLEST_SIDE_PX:
        raise UnfitInput(
            f"the tissue is {high} x {wide} pixels, at least {SMALLEST_SIDE_PX} x {SMALLEST_SIDE_PX} are needed"
        )
    return rows, columns


def tissue(clip: Clip, frame: int) -> np.ndarray:
    """(rows, columns) uint8: the frame in grey, with burned-in colour replaced by the grey round it."""
    grey = clip.frames[frame]
    if clip.rgb is None:
        return grey
    coloured = np.ptp(clip.rgb[frame], axis=-1) > COLOURED
    if not coloured.any() or coloured.mean() > TINTED_SHARE:
        return grey
    coloured = ndimage.binary_dilation(coloured, iterations=2)  # the blurred rim of letters
    share = ndimage.uniform_filter((~coloured).astype(np.float32), REPAIR_PX)
    level = ndimage.uniform_filter(np.where(coloured, 0, grey).astype(np.float32), REPAIR_PX)
    return np.where(coloured, level / np.maximum(share, 1e-3), grey).clip(0, 255).astype(np.uint8)


def strongest_piece(probability: np.ndarray, above: float) -> np.ndarray:
    """(rows, columns) -> bool: of the 4-connected pieces above the threshold the one with the largest sum of
    probability, large and certain; holes filled, so that a contour can go round it. Empty when nothing is above."""
    pieces, count = ndimage.label(probability > above)
    if count == 0:
        return pieces > 0
    weight = np.bincount(pieces.ravel(), probability.ravel())[1:]
    return ndimage.binary_fill_holes(pieces == weight.argmax() + 1)


def probabilities(classes: np.ndarray) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(PROBABILITIES[name], round(100 * float(share), 1), codes.PERCENT)
        for name, share in zip(CLASSES, classes, strict=True)
    )


def finding(clip: Clip, look: Look, z: int, *, number: int, alone: bool) -> Finding:
    """The lesion of one image, measured. `alone`: the series has no other image and carries the probabilities."""
    (box,) = ndimage.find_objects(look.lesion.astype(np.uint8))
    mask, corner = look.lesion[box], (box[0].start, box[1].start)
    sizes = measure_lesion(mask, corner, z, clip.spacing_mm)
    chances = probabilities(look.classes)
    return Finding(
        number=number,
        label=f"Lesion {number}",
        category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
        type=codes.MASS,
        site=codes.BREAST,
        laterality=side(clip.header),
        mask=mask[None],
        offset_zyx=(z, *corner),
        key_image=z,
        certainty=look.certainty,
        long_axis=sizes.long_axis,
        short_axis=sizes.short_axis,
        measurements=(*sizes.measurements, *(chances[-1:] if alone else chances)),
        evaluations=(Evaluation(codes.US_ORIENTATION, orientation(mask, sizes.long_axis, clip.spacing_mm or (1, 1))),),
    )


def orientation(mask: np.ndarray, long_axis: Axis, spacing_mm: tuple[float, float]) -> Code:
    """CID 6152: parallel when wider than high and the long axis lies within 45 degrees of the horizontal."""
    high_mm, wide_mm = mask.shape[0] * spacing_mm[0], mask.shape[1] * spacing_mm[1]
    (x0, y0), (x1, y1) = long_axis.start_xy, long_axis.end_xy
    flat = abs(y1 - y0) * spacing_mm[0] <= abs(x1 - x0) * spacing_mm[1]
    return codes.PARALLEL if flat and wide_mm > high_mm else codes.NOT_PARALLEL


def side(header: Dataset) -> Code | None:
    """Left or right as the header says. Never inferred from the picture."""
    return SIDES.get(str(header.get("ImageLaterality") or header.get("Laterality") or ""))


def doubts(clip: Clip, frame: int) -> list[str]:
    """What a reader of the result should know about this image, in words."""
    said = []
    if clip.spacing_mm is None:
        said.append("the image carries no calibration: sizes are in pixels, not in mm")
    if len(clip.frames) > 1:
        said.append(
            f"of a cine with {len(clip.frames)} frames only frame {frame + 1}, with the largest lesion, is reported"
        )
    part = str(clip.header.get("BodyPartExamined") or "")
    if part not in ("", "BREAST"):
        said.append(f"BodyPartExamined is {part}: the network has seen breasts only")
    return said
