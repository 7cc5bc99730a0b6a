"""HU -> network input. Training and pipeline share this file, so they cannot drift apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# HU [-1000, 400] -> [0, 1], the window of the residual U-Net's source.
WINDOW_HU = (-1000.0, 400.0)
PREPROCESSING = "hu-1000..400/1"  # change it with every change of the mapping: weights state what they were trained on

SIDE = 128  # rows and columns of the network's input

# The network was trained on native pixels of 0.5 to 1.0 mm (LIDC: 0.46 to 0.98), scaled by 0.85 to 1.15 at random.
# Slices outside this range are resampled to TRAINED_MM and the answer is brought back.
NATIVE_MM = (0.45, 1.1)
TRAINED_MM = 0.7


def is_native(spacing_mm: Sequence[float]) -> bool:
    """Whether pixels (between rows, between columns) are of a size that the network was trained on."""
    return all(NATIVE_MM[0] <= mm <= NATIVE_MM[1] for mm in spacing_mm)


def window(hu: Tensor) -> Tensor:
    """HU -> [0, 1], clipped."""
    low, high = WINDOW_HU
    return ((hu - low) / (high - low)).clamp_(0, 1)
