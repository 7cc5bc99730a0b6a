"""What a route may tell breast-us."""

from __future__ import annotations

from models.options import PipelineOptions


class Options(PipelineOptions):
    # A category stands for a share of cancers among one's own patients. The weights assume BUSI's 27 %, whatever images
    # they were calibrated on: whoever asks for it vouches that it was compared with the site's own results.
    suggest_birads: bool = False
    checkpoint: str | None = None  # path of other weights
