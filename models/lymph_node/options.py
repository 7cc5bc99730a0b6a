"""What a route may tell lymph-node."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from models.options import PipelineOptions


class Options(PipelineOptions):
    experimental: bool = False  # must be true: no real image of a lymph node was used, see CARD.md
    certainty: float | None = Field(default=None, ge=0, le=1)  # that a mark needs; None: as CARD.md says
    candidates: int = Field(default=60, ge=1, le=500)  # of a scan that are looked at, the roundest
    smallest_mm: float = Field(default=5.0, ge=0)  # short axis
    largest_mm: float = Field(default=60.0, gt=0)  # short axis
    apart_mm: float = Field(default=10.0, ge=0)  # of two marks nearer to each other the less certain is dropped
    at_most: int = Field(default=30, ge=1)  # findings kept, the most certain
    attention: bool = False  # a picture of each finding: nine slices, with the weights of places and slices
    checkpoint: str | None = None  # path of other weights

    @model_validator(mode="after")
    def is_meant(self) -> Self:
        if not self.experimental:
            raise ValueError(
                "lymph-node was never tried on a real lymph node; a route that wants it all the same says"
                " options = { experimental = true }"
            )
        return self
