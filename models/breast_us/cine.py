"""The same lesion from frame to frame: what single frames show becomes one lesion with a mask on each of its frames.

Geometry only: a frame has at most one outline per region, so overlap and distance decide. Time is not asked: a probe
is swept by hand, and the frames looked at are spread over the clip, so seconds say little about millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dicom_sr.regions import Spacing

OVERLAP = 0.3  # of the smaller outline: so much in common is the same lesion
NEAR_MM = 8.0  # and so are outlines with centres this near; lesions side by side are further apart
OUT_OF_SIGHT = 5  # looked-at frames a lesion may be missed on and come back
SEEN_TWICE = 2  # frames: what shows on one frame of many only is speckle more often than a lesion


@dataclass(frozen=True, eq=False)
class Sighting:
    """One lesion on one frame.

    image     index into Findings.images
    mask      bool (h, w), the smallest box that holds it; its upper left pixel is corner_yx of the frame
    classes   (3,) what the network says of this frame's region
    hidden    share of the mask that burned-in colour lay on
    cut       it runs into another region that lies on this one
    """

    image: int
    mask: np.ndarray
    corner_yx: tuple[int, int]
    certainty: float
    classes: np.ndarray
    hidden: float = 0.0
    cut: bool = False

    @classmethod
    def of(
        cls, image: int, lesion: np.ndarray, certainty: float, classes: np.ndarray, hidden: float, cut: bool
    ) -> Sighting:
        """lesion: bool (rows, columns) of the whole frame, not empty."""
        (box,) = ndimage.find_objects(lesion.astype(np.uint8))
        return cls(image, lesion[box], (box[0].start, box[1].start), certainty, classes, hidden, cut)

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def centre_yx(self) -> np.ndarray:
        return np.argwhere(self.mask).mean(axis=0) + self.corner_yx

    def overlap(self, other: Sighting) -> float:
        """Pixels in common, as a share of the smaller one."""
        low = np.maximum(self.corner_yx, other.corner_yx)
        high = np.minimum(
            np.add(self.corner_yx, self.mask.shape),
            np.add(other.corner_yx, other.mask.shape),
        )
        if (high <= low).any():
            return 0.0
        mine, theirs = (
            one.mask[tuple(slice(a - c, b - c) for a, b, c in zip(low, high, one.corner_yx, strict=True))]
            for one in (self, other)
        )
        return float((mine & theirs).sum()) / min(self.area, other.area)


Track = list[Sighting]  # in the order of the frames, each frame once


def link(sightings: Sequence[Sighting], spacing_mm: Spacing) -> list[Track]:
    """The lesions of one region, in the order in which they appear; sightings come in the order of the frames.

    A sighting goes on with the nearest lesion that it may be: last seen at most OUT_OF_SIGHT frames before, with
    OVERLAP in common or NEAR_MM away.
    """
    tracks: list[Track] = []
    for sighting in sightings:
        near = [
            (away, number)
            for number, track in enumerate(tracks)
            if 0 < sighting.image - track[-1].image <= OUT_OF_SIGHT + 1
            and (
                (away := distance_mm(sighting, track[-1], spacing_mm)) <= NEAR_MM
                or sighting.overlap(track[-1]) >= OVERLAP
            )
        ]
        if near:
            tracks[min(near)[1]].append(sighting)
        else:
            tracks.append([sighting])
    return tracks


def distance_mm(one: Sighting, other: Sighting, spacing_mm: Spacing) -> float:
    return float(np.linalg.norm((one.centre_yx - other.centre_yx) * spacing_mm))


def settle(tracks: Sequence[Track], looked_at: int) -> tuple[list[Track], list[Track]]:
    """(lesions, passing marks) of a region on which `looked_at` frames were looked at.

    Where there are enough frames to show a lesion twice, a mark on a single frame is passing. But if nothing else is
    there, the weightiest one counts: better one too many than a lesion lost.
    """
    lasting = [track for track in tracks if len(track) >= min(SEEN_TWICE, looked_at)]
    if not lasting and tracks:
        lasting = [max(tracks, key=lambda track: weight(track, 0))]
    return lasting, [track for track in tracks if not any(track is kept for kept in lasting)]


def key_sighting(track: Track) -> Sighting:
    """The frame to measure on: large and certain; of equals the first."""
    return track[max(range(len(track)), key=lambda place: (weight(track, place), -place))]


def weight(track: Track, place: int) -> float:
    """Area times certainty. An area counts only as far as the neighbouring frames bear it out: one leaking outline
    among sound ones must not become the frame that is measured."""
    neighbours = [sighting.area for sighting in track[max(place - 1, 0) : place + 2]]
    return min(track[place].area, float(np.median(neighbours))) * track[place].certainty


def masks_by_image(track: Track) -> tuple[np.ndarray, tuple[int, int, int]]:
    """bool (d, h, w), the smallest box round the lesion on all its frames, empty on those it is not seen on; offset."""
    low = np.min([sighting.corner_yx for sighting in track], axis=0)
    high = np.max([np.add(sighting.corner_yx, sighting.mask.shape) for sighting in track], axis=0)
    first, last = track[0].image, track[-1].image
    masks = np.zeros((last - first + 1, *(high - low)), bool)
    for sighting in track:
        (y, x), (height, width) = np.subtract(sighting.corner_yx, low), sighting.mask.shape
        masks[sighting.image - first, y : y + height, x : x + width] = sighting.mask
    return masks, (first, int(low[0]), int(low[1]))
