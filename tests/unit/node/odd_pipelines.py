"""Pipelines for `check-pipeline`: one that classifies radiographs as it should, one that does whatever is wrong."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicom_sr import codes
from dicom_sr.findings import Algorithm, Finding, Findings, Measurement
from models.pipeline import Card, Declaration, Progress, Requirements
from models.read import read_image, read_volume

USE = "For tests. Research use only, not for diagnostic use."
RADIOGRAPHS = Card("radiographs", frozenset({"DX"}), Algorithm("r", "1"), USE, body_part=frozenset({"CHEST"}))
VOLUMES = Card("volumes", frozenset({"MR"}), Algorithm("v", "1"), USE, requires=Requirements(volume=True))
RUNS = itertools.count()


class Radiographs:
    """A classifier: the mean of the values, called a probability; and the brightest corner as a box."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.card = RADIOGRAPHS

    def warm(self) -> None:
        pass

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        warnings.warn("Invalid value for VR PN: 'DOE^JANE'", stacklevel=1)  # as pydicom does, in both ways
        logging.getLogger("pydicom").warning("Invalid value for VR PN: 'DOE^JANE'")
        clips = [read_image(path) for path in files]
        values = [next(clip.values()) for clip in clips]
        share = float(np.mean([value.mean() for value in values])) / 4095
        box = Finding.boxed(
            (0, 0, 0),
            (1, 20, 30),
            number=1,
            label="Corner 1",
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            type=codes.MASS,
            site=codes.LUNG,
            laterality=None,
            certainty=share,
        )
        return Findings(
            pipeline=self.card.name,
            geometry="image",
            images=tuple(clip.images[0] for clip in clips),
            findings=(box,) if share > 0.01 else (),
            algorithm=self.card.algorithm,
            measurements=(Measurement(codes.PROBABILITY_OF_CANCER, 100 * share, codes.PERCENT),),
            sought=None,
        )


class Volumes:
    """Marks one box of voxels by its index, wherever that lies in the patient; fails on black, and never says it twice
    in the same words."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.card = VOLUMES

    def warm(self) -> None:
        pass

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        volume = read_volume(files)
        if not volume.values.any():
            raise ZeroDivisionError("nothing is bright")
        found = Finding(
            number=1,
            label="Place 1",
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            type=codes.NODULE,
            site=codes.LUNG,
            laterality=None,
            mask=np.ones((2, 4, 4), bool),
            offset_zyx=(0, 10, 10),
            key_image=0,
            certainty=0.5 + next(RUNS) / 100,
        )
        return Findings(self.card.name, "volume", volume.images, (found,), self.card.algorithm)


RADIOGRAPHS_DECLARED = Declaration(RADIOGRAPHS, "tests.unit.node.odd_pipelines:Radiographs")
VOLUMES_DECLARED = Declaration(VOLUMES, "tests.unit.node.odd_pipelines:Volumes")
