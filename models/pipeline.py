"""The one door between the node and a model: a Pipeline, and the Card that says what it may be used for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dicom_sr.findings import Algorithm, Findings

Progress = Callable[[float, str], None]  # (fraction 0..1, what is being done now)


class UnfitInput(Exception):
    """The images cannot be used; the message says which property and what would be needed. Not retried."""


@dataclass(frozen=True)
class Card:
    """What a pipeline is, for the log, the web page and the report. The long form is the CARD.md beside it."""

    name: str  # "lung-nodule"
    modality: frozenset[str]  # {"CT"}
    algorithm: Algorithm
    intended_use: str  # always ends "Research use only, not for diagnostic use."
    weights_sha256: Mapping[str, str]


@dataclass(frozen=True)
class Prior:
    """What there is of an earlier study of the patient: our report, its Segmentations, the images they are of."""

    report: Path
    segmentations: tuple[Path, ...]
    images: tuple[Path, ...]
    days: int  # from that study to this one


class Pipeline(Protocol):
    """A model system behind one method. Built once per process and device, then run many times."""

    card: Card

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        """Load and verify the weights onto `device` ("cpu", "cuda:0"). Raises WeightsError, BadOptions."""

    def warm(self) -> None:
        """Run once on a constant input, so that the first patient does not wait for compilation."""

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        """One series in, findings out.

        files: DICOM Part 10 files of one series, any order. Deterministic: same files, same Findings.
        Raises UnfitInput with a reason in words; torch.OutOfMemoryError passes through.
        """
