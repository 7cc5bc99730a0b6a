"""What a route may tell breast-us."""

from __future__ import annotations

from models.options import PipelineOptions


class Options(PipelineOptions):
    pass
