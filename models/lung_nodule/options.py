"""What a route may tell lung-nodule."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from models.options import PipelineOptions

Purpose = Literal["screening", "incidental"]  # what a study was made for: Lung-RADS or Fleischner


class Options(PipelineOptions):
    compares: ClassVar[bool] = True

    threshold: float = Field(default=0.5, gt=0, lt=1)  # of the probability: what is nodule
    peak: float = Field(default=0.8, gt=0, le=1)  # a nodule must reach this probability somewhere
    smallest_mm: float = Field(
        default=4.0, ge=0
    )  # mean diameter; the training set holds few smaller ones, most are vessels
    largest_mm: float = Field(
        default=40.0, gt=0
    )  # above 30 mm it is a mass; the training set's crops hold little above this
    in_lung: float = Field(default=0.5, ge=0, le=1)  # share of the nodule inside the closed lung mask
    elongation: float = Field(default=3.0, ge=1)  # longest to second axis of the body of inertia; above it is a vessel
    flatness: float = Field(
        default=4.0, ge=1
    )  # longest to shortest axis; above it is a fissure or the diaphragm's dome
    crowded: float = Field(
        default=0.3, ge=0, le=1
    )  # soft tissue in the lung 1 to 3 mm around it; above it a vessel goes on
    thin_mm: float = Field(default=2.5, ge=0)  # with slices this near to each other a nodule must be on two of them
    at_most: int = Field(default=30, ge=1)  # findings kept, the most certain first
    refine: bool = True  # outline every finding anew, in the middle of a crop of its own: better by 0.06 Dice, CARD.md
    refine_flips: bool = False  # ... averaged over the crop and its mirror images: four times the work
    purpose: Purpose | None = None  # of the study; without it nothing is suggested
    checkpoint: str | None = None  # path of other weights
    refine_checkpoint: str | None = None  # ... for the second look
