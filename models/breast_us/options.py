"""What a route may tell breast-us."""

from __future__ import annotations

from models.options import PipelineOptions


class Options(PipelineOptions):
    # A category stands for a share of cancers among one's own patients. Weights calibrated on another hospital's
    # images, a quarter of them malignant, do not know it: whoever asks for it vouches that it was compared here.
    suggest_birads: bool = False
