"""The detector that slides the residual U-Net over the lungs, slice by slice, and joins what it marks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from models import weights
from models.lung_nodule.detections import Candidate, Marked
from models.lung_nodule.lungs import Lungs
from models.lung_nodule.options import Options
from models.lung_nodule.preprocess import PREPROCESSING, SIDE, TRAINED_MM, is_native, window
from models.lung_nodule.refine import Mix
from models.lung_nodule.rules import like_no_nodule, unfit
from models.nets.baselines import build_net
from models.pipeline import Progress
from models.read import Volume
from models.runtime import Runtime, Served, example
from models.weights import Weights, WeightsError

CHECKPOINT = "residual_unet_w16"
STRIDE = 64  # step of the windows, pixels; each pixel is in the middle of one window
BATCH = 32


@dataclass(frozen=True, eq=False)
class ServedUNet:
    """A residual U-Net ready to answer, and the weights it answers by."""

    net: Served
    side: int  # of its crops, pixels
    loaded: Weights

    @classmethod
    def at(cls, path: str | None, shipped: str, runtime: Runtime, *, compiled: bool = True) -> ServedUNet:
        """From weights at a path, or the shipped ones of that name; compiled: see Runtime.ready. Raises WeightsError
        when they cannot be served."""
        loaded = weights.load(Path(path) if path else weights.packed("lung_nodule", shipped), PREPROCESSING)
        side = int(loaded.about["config"].get("crop", SIDE))
        net = loaded.into(build_net(loaded.about["config"]))
        return cls(runtime.ready(net, example(4, 1, side, side), most=BATCH, compiled=compiled), side, loaded)

    def __call__(self, batch: Tensor) -> Tensor:
        """(B, 1, side, side) in [0, 1] -> probability, same shape, float32"""
        (logits,) = self.net(batch)
        return torch.sigmoid(logits)


class SlidingUNet:
    """See models.lung_nodule.detectors.Detector."""

    within_mm: float | None = None  # its pieces are parts of nodules as often as not
    mix: Mix | None = None  # it is the network of the refinement, but for the crops

    def __init__(self, options: Options, runtime: Runtime) -> None:
        self.options, self.runtime = options, runtime
        self.look = ServedUNet.at(options.checkpoint, CHECKPOINT, runtime)
        self.loaded = self.look.loaded
        if self.look.side != SIDE:
            raise WeightsError(f"{self.loaded.name} learnt on crops of {self.look.side} pixels, not of {SIDE}")
        self.blend = blending_window().to(runtime.device)

    def warm(self) -> None:
        self.look(torch.zeros(BATCH, 1, SIDE, SIDE))

    def __call__(self, volume: Volume, lungs: Lungs, progress: Progress) -> Marked:
        probability, windows = self.probability(volume, lungs, progress)
        # those that are no nodules are many, hundreds in a scan: they are not looked at again
        kept = [c for c in candidates(probability, self.options) if self.why_not(c, volume, lungs) is None]
        return Marked(kept, (), {"device": str(self.look.net), "windows": windows})

    def why_not(self, candidate: Candidate, volume: Volume, lungs: Lungs) -> str | None:
        return unfit(candidate, volume, lungs, self.options) or like_no_nodule(candidate, volume, lungs, self.options)

    def probability(self, volume: Volume, lungs: Lungs, progress: Progress) -> tuple[np.ndarray, int]:
        """uint8 (z, y, x), 255 = certain; 0 where no window looked. And how many windows looked."""
        out = np.zeros(volume.hu.shape, np.uint8)
        slices = np.flatnonzero(lungs.mask.any(axis=(1, 2)))
        windows = 0
        for done, z in enumerate(slices):
            image, lung = resampled(volume.hu[z], lungs.mask[z], volume.spacing_mm[1:])
            marked, count = self.slide(image, lung)
            if marked.shape != out[z].shape:
                marked = F.interpolate(marked[None, None], out[z].shape, mode="bilinear", align_corners=False)[0, 0]
            out[z] = (255 * marked).round().to(torch.uint8).cpu().numpy()
            windows += count
            progress((done + 1) / len(slices), f"slice {done + 1} of {len(slices)}")
        return out, windows

    def slide(self, image: Tensor, lung: np.ndarray) -> tuple[Tensor, int]:
        """HU float (h, w), bool (h, w) -> probability (h, w) on the runtime's device, and the number of windows.

        Windows of 128 with step 64, laid so that their middles tile the lung's box; those without lung in the middle
        are left out. Overlaps are blended by a Gaussian.
        """
        h, w = image.shape
        edge = (SIDE - STRIDE) // 2
        corners = list(tiles(lung))
        far_y, far_x = (max(corner[axis] for corner in corners) + SIDE for axis in (0, 1))
        pad = edge, max(0, far_x - w - edge), edge, max(0, far_y - h - edge)
        wide = F.pad(window(image)[None, None], pad, mode="constant", value=0.0)[0, 0]  # beyond the image: air
        total, weight = (torch.zeros(wide.shape, device=self.runtime.device) for _ in range(2))
        for start in range(0, len(corners), BATCH):
            part = corners[start : start + BATCH]
            batch = torch.stack([wide[y : y + SIDE, x : x + SIDE] for y, x in part])[:, None]
            for (y, x), probability in zip(part, self.look(batch), strict=True):
                total[y : y + SIDE, x : x + SIDE] += self.blend * probability[0]
                weight[y : y + SIDE, x : x + SIDE] += self.blend
        blended = total / weight.clamp_min(1e-6)
        return blended[edge : edge + h, edge : edge + w], len(corners)


def resampled(hu: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float]) -> tuple[Tensor, np.ndarray]:
    """A slice in HU as float, and its lung mask, on pixels of a size the network knows."""
    image = torch.from_numpy(hu.astype(np.float32))
    if is_native(spacing_mm):
        return image, lung
    shape = [max(16, round(n * mm / TRAINED_MM)) for n, mm in zip(hu.shape, spacing_mm, strict=True)]
    shrinks = shape[0] < hu.shape[0]
    image = F.interpolate(image[None, None], shape, mode="bilinear", align_corners=False, antialias=shrinks)[0, 0]
    mask = F.interpolate(torch.from_numpy(lung)[None, None].float(), shape, mode="nearest-exact")[0, 0] > 0
    return image, mask.numpy()


def tiles(lung: np.ndarray) -> Iterator[tuple[int, int]]:
    """(row, column) of windows whose middles tile the lung's box, on the image padded by half a step on each side."""
    rows, columns = np.flatnonzero(lung.any(axis=1)), np.flatnonzero(lung.any(axis=0))
    for y in range(int(rows[0]), int(rows[-1]) + 1, STRIDE):
        for x in range(int(columns[0]), int(columns[-1]) + 1, STRIDE):
            if lung[y : y + STRIDE, x : x + STRIDE].any():
                yield y, x  # the window starts half a step before its middle, and so does the padded image


def blending_window() -> Tensor:
    """(128, 128) Gaussian of sigma 1/8 of the side, as nnU-Net blends (Isensee 2021)."""
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    line = torch.exp(-0.5 * (place / (SIDE / 8)) ** 2)
    return line[:, None] * line[None, :]


def candidates(probability: np.ndarray, options: Options) -> Iterator[Candidate]:
    """26-connected pieces above the threshold that reach the peak; certainty is the mean probability of the piece."""
    labels, _ = ndimage.label(probability >= round(255 * options.threshold), structure=np.ones((3, 3, 3)))
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == label
        values = probability[box][mask]
        if values.max() >= round(255 * options.peak):
            yield Candidate(mask, (box[0].start, box[1].start, box[2].start), float(values.mean()) / 255)
