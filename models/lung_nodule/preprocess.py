"""HU -> network input. Training and pipeline share this file, so they cannot drift apart."""

from __future__ import annotations

from torch import Tensor

# HU [-1000, 400] -> [0, 1], the window of the residual U-Net's source.
WINDOW_HU = (-1000.0, 400.0)
PREPROCESSING = "hu-1000..400/1"  # change it with every change of the mapping: weights state what they were trained on


def window(hu: Tensor) -> Tensor:
    """HU -> [0, 1], clipped."""
    low, high = WINDOW_HU
    return ((hu - low) / (high - low)).clamp_(0, 1)
