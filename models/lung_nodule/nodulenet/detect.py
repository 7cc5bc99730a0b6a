"""NoduleNet over a whole chest CT of 1 mm: in one piece if memory allows, else in windows that overlap.

The size of the windows follows from the machine and the settings alone, so the same scan gives the same answer. When
memory runs out all the same, smaller windows are tried, then the processor, and the answer says so in words.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.grid import Soft, box_at, box_of, in_common
from models.layers.boxes import centres, clip, decode, nms, sides
from models.lung_nodule.detections import AROUND_MM, Detection3D, Detections, is_out_of_memory
from models.lung_nodule.nodulenet.mirrored import MirroredViews
from models.lung_nodule.nodulenet.preprocess import OUTSIDE, network_input, prepare
from models.lung_nodule.nodulenet.proposals import OVERLAP, proposals, without_margin
from models.nets.nodulenet import FULL_WIDTH, MASK, RCNN, STEP, NoduleNet, NoduleNetConfig, align_boxes, fold_batchnorm
from models.pipeline import Progress
from models.runtime import Runtime, channels_last
from models.weights import Weights

WINDOWS = (208, 160, 128, 96)  # voxels; the published one, and what is tried when memory does not suffice
SEAM = 32  # voxels that neighbouring windows share
SLACK = 4  # voxels beyond its own half of the seam in which a window's answer still counts: none falls between two
CLOSER = 0.25  # certainty from which a place is looked at again: what four views give 0.5 one gave 0.54 or more (val)
CLOSE = 64  # voxels along a side of a closer look, as in training; the middle half of it counts
CLOSE_LARGE = 96  # round a box whose longest side is more than HALF
HALF = CLOSE // 2
MASK_OVERLAP = 0.3  # IoU of masks above which of two detections the less certain goes
# of the first look at full width, in bfloat16 (as measured at width 12) or not (twice that)
BYTES_PER_VOXEL = {True: 36, False: 72}
FIXED_BYTES = 4  # of these, what does not shrink with the width


def network(loaded: Weights) -> NoduleNet:
    """Raises WeightsError when the weights do not fit."""
    return cast(NoduleNet, loaded.into(NoduleNet(NoduleNetConfig.of(loaded.about["config"]))))


@dataclass(frozen=True)
class DetectOptions:
    """How a scan is searched: once as a whole, then closer round what that look marked.

    min_score       RPN probability that the box head needs to look at a place
    max_proposals   places that it looks at, in one window
    closer          certainty of the first look that a place needs for a closer one
    max_closer      places that get one: the most certain
    outlined        certainty, of the closer look, that a mark needs for a mask
    window          voxels along a side of the first look; 0: the whole lungs, or else as much as memory_gb takes
    memory_gb       for the network's maps; 0: a sixth of the processor's memory but at most 2.5 GB, or half of a GPU's
    stage           heads that are asked: 1, 2 or 3, see models.nets.nodulenet; never more than have learnt
    views           of each place that the closer look averages, 1 to 4: as it is, mirrored in x, in y, in both
    """

    min_score: float = 0.02
    max_proposals: int = 300
    closer: float = CLOSER
    max_closer: int = 50
    outlined: float = 0.0
    window: int = 0
    memory_gb: float = 0.0
    stage: int = MASK
    views: int = 1


def detect(
    model: NoduleNet,
    hu: np.ndarray,
    lungs: np.ndarray,
    *,
    options: DetectOptions = DetectOptions(),
    progress: Progress = lambda fraction, words: None,
) -> Detections:
    """int16 HU and bool (z, y, x) on voxels of 1 mm -> what may be nodules, on the device that the model is on.

    Raises torch.OutOfMemoryError when the processor's memory does not suffice for the smallest windows either.
    """
    progress(0.0, "preparing the lungs")
    near = box_of(lungs, AROUND_MM)
    runtime = Runtime.choose(str(next(model.parameters()).device))
    if near is None:
        return Detections([], remarks=(), window=0, device=str(runtime))
    grey, inside = prepare(hu[near], lungs[near]), lungs[near]
    del hu  # tens of MB that nothing needs while the maps take the most
    remarks: list[str] = []
    served = channels_last(fold_batchnorm(model))
    for place in dict.fromkeys((str(runtime.device), "cpu")):
        runtime = Runtime.choose(place)
        for side in sides_to_try(served, grey.shape, runtime, options):
            out_of_memory = False
            try:
                found = detect_windows(served, grey, inside, side, runtime, options, progress)
            except RuntimeError as error:  # on a processor torch has no class of its own for it
                if not is_out_of_memory(error):
                    raise
                out_of_memory = True
            if not out_of_memory:
                corner = [part.start for part in near]
                return Detections(
                    [move(one, corner) for one in found], remarks=remarks, window=side, device=str(runtime)
                )
            if runtime.device.type == "cuda":
                torch.cuda.empty_cache()  # after the error is gone: it held the maps
            remarks.append(f"{window_words(side)} did not fit into the memory of {runtime.device}; tried again in less")
    raise torch.OutOfMemoryError(f"no memory for windows of {WINDOWS[-1]} voxels on any device: {'; '.join(remarks)}")


def window_words(side: int) -> str:
    return f"windows of {side} voxels" if side else "the lungs in one piece"


# ----------------------------------------------------------------------------------------------------------- windows


def sides_to_try(model: NoduleNet, shape: Sequence[int], runtime: Runtime, options: DetectOptions) -> list[int]:
    """0 for the whole, then windows ever smaller: from what memory is said to take, or from the one asked for."""
    if options.window:
        return [multiple(options.window), *(side for side in WINDOWS if side < options.window)]
    budget = options.memory_gb * 1e9 or default_budget(runtime)
    each = need_per_voxel(model.config.width, runtime.bf16)
    voxels = {0: int(np.prod([multiple(n) for n in shape]))}
    voxels |= {side: side**3 for side in WINDOWS if side < max(shape)}
    fitting = [side for side, count in voxels.items() if count * each <= budget]
    return fitting or [WINDOWS[-1]]


def need_per_voxel(width: int, bf16: bool) -> float:
    """Bytes that a forward pass takes for each voxel of a window, at most, as measured."""
    growing = BYTES_PER_VOXEL[bf16] - FIXED_BYTES
    return FIXED_BYTES + growing * width / FULL_WIDTH


def default_budget(runtime: Runtime) -> float:
    """Bytes. All memory, not what is free just now: that would make the answer depend on what else runs."""
    if runtime.device.type == "cuda":
        return torch.cuda.get_device_properties(runtime.device).total_memory / 2
    return min(2.5e9, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 6)


def multiple(side: int) -> int:
    """The next one that the network takes."""
    return -(-side // STEP) * STEP


@dataclass(frozen=True)
class Window:
    """start and shape in voxels; `own_from` to `own_to` is the part whose answers are taken from this window."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    own_from: tuple[float, ...]
    own_to: tuple[float, ...]

    @property
    def box(self) -> tuple[slice, ...]:
        return box_at(self.start, self.shape)

    def owns(self, box: Tensor) -> bool:
        """Whether the middle of a box (6,) in voxels of the volume lies in its part."""
        middle = centres(box).tolist()
        return all(a <= m < b for a, m, b in zip(self.own_from, middle, self.own_to, strict=True))


Found = tuple[Tensor, Detection3D]  # a box as the network gives it and the detection, in voxels of the volume


def windows(shape: Sequence[int], side: int) -> list[Window]:
    """Windows that share SEAM voxels or more and cover the shape; 0: one that is as large. Starts are multiples of 16.

    They may stick out at the end. Seams are halved between neighbours; each keeps SLACK more than its half.
    Raises ValueError for a side that is nothing but seam.
    """
    if 0 < side <= SEAM:
        raise ValueError(f"windows of {side} voxels that share {SEAM} cover nothing; at least {2 * SEAM} are needed")
    lines = []
    for n in map(multiple, shape):
        length = min(side or n, n)
        starts = [0]
        while starts[-1] + length < n:
            starts.append(min(starts[-1] + length - SEAM, n - length))
        middles = [(a + length + b) / 2 for a, b in itertools.pairwise(starts)]
        line = zip(
            starts,
            [-np.inf, *(m - SLACK for m in middles)],
            [*(m + SLACK for m in middles), np.inf],
            strict=True,
        )
        lines.append([(start, length, low, high) for start, low, high in line])
    return [Window(*map(tuple, zip(*one, strict=True))) for one in itertools.product(*lines)]


def detect_windows(
    model: NoduleNet,
    grey: np.ndarray,
    lungs: np.ndarray,
    side: int,
    runtime: Runtime,
    options: DetectOptions,
    progress: Progress,
) -> list[Detection3D]:
    """Every window that has lung in it, then closer what is marked there; what two windows found is one detection."""
    model = model.to(runtime.device)
    wanted = [window for window in windows(grey.shape, side) if lungs[window.box].any()]
    first = replace(options, views=1, stage=min(options.stage, RCNN))
    found: list[Found] = []
    for done, window in enumerate(wanted):
        which = f"window {done + 1} of {len(wanted)}"
        tell = partial(sub_progress, progress, 0.05 + 0.45 * done / len(wanted), 0.45 / len(wanted), which)
        tell(0.0, "looking")
        found += detect_window(model, grey[window.box], window, runtime, first, tell)
    found = once(found)
    close = closer_windows([box for box, one in found if one.score >= options.closer], grey.shape, options.max_closer)
    found = [each for each in found if not any(window.owns(each[0]) for window in close)]
    for done, window in enumerate(close):
        which = f"place {done + 1} of {len(close)}"
        tell = partial(sub_progress, progress, 0.5 + 0.5 * done / len(close), 0.5 / len(close), which)
        found += detect_window(model, grey[window.box], window, runtime, options, tell)
    progress(1.0, f"{len(found)} places found")
    return distinct([one for _, one in once(found)])


def once(found: list[Found]) -> list[Found]:
    """Without what overlaps something more certain; the most certain first."""
    if not found:
        return []
    boxes = torch.stack([box for box, _ in found])
    scores = torch.tensor([one.score for _, one in found])
    return [found[place] for place in nms(boxes, scores, OVERLAP).tolist()]


def closer_windows(boxes: Sequence[Tensor], shape: Sequence[int], most: int) -> list[Window]:
    """A window round each of the boxes, which come the most certain first, unless one before has it in its middle.

    They start at multiples of 16, as the first look does, and none sticks out of what that saw: at an edge the
    middle reaches up to it.
    """
    found: list[Window] = []
    for box in boxes:
        if len(found) < most and not any(window.owns(box) for window in found):
            side = CLOSE if float(sides(box).max()) <= HALF else CLOSE_LARGE
            found.append(closer_window(centres(box).tolist(), side, shape))
    return found


def closer_window(centre: Sequence[float], side: int, shape: Sequence[int]) -> Window:
    line = []
    for middle, n in zip(centre, map(multiple, shape), strict=True):
        length = min(side, n)
        start = min(max(0, round((middle - length / 2) / STEP) * STEP), n - length)
        low = start + length / 4 if start else -np.inf
        high = start + 3 * length / 4 if start + length < n else np.inf
        line.append((start, length, low, high))
    return Window(*map(tuple, zip(*line, strict=True)))


def sub_progress(progress: Progress, start: float, length: float, which: str, fraction: float, what: str) -> None:
    """Progress of a part of the whole."""
    progress(start + length * fraction, f"{which}: {what}")


@torch.inference_mode()
def detect_window(
    model: NoduleNet, grey: np.ndarray, window: Window, runtime: Runtime, options: DetectOptions, progress: Progress
) -> list[Found]:
    """One window, uint8."""
    stage = min(options.stage, int(model.stage))
    ends = [side for n, m in zip(window.shape, grey.shape, strict=True) for side in (n - m, 0)][::-1]
    image = network_input(F.pad(torch.from_numpy(grey), ends, value=OUTSIDE), runtime.number)[None, None]
    with runtime.precision():
        image = runtime.take(image)
        looks = MirroredViews(model, image, options.views)
        boxes, rpn = proposals(
            looks.levels, 0, window.shape, min_score=options.min_score, max_proposals=options.max_proposals
        )
        progress(0.5, f"{len(boxes)} places")
        score, rcnn = rpn, None
        if stage >= RCNN:
            rcnn, deltas = looks.judge(boxes)
            score = (rpn + rcnn) / 2
            boxes = clip(decode(deltas, boxes), window.shape)
        start = torch.tensor(window.start, device=boxes.device)
        low, high = (torch.tensor(side, device=boxes.device) for side in (window.own_from, window.own_to))
        middles = centres(boxes) + start
        own = ((middles >= low) & (middles < high)).all(dim=1).nonzero()[:, 0]
        kept = own[nms(boxes[own], score[own], OVERLAP)]
        masks: dict[int, Soft] = {}
        if stage >= MASK:
            outlined = kept[score[kept] >= options.outlined]
            corners = align_boxes(boxes[outlined], window.shape).tolist()
            for view, look in enumerate(looks.looks if corners else ()):  # most of the time goes by here
                progress(0.5 + 0.3 * view / len(looks.looks), f"fine map {view + 1} of {len(looks.looks)}")
                model.fine(look.maps)
            for number, (place, box) in enumerate(zip(outlined.tolist(), corners, strict=True)):
                progress(0.8 + 0.2 * number / len(corners), f"outline {number + 1} of {len(corners)}")
                masks[place] = Soft(looks.outline(box).sigmoid().float().cpu().numpy(), (box[0], box[1], box[2]))
    offset = torch.tensor([*window.start, *window.start])
    found = []
    for place in kept.tolist():
        box = boxes[place].float().cpu()
        one = detection(
            box,
            masks.get(place),
            float(score[place]),
            float(rpn[place]),
            None if rcnn is None else float(rcnn[place]),
        )
        found.append((box + offset, move(one, window.start)))
    return found


def detection(box: Tensor, soft: Soft | None, score: float, rpn: float, rcnn: float | None) -> Detection3D:
    """From the box as the network gives it, with margin, and what the mask head says in a larger one."""
    z, y, x = (centres(box) - 0.5).tolist()  # of the boxes voxel 0 is from 0 to 1, as an index its middle is 0
    tight = None if soft is None else box_of(soft.values > 0.5, margin=0)
    if soft is None or tight is None:
        nodule = without_margin(box)
        starts, ends = nodule[:3].floor().int().tolist(), nodule[3:].ceil().int().tolist()
        return Detection3D((z, y, x), (*starts, *ends), None, score, rpn, rcnn)
    starts = [a + s.start for a, s in zip(soft.start_zyx, tight, strict=True)]
    ends = [a + s.stop for a, s in zip(soft.start_zyx, tight, strict=True)]
    return Detection3D((z, y, x), (*starts, *ends), soft.values[tight] > 0.5, score, rpn, rcnn, soft)


def move(one: Detection3D, by: Sequence[int]) -> Detection3D:
    z, y, x = (float(c + b) for c, b in zip(one.centre_zyx, by, strict=True))
    box = [int(side + b) for side, b in zip(one.box, [*by, *by], strict=True)]
    soft = None if one.soft is None else one.soft.moved(by)
    return replace(one, centre_zyx=(z, y, x), box=(box[0], box[1], box[2], box[3], box[4], box[5]), soft=soft)


def distinct(found: Sequence[Detection3D]) -> list[Detection3D]:
    """Without those whose mask is in good part that of a more certain one; the most certain come first."""
    kept: list[Detection3D] = []
    for one in found:
        if all(mask_iou(one, other) <= MASK_OVERLAP for other in kept):
            kept.append(one)
    return kept


def mask_iou(one: Detection3D, other: Detection3D) -> float:
    """0 when either has no mask"""
    if one.mask is None or other.mask is None:
        return 0.0
    shared = in_common(one.mask, one.box[:3], other.mask, other.box[:3])
    return shared / float(one.mask.sum() + other.mask.sum() - shared)
