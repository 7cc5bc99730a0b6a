"""What is black all round a picture of tissue: cut off before a network sees it, in training and serving alike."""

from __future__ import annotations

import numpy as np

DARK = 10  # grey values up to this are a display's black, compression included
LIT_SHARE = 0.03  # of a row or column: with less of it brighter than DARK (a letter, a ruler) it is margin
LEAST_KEPT = 0.25  # of either side; where less would be left, the picture is dark rather than framed


def without_margins(grey: np.ndarray) -> tuple[slice, slice]:
    """uint8 (rows, columns) -> the rows and columns that are left when the black ones at the four borders are cut.

    Everything, where hardly anything would be left."""
    lit = grey > DARK
    rows = span(lit.mean(axis=1))
    columns = span(lit[rows].mean(axis=0))
    kept = (rows.stop - rows.start) / grey.shape[0], (columns.stop - columns.start) / grey.shape[1]
    return (rows, columns) if min(kept) >= LEAST_KEPT else (slice(0, grey.shape[0]), slice(0, grey.shape[1]))


def span(share: np.ndarray) -> slice:
    """From the first to the last line of which more than LIT_SHARE is lit; all of them when none is."""
    found = np.flatnonzero(share > LIT_SHARE)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, len(share))
