"""Which finding of one reading is which of another: by how far apart they lie."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def pairing(distance_mm: np.ndarray, gate_mm: np.ndarray) -> list[tuple[int, int]]:
    """(n, m) distances -> pairs (row, column), each row and column at most once, none beyond its gate.

    The assignment (Kuhn 1955) of least total distance, where leaving two unpaired costs as much as their gate.
    """
    cost = np.minimum(distance_mm / gate_mm - 1, 0)
    rows, columns = linear_sum_assignment(cost)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if distance_mm[i, j] < gate_mm[i, j]]
