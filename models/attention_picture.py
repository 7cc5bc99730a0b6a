"""Where recurrent attention looked: the nine slices of a candidate, and at each step the weights of places and slices.

As the figures of the source show it: a row of the slices, below it a row for each step with the slices dimmed by the
weight of the slice, coloured by the weight of the place.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dicom_sr.findings import Finding, Picture
from dicom_sr.header import RESEARCH_ONLY
from models.candidate_server import Said

TILE = 72  # pixels
GAP = 4
LEFT, TOP, BOTTOM = 84, 56, 30
NARROWEST = 520  # the words above fit in
FONT = ImageFont.load_default(13)
TITLE = "where the network looked"
WHITE, GREY = (255, 255, 255), (170, 180, 185)


def attention_picture(patch: np.ndarray, spatial: np.ndarray, temporal: np.ndarray) -> np.ndarray:
    """patch (slices, rows, columns) in [0, 1], spatial (steps, 8, 8), temporal (steps, slices) -> uint8 (h, w, 3)

    Orange is where a step looks; a frame's brightness, and the number in it, how much of its attention a slice has.
    """
    slices, steps = temporal.shape[1], len(spatial)
    beyond = (len(patch) - slices) // 2  # a network of fewer slices sees those in the middle
    patch = patch[beyond : beyond + slices]
    size = (max(LEFT + slices * (TILE + GAP), NARROWEST), TOP + (steps + 1) * (TILE + GAP) + BOTTOM)
    canvas = Image.new("RGB", size, (10, 14, 16))
    pen = ImageDraw.Draw(canvas)
    pen.text((GAP, GAP), TITLE.capitalize(), fill=WHITE, font=FONT)
    pen.text((GAP, GAP + 18), "slices from left to right, steps from top to bottom; orange: where it looks", GREY, FONT)
    grey = [_large(one, Image.Resampling.BICUBIC) for one in patch]
    for step in range(-1, steps):
        top = TOP + (step + 1) * (TILE + GAP)
        pen.text((GAP, top + TILE // 2 - 8), "slices" if step < 0 else f"step {step + 1}", fill=WHITE, font=FONT)
        for z in range(slices):
            left = LEFT + z * (TILE + GAP)
            if step < 0:
                tile = np.repeat(grey[z][..., None], 3, axis=2)
            else:
                share = float(temporal[step, z] / temporal[step].max())
                where = _large(spatial[step] / spatial[step].max(), Image.Resampling.BILINEAR)[..., None]
                tile = grey[z][..., None] * (0.35 + 0.65 * share) * np.ones(3)
                tile = tile * (1 - 0.55 * where) + where * 0.55 * share * np.array([1.0, 0.59, 0.0])
            canvas.paste(Image.fromarray((255 * tile.clip(0, 1)).astype(np.uint8)), (left, top))
            if step >= 0:
                pen.text((left + 3, top + TILE - 16), f"{temporal[step, z]:.0%}", fill=WHITE, font=FONT)
    pen.text((GAP, size[1] - BOTTOM + 6), f"{RESEARCH_ONLY}.", fill=GREY, font=FONT)
    return np.asarray(canvas)


def explanation(finding: Finding, patch: np.ndarray, said: Said, at: int) -> Picture:
    """The picture of a finding that was candidate `at` of what the network said."""
    return Picture(finding.number, TITLE, attention_picture(patch, said.spatial[at], said.temporal[at]))


def _large(image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    """(rows, columns) in [0, 1] -> float (TILE, TILE)"""
    picture = Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).resize((TILE, TILE), resample)
    return np.asarray(picture).astype(np.float32) / 255
