"""A pipeline that looks at every pixel and costs nothing: what a fuzzed series comes to in the inference process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dicom_sr import codes
from dicom_sr.changes import Comparison
from dicom_sr.findings import Algorithm, Finding, Findings, ImageRef, Measurement
from models.options import PipelineOptions
from models.pipeline import Card, Declaration, Prior, Progress, UnfitInput
from models.read import display, read_image


class Options(PipelineOptions):
    compares: ClassVar[bool] = True


CARD = Card(
    "eye", frozenset({"CT", "US"}), Algorithm("eye", "1"), "Looks. Research use only, not for diagnostic use.", {}
)


class Eye:
    card = CARD

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        pass

    def warm(self) -> None:
        pass

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        seen: list[tuple[ImageRef, np.ndarray]] = []
        for file in files:
            try:
                seen.append((read_image(file).images[0], display(file, None)))
            except UnfitInput as why_not:
                progress(0.5, str(why_not)[:60])
        if not seen:
            raise UnfitInput("none of its images can be looked at")
        rows, columns = seen[0][1].shape[:2]
        found = Finding(
            number=1,
            label="Mass 1",
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            type=codes.MASS,
            site=codes.BREAST,
            laterality=codes.LEFT,
            mask=np.ones((1, max(1, rows // 2), max(1, columns // 2)), bool),
            offset_zyx=(0, 0, 0),
            key_image=0,
            certainty=0.9,
            measurements=(Measurement(codes.LONG_AXIS, 3.5, codes.MM),),
        )
        images = tuple(image for image, _ in seen)
        return Findings("eye", "image", images, (found,), CARD.algorithm, sought=codes.LESION, sought_site=codes.BREAST)


def compare(findings: Findings, files: Sequence[Path], prior: Prior) -> Comparison:
    raise UnfitInput("a look is compared with nothing")


PIPELINE = Declaration(CARD, "tests.fuzz.eye:Eye", Options, "tests.fuzz.eye:compare")
