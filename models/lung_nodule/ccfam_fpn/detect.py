"""The detector on slices over a whole chest CT of 1 mm: slice by slice, in batches, linked to findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.grid import box_of
from models.lung_nodule.ccfam_fpn.link import SliceBoxes, link_boxes
from models.lung_nodule.detections import AROUND_MM, Detections, is_out_of_memory
from models.lung_nodule.preprocess import TRAINED_MM, window
from models.morphology import within_steps
from models.nets.ccfam_fpn import CCFAMFPN, CCFAMConfig
from models.pipeline import Progress
from models.pixels import AIR_HU
from models.runtime import Runtime
from models.weights import Weights, WeightsError

IN_LUNGS = 0.25  # share of a box that must be lung: nodules at the pleura lie partly outside the mask
RIM_MM = 10  # around the lungs, left as it is when nothing else is shown
LungsFirst = Literal["boxes", "image", "no"]
STEP = 32  # rows and columns are multiples of this; what is added is air


def network(loaded: Weights) -> CCFAMFPN:
    """Raises WeightsError when the weights are another network's, or do not fit."""
    config = loaded.about["config"]
    if "anchors" not in config:
        raise WeightsError(f"{loaded.name} is no detector of ccfam_fpn: train one with models.training.train ccfam_fpn")
    return cast(CCFAMFPN, loaded.into(CCFAMFPN(CCFAMConfig.of(config))))


@dataclass(frozen=True)
class SliceOptions:
    """How a scan is searched: slices looked at together, the score that a box needs to be linked, and what the lungs
    are segmented for: to drop boxes outside of them (as served), to show nothing else either, or for nothing.

    How many boxes are linked decides how long a finding is, and so its certainty: least_score is no option of a route.
    """

    batch: int = 8
    least_score: float = 0.2
    lungs_first: LungsFirst = "boxes"


def detect(
    model: CCFAMFPN,
    hu: np.ndarray,
    lungs: np.ndarray,
    *,
    options: SliceOptions = SliceOptions(),
    progress: Progress = lambda fraction, words: None,
) -> Detections:
    """int16 HU and bool (z, y, x) on voxels of 1 mm -> what may be nodules, on the device that the model is on.

    Slices are shown in pixels of TRAINED_MM with their neighbours, the last one again at an end of the scan. When
    memory does not suffice fewer slices are looked at together, then the processor is taken; the remarks say so.
    Raises torch.OutOfMemoryError when a single slice does not fit there either.
    """
    home = next(model.parameters()).device
    runtime = Runtime.choose(str(home))
    remarks: list[str] = []
    if options.lungs_first == "no":
        lungs = np.ones_like(lungs)
    near = box_of(lungs, AROUND_MM)
    if near is None:
        return Detections([], remarks=remarks, window=0, device=str(runtime))
    _, rows, columns = near
    if options.lungs_first == "image":
        hu = np.where(within_steps(lungs, RIM_MM), hu, np.int16(AIR_HU))
    marked = np.flatnonzero(lungs.any(axis=(1, 2)))
    found: dict[int, SliceBoxes] = {}
    batch, done = options.batch, 0
    while done < len(marked):
        progress(done / len(marked), f"slice {done + 1} of {len(marked)}")
        part = marked[done : done + batch]
        out_of_memory = False
        try:
            seen = detect_slices(model, stack_channels(hu, part, model.config.slices, rows, columns), runtime)
        except RuntimeError as error:  # on a processor torch has no class of its own for it
            if not is_out_of_memory(error):
                raise
            out_of_memory = True
        if out_of_memory:
            runtime, batch = less(model, runtime, batch, remarks)
            continue
        for z, one in zip(part.tolist(), seen, strict=True):
            found[z] = within(one, lungs[z], (rows.start, columns.start), options.least_score)
        done += len(part)
    model.to(home)  # if the processor had to help out, it was for this scan only
    progress(1.0, "linking boxes")
    return Detections(link_boxes(found), remarks=remarks, window=0, device=str(runtime))


def less(model: CCFAMFPN, runtime: Runtime, batch: int, remarks: list[str]) -> tuple[Runtime, int]:
    """What is tried when memory ran out: half as many slices, then the processor. Raises when nothing is left."""
    remarks.append(f"{batch} slices together did not fit into the memory of {runtime.device}; tried again in less")
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    if batch > 1:
        return runtime, batch // 2
    if runtime.device.type == "cpu":
        raise torch.OutOfMemoryError("no memory for a single slice on any device")
    model.to("cpu")
    return Runtime.choose("cpu"), batch


def stack_channels(hu: np.ndarray, slices: np.ndarray, channels: int, rows: slice, columns: slice) -> Tensor:
    """Network input (n, channels, h, w) in [0, 1] at TRAINED_MM, each slice with its neighbours as channels; behind the
    last row and column air, up to a multiple of STEP."""
    fine = at_trained_size(with_neighbours(hu, slices, channels, rows, columns))
    height, width = fine.shape[2:]
    return F.pad(window(fine), (0, -width % STEP, 0, -height % STEP))


def with_neighbours(hu: np.ndarray, slices: np.ndarray, channels: int, rows: slice, columns: slice) -> Tensor:
    """float32 (n, channels, h, w) in HU, the slice itself in the middle"""
    offsets = np.arange(channels) - channels // 2
    which = np.clip(slices[:, None] + offsets, 0, len(hu) - 1)
    return torch.from_numpy(np.ascontiguousarray(hu[which, rows, columns], np.float32))


def at_trained_size(images: Tensor) -> Tensor:
    """Pixels of 1 mm (n, channels, h, w) -> of TRAINED_MM"""
    return F.interpolate(images, scale_factor=1 / TRAINED_MM, mode="bilinear", recompute_scale_factor=False)


@torch.inference_mode()
def detect_slices(model: CCFAMFPN, images: Tensor, runtime: Runtime) -> list[SliceBoxes]:
    """Boxes in pixels of 1 mm of the part that was looked at."""
    with runtime.precision():
        seen = model.eval()(runtime.take(images))
    return [
        SliceBoxes(
            one.boxes.float().cpu().numpy() * TRAINED_MM,
            one.scores.float().cpu().numpy(),
            one.proposed.float().cpu().numpy(),
        )
        for one in seen
    ]


def within(found: SliceBoxes, lungs: np.ndarray, corner: tuple[int, int], least_score: float) -> SliceBoxes:
    """The boxes of score enough that lie in the lungs by IN_LUNGS, in pixels of the slice: `corner` is where the part
    that was looked at begins."""
    boxes = found.boxes + np.array([*corner, *corner], np.float32)
    kept = []
    for i, (top, left, bottom, right) in enumerate(boxes):
        part = lungs[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        if found.scores[i] >= least_score and part.size and part.mean() >= IN_LUNGS:
            kept.append(i)
    return SliceBoxes(boxes[kept], found.scores[kept], found.proposed[kept])
