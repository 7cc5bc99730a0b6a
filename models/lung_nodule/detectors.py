"""What marks nodules in a chest CT: a route names one of these, `detector = "nodulenet"`.

Networks in three dimensions, and slices linked to volumes, see voxels of 1 mm; what they mark is brought back to the
source grid here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import ndimage

from models import weights
from models.grid import box_of, first_voxel, isotropic, on_source
from models.lung_nodule import preprocess
from models.lung_nodule.ccfam_fpn import detect as slices
from models.lung_nodule.detections import AROUND_MM, NEIGHBOURS, Candidate, Detection3D, Detections, Marked
from models.lung_nodule.lungs import Lungs
from models.lung_nodule.nodulenet import detect as volumes
from models.lung_nodule.nodulenet import preprocess as preprocess3d
from models.lung_nodule.nodulenet.detect import DetectOptions
from models.lung_nodule.options import DetectorName, Options
from models.lung_nodule.refine import Mix
from models.lung_nodule.rules import unfit
from models.lung_nodule.sliding_unet import SlidingUNet
from models.pipeline import Progress
from models.read import Volume
from models.runtime import Runtime
from models.weights import Weights


class Detector(Protocol):
    """Raises WeightsError when made with weights that cannot be served.

    within_mm   of a candidate's mask, how far a refinement of it may go; None: as far as it likes
    mix         how far its own outline counts there; None: not at all
    """

    loaded: Weights

    @property
    def within_mm(self) -> float | None: ...

    @property
    def mix(self) -> Mix | None: ...

    def warm(self) -> None:
        """Answer something small once, so that the first series does not wait for it."""

    def __call__(self, volume: Volume, lungs: Lungs, progress: Progress) -> Marked:
        """Look at a CT; progress goes from 0 to 1."""

    def why_not(self, candidate: Candidate, volume: Volume, lungs: Lungs) -> str | None:
        """None, or why a candidate, as marked here or as outlined anew, is not to be reported, in words."""


class AtOneMillimetre:
    """What NoduleNet and CCFAM-FPN have in common: they answer on voxels of 1 mm, with a certainty."""

    shipped: str  # name of the weights
    preprocessing: str
    least: float  # certainty of a mark that is reported, unless a route says otherwise: see CARD.md
    within_mm: float | None
    mix: Mix | None = None

    def __init__(self, options: Options, runtime: Runtime) -> None:
        self.options = options
        path = Path(options.checkpoint) if options.checkpoint else weights.packed("lung_nodule", self.shipped)
        self.loaded = weights.load(path, self.preprocessing)
        self.certainty = self.least if options.certainty is None else options.certainty
        self.prepare(runtime)

    def prepare(self, runtime: Runtime) -> None:
        raise NotImplementedError

    def look(self, hu: Callable[[], np.ndarray], lungs: np.ndarray, progress: Progress) -> Detections:
        """int16 HU and bool (z, y, x) on voxels of 1 mm -> what may be nodules there. The HU are made when they are
        needed, so that who looks holds them alone, and no longer than it wants."""
        raise NotImplementedError

    def warm(self) -> None:
        lungs = np.zeros((32, 32, 32), bool)
        lungs[12:20, 12:20, 12:20] = True
        self.look(lambda: np.where(lungs, -850, 0).astype(np.int16), lungs, lambda _share, _what: None)

    def __call__(self, volume: Volume, lungs: Lungs, progress: Progress) -> Marked:
        margin = (
            int(np.ceil(AROUND_MM / min(volume.spacing_mm))) + 1
        )  # at 1 mm the lungs may begin half a voxel earlier
        near = box_of(lungs.mask, margin)
        if near is None:
            return Marked([], (), {})
        offset = [s.start for s in near]
        start = first_voxel(offset, volume.spacing_mm)
        inside = isotropic(lungs.mask[near], volume.spacing_mm, offset)
        found = self.look(lambda: isotropic(volume.hu[near], volume.spacing_mm, offset), inside, progress)
        marks = [candidate(one, start, volume) for one in found if one.score >= self.certainty]
        facts: dict[str, str | float] = {"device": found.device, "marks": len(found)}
        if found.window:
            facts["window"] = found.window
        return Marked([one for one in marks if one is not None], found.remarks, facts)

    def why_not(self, candidate: Candidate, volume: Volume, lungs: Lungs) -> str | None:
        return unfit(candidate, volume, lungs, self.options)


class NoduleNetDetector(AtOneMillimetre):
    """See models.lung_nodule.nodulenet."""

    shipped = "nodulenet_w12"
    within_mm = 3.0
    mix = Mix(fraction=0.5, threshold=0.1)
    preprocessing = preprocess3d.PREPROCESSING
    least = 0.5

    def prepare(self, runtime: Runtime) -> None:
        self.net = volumes.network(self.loaded).to(runtime.device)

    def look(self, hu: Callable[[], np.ndarray], lungs: np.ndarray, progress: Progress) -> Detections:
        options = DetectOptions(
            window=self.options.window,
            views=self.options.views,
            closer=min(volumes.CLOSER, self.certainty / 2),
            outlined=self.certainty,
        )
        return volumes.detect(self.net, hu(), lungs, options=options, progress=progress)


class CCFAMDetector(AtOneMillimetre):
    """See models.lung_nodule.ccfam_fpn."""

    shipped = "ccfam_ccapm_fpn_w16"
    within_mm = 5.0
    preprocessing = preprocess.PREPROCESSING
    least = 0.96

    def prepare(self, runtime: Runtime) -> None:
        self.net = slices.network(self.loaded).to(runtime.device)

    def look(self, hu: Callable[[], np.ndarray], lungs: np.ndarray, progress: Progress) -> Detections:
        return slices.detect(self.net, hu(), lungs, progress=progress)


DETECTORS: Mapping[DetectorName, Callable[[Options, Runtime], Detector]] = {
    "nodulenet": NoduleNetDetector,
    "ccfam-fpn": CCFAMDetector,
    "sliding-unet": SlidingUNet,
}


def candidate(found: Detection3D, start_zyx: tuple[int, int, int], volume: Volume) -> Candidate | None:
    """A detection on a grid of 1 mm that starts at start_zyx of the volume's, on the volume's own; None outside it.

    Its mask is where its probability is above one half there: brought over as True and False, it would grow by half a
    voxel wherever the grids meet. A box without a mask becomes the ellipsoid in it; of a mask in several pieces the
    largest one stays. What lies between two slices goes to the nearest one.
    """
    mask = ellipsoid([b - a for a, b in zip(found.box[:3], found.box[3:], strict=True)])
    mask = mask if found.mask is None else found.mask
    start = [a + b for a, b in zip(found.box[:3], start_zyx, strict=True)]
    soft = found.soft and found.soft.moved(start_zyx).on_source(volume.spacing_mm, volume.hu.shape)
    if soft is not None and (soft.values > 0.5).any():
        there, corner = soft.values > 0.5, soft.start_zyx
    elif on_volume := on_source(mask, start, volume.spacing_mm, volume.hu.shape):
        there, corner = on_volume
    else:
        return None
    labels, _ = ndimage.label(there, structure=NEIGHBOURS)  # specks beside the nodule are not the nodule
    there = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return Candidate(there, corner, found.score, soft).with_mask(there, corner)


def ellipsoid(shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """bool: the one that touches all sides of a box"""
    half = np.array(shape)[:, None, None, None] / 2
    return (((np.indices(shape) + 0.5 - half) / half) ** 2).sum(axis=0) <= 1
