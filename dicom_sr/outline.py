"""The outline of a mask as a viewer's contour: a closed polygon along pixel edges.

Along the edges its area is the area of the pixels it encloses, so a viewer that recomputes shows the number that
we report; through the pixel centres it would be smaller.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Directed edges round a pixel, clockwise as seen on the screen (y down): the inside lies to the right of the walk.
# (row step to the neighbour, column step, start corner, end corner); corners are (column, row) from the pixel's own.
EDGES = (
    (-1, 0, (0, 0), (1, 0)),  # top
    (0, 1, (1, 0), (1, 1)),  # right
    (1, 0, (1, 1), (0, 1)),  # bottom
    (0, -1, (0, 1), (0, 0)),  # left
)


def outline(mask: np.ndarray) -> np.ndarray:
    """bool (rows, columns) -> float (points, 2): (column, row) corners, the first repeated at the end.

    The outer boundary of the largest 4-connected part; holes in it are enclosed, smaller parts left out.
    (0, 0) is the outer corner of the first pixel, PS3.3 C.18.6.1.1. Raises ValueError for an empty mask.
    """
    parts, count = ndimage.label(mask)
    if count == 0:
        raise ValueError("an empty mask has no outline")
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    part = ndimage.binary_fill_holes(parts[rows, columns] == largest)
    part = np.pad(part, 1)

    # One 4-connected part without holes never touches itself at a corner: one edge leaves every corner.
    leads_to: dict[tuple[int, int], tuple[int, int]] = {}
    for row_step, column_step, (x0, y0), (x1, y1) in EDGES:
        neighbour = np.roll(part, (-row_step, -column_step), axis=(0, 1))
        for row, column in np.argwhere(part & ~neighbour).tolist():
            leads_to[column + x0, row + y0] = column + x1, row + y1

    first_row = int(np.argmax(part.any(axis=1)))
    start = (int(np.argmax(part[first_row])), first_row)  # a top left corner: the walk begins to the right
    corners, at, heading = [start], leads_to[start], (1, 0)
    while at != start:
        following = leads_to[at]
        turned = (following[0] - at[0], following[1] - at[1])
        if turned != heading:
            corners.append(at)
        at, heading = following, turned
    return np.array([*corners, start], float) + np.array([columns.start - 1, rows.start - 1])


def outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """bool (rows, columns) -> for each 4-connected part its outer outline and those of its holes.

    Nothing is left out: even-odd filling of all of them gives the mask again.
    """
    parts, _ = ndimage.label(mask)
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[box] == number
        filled = ndimage.binary_fill_holes(part)
        holes, count = ndimage.label(filled & ~part)  # islands in a hole are parts of their own
        corner = np.array([box[1].start, box[0].start], float)
        loops = [filled, *(holes == hole for hole in range(1, count + 1))]
        found.append([outline(loop) + corner for loop in loops])
    return found


def keyhole(loops: list[np.ndarray]) -> np.ndarray:
    """An outline and those of its holes as one closed polygon, joined by channels of no width (PS3.3 C.8.8.6.3).

    The channels run along pixel edges, never through a pixel's centre.
    """
    outer, *holes = loops
    points = outer
    x, y = outer[0]
    for hole in holes:
        corner = [(hole[0][0], y)]
        points = np.vstack([points, corner, hole[::-1], corner, [(x, y)]])
    moved = np.any(np.diff(points, axis=0) != 0, axis=1)
    return points[np.concatenate([[True], moved])]


def polygon_area(points: np.ndarray) -> float:
    """Area of a closed polygon (shoelace), in the unit of its coordinates squared."""
    x, y = points[:-1].T
    x_next, y_next = points[1:].T
    return abs(float(np.dot(x, y_next) - np.dot(x_next, y))) / 2
