"""What a route may tell lung-nodule."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from models.options import PipelineOptions

Purpose = Literal["screening", "incidental"]  # what a study was made for: Lung-RADS or Fleischner
DetectorName = Literal["nodulenet", "ccfam-fpn", "sliding-unet"]
RefinerName = Literal["model-1", "model-2"]  # of its source: with a ViT in the bottleneck, or without
LEAST_WINDOW = 64  # voxels: neighbours share 32
OPTION_DETECTORS: dict[str, tuple[DetectorName, ...]] = {  # options that not every detector has
    "certainty": ("nodulenet", "ccfam-fpn"),
    "window": ("nodulenet",),
    "views": ("nodulenet",),
    "peak": ("sliding-unet",),
    "elongation": ("sliding-unet",),
    "flatness": ("sliding-unet",),
    "surround_soft_tissue": ("sliding-unet",),
    "thin_mm": ("sliding-unet",),
}


class Options(PipelineOptions):
    compares: ClassVar[bool] = True

    detector: DetectorName = "nodulenet"  # what marks nodules: in volumes, in slices with boxes, in slices with masks
    # of nodulenet and ccfam-fpn
    certainty: float | None = Field(default=None, ge=0, le=1)  # that a mark needs; None: as CARD.md says
    # of nodulenet alone
    window: int = Field(default=0, ge=0)  # voxels of 1 mm along a side that are looked at together; 0: by memory
    views: int = Field(default=4, ge=1, le=4)  # of what is marked, averaged: as it is, mirrored in x, in y, both
    # of all
    threshold: float = Field(default=0.5, gt=0, lt=1)  # of the probability: what is nodule; nodulenet: see refine.Mix
    smallest_mm: float = Field(
        default=4.0, ge=0
    )  # mean diameter; the training set holds few smaller ones, most are vessels
    largest_mm: float = Field(
        default=40.0, gt=0
    )  # above 30 mm it is a mass; the training set's crops hold little above this
    in_lung: float = Field(default=0.5, ge=0, le=1)  # share of the nodule inside the closed lung mask
    # of sliding-unet alone
    peak: float = Field(default=0.8, gt=0, le=1)  # a nodule must reach this probability somewhere
    elongation: float = Field(default=3.0, ge=1)  # longest to second axis of the body of inertia; above it is a vessel
    flatness: float = Field(
        default=4.0, ge=1
    )  # longest to shortest axis; above it is a fissure or the diaphragm's dome
    surround_soft_tissue: float = Field(  # fraction of the lung 1 to 3 mm around it; above it a vessel goes on
        default=0.3,
        ge=0,
        le=1,
        validation_alias=AliasChoices("surround_soft_tissue", "crowded"),  # its name up to 0.1
    )
    thin_mm: float = Field(default=2.5, ge=0)  # with slices this near to each other a nodule must be on two of them
    # of all again
    at_most: int = Field(default=30, ge=1)  # findings kept: the most certain and, one in ten, the largest of the others
    refine: bool = True  # outline every finding anew, in the middle of a crop of its own: better by 0.06 Dice, CARD.md
    refiner: RefinerName = "model-2"  # the network that does
    refine_flips: bool = False  # ... averaged over the crop and its mirror images: four times the work
    malignancy: bool = False  # how suspicious radiologists would rate each nodule, not histology: CARD.md
    attention: bool = False  # with malignancy: a picture of each finding, nine slices and where the network looked
    purpose: Purpose | None = None  # of the study; without it nothing is suggested
    checkpoint: str | None = None  # path of other weights for the detector
    refine_checkpoint: str | None = None  # ... for the refinement
    malignancy_checkpoint: str | None = None  # ... for the suspicion

    @field_validator("window")
    @classmethod
    def large_enough(cls, window: int) -> int:
        if 0 < window < LEAST_WINDOW:
            raise ValueError(f"must be 0 or at least {LEAST_WINDOW}")
        return window

    @model_validator(mode="after")
    def of_suspicion(self) -> Self:
        for name in ("attention", "malignancy_checkpoint"):
            if getattr(self, name) and not self.malignancy:
                raise ValueError(f"{name} is without effect unless malignancy = true")
        return self

    @model_validator(mode="after")
    def of_the_refinement(self) -> Self:
        given = [name for name in ("refiner", "refine_checkpoint", "refine_flips") if name in self.model_fields_set]
        if given and not self.refine:
            raise ValueError(f"{given[0]} is without effect where refine = false")
        if self.refine_checkpoint and "refiner" in self.model_fields_set:
            raise ValueError("refiner is without effect beside refine_checkpoint: its weights say which network it is")
        return self

    @model_validator(mode="after")
    def of_this_detector(self) -> Self:
        """An option that the detector does not have would be without effect, and nobody would notice."""
        for name in sorted(self.model_fields_set):
            if self.detector not in OPTION_DETECTORS.get(name, (self.detector,)):
                raise ValueError(
                    f"{name} is no option of detector {self.detector}, only of {' and '.join(OPTION_DETECTORS[name])}"
                )
        return self
