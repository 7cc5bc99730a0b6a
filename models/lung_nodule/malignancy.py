"""How suspicious radiologists would find a nodule: recurrent attention on its patch, calibrated. Not histology."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path

import numpy as np

from dicom_sr import codes
from dicom_sr.findings import Finding, Findings, Measurement, Picture
from models import weights
from models.attention_picture import explanation
from models.candidate_server import CandidateServer, Said
from models.lung_nodule.malignancy_patch import NODULE, nodule_patch
from models.lung_nodule.odds import log_odds
from models.read import Volume
from models.runtime import Runtime
from models.weights import Weights, WeightsError

CHECKPOINTS = ("malignancy_1", "malignancy_2", "malignancy_3")  # seeds of one recipe; their mean is served
WORDS = (
    "Probability of cancer here is how suspicious radiologists would rate the nodule (LIDC-IDRI, above 3 of 5), not"
    " histology"
)


@dataclass(frozen=True, eq=False)
class Rated:
    """Of each finding, in their order: its probability, what the network saw and where it looked."""

    probability: list[float]
    patches: np.ndarray
    said: Said


class Suspicion:
    """The shipped networks, or those at paths, with the calibration that stands beside them."""

    def __init__(self, paths: Sequence[Path] | None, runtime: Runtime) -> None:
        """Raises WeightsError when weights cannot be served, or are not calibrated."""
        paths = paths or [weights.packed("lung_nodule", name) for name in CHECKPOINTS]
        self.networks = [CandidateServer(one, NODULE, runtime) for one in paths]
        about = self.networks[0].loaded.about.get("calibration")
        if not about:
            raise WeightsError(
                f"{paths[0]} is not calibrated; run models.training.lung_nodule.malignancy.evaluate --calibrate"
            )
        if sorted(one.loaded.sha256 for one in self.networks) != about["networks"]:
            raise WeightsError(
                f"{paths[0].name} is calibrated together with others, not by itself; calibrate it alone: "
                "models.training.lung_nodule.malignancy.evaluate --calibrate"
            )
        self.fitted: list[float] = about["logistic"]
        self.words = f"{WORDS}; calibrated on {about['nodules']} nodules of LIDC-IDRI, of no hospital of yours"

    @property
    def loaded(self) -> list[Weights]:
        return [one.loaded for one in self.networks]

    def warm(self) -> None:
        for one in self.networks:
            one.warm()

    def __call__(self, volume: Volume, findings: Sequence[Finding]) -> Rated:
        """findings: at least one, each with its mean diameter measured."""
        patches = np.stack([nodule_patch(volume.hu, one.mask, one.offset_zyx, volume.spacing_mm) for one in findings])
        answers = [network(patches) for network in self.networks]
        score = np.mean([each.probability for each in answers], axis=0)
        return Rated(
            [self.probability(float(one), mean_diameter_mm(f)) for one, f in zip(score, findings, strict=True)],
            patches,
            answers[0],
        )

    def probability(self, score: float, diameter_mm: float) -> float:
        """The logistic of the network's log odds and the log of the mean diameter."""
        slope, of_size, offset = self.fitted
        odds = score if self.networks[0].rating else float(log_odds(np.array(score)))
        return 1 / (1 + exp(-(slope * odds + of_size * log(diameter_mm) + offset)))


def mean_diameter_mm(finding: Finding) -> float:
    return next(m.value for m in finding.measurements if (m.name, m.derivation) == (codes.MEAN_DIAMETER, codes.MEAN))


def with_suspicion(found: Sequence[Finding], rated: Rated) -> list[Finding]:
    """The findings with their probability, in per cent."""
    return [
        replace(
            one,
            measurements=(
                *one.measurements,
                Measurement(codes.PROBABILITY_OF_CANCER, round(100 * probability, 1), codes.PERCENT),
            ),
        )
        for one, probability in zip(found, rated.probability, strict=True)
    ]


def pictures(findings: Findings, rated: Rated, before: Sequence[Finding]) -> tuple[Picture, ...]:
    """Where the first network looked, for each finding; before: the findings in the order in which they were rated."""
    place = {one.offset_zyx: at for at, one in enumerate(before)}
    return tuple(
        explanation(one, rated.patches[place[one.offset_zyx]], rated.said, place[one.offset_zyx])
        for one in findings.findings
    )
