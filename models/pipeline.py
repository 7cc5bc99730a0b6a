"""The one door between the node and a model: a Declaration, the Card in it, and the Pipeline behind it.

A Declaration is known without torch: settings are checked and series are judged by it. The Pipeline is built in the
inference process, and only there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dicom_sr.findings import Algorithm, Findings
from models.options import PipelineOptions

Progress = Callable[[float, str], None]  # (fraction 0..1, what is being done now)


class UnfitInput(Exception):
    """The images cannot be used; the message says which property and what would be needed. Not retried."""


class BadOutput(Exception):
    """What a model of another maker answers cannot become results; the message says what is wrong. Not retried."""


class BadPipeline(Exception):
    """A pipeline is not what its declaration says, or has none; the message says which and what now. Not retried."""


@dataclass(frozen=True)
class Requirements:
    """What a series must be, before a pipeline is asked. The verdict checks it; the defaults ask for nothing."""

    volume: bool = False  # parallel slices of one grid in one straight row, evenly spaced, none missing; else images
    axial: bool = False  # slices at most 30 degrees from axial
    min_slices: int = 1  # that are usable
    max_tilt_deg: float | None = None  # between the slices' normal and the row they form; None: any
    hounsfield: bool = False  # of a CT: slices as they were reconstructed, whose values become Hounsfield units
    calibrated: bool = False  # every image says how large its pixels are in the patient

    def __post_init__(self) -> None:
        of_volumes = (self.axial, self.min_slices > 1, self.max_tilt_deg is not None, self.hounsfield)
        if any(of_volumes) and not self.volume:
            raise ValueError("axial, min_slices, max_tilt_deg and hounsfield are asked of a volume: say volume=True")


@dataclass(frozen=True)
class Card:
    """What a pipeline is, and what it may be used for. Input outside of it is refused in words, before it is run.

    The long form is the CARD.md beside it.
    """

    name: str  # "lung-nodule"
    modality: frozenset[str]  # {"CT"}
    algorithm: Algorithm
    intended_use: str  # always ends "Research use only, not for diagnostic use."
    # A checkpoint of the package ("nets/threshold.safetensors", beside the card's module), or what else it is called,
    # -> its SHA-256. A file that is named is verified before the pipeline is built.
    weights_sha256: Mapping[str, str] = field(default_factory=dict)
    sop_classes: frozenset[str] = frozenset()  # SOP Class UIDs; empty: any image of the modality
    body_part: frozenset[str] = frozenset()  # values of BodyPartExamined; empty: any
    requires: Requirements = Requirements()
    # type of finding, as reports call it ("Nodule") -> whether it is measured in millimetres; empty: not known
    finds: Mapping[str, bool] = field(default_factory=dict)
    # categories that it may suggest of a finding with these options, and classes: "Lung-RADS 4A", "malignant"
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Declaration:
    """All there is to know of a pipeline without building it. Entry points of group `pacs_node.pipelines` name one.

    >>> PIPELINE = Declaration(CARD, "my_package.pipeline:Mine", Options)
    """

    card: Card | Callable[[Any], Card]  # ... or of its options, where those decide what it takes
    target: str  # "package.module:Class", a Pipeline; imported when one is built
    options: type[PipelineOptions] = PipelineOptions
    # "package.module:function", (findings, files, prior) -> Comparison, for one whose options say `compares`
    comparison: str | None = None

    def __post_init__(self) -> None:
        if self.options.compares != (self.comparison is not None):
            raise ValueError("options that say `compares` need a `comparison`, and a `comparison` options that say so")

    def card_for(self, options: Mapping[str, Any] | None = None) -> Card:
        """What it may be used for with these options. Raises BadOptions."""
        return self.card if isinstance(self.card, Card) else self.card(self.options.read(options))


@dataclass(frozen=True)
class Prior:
    """What there is of an earlier study of the patient: our report, its Segmentations, the images they are of."""

    report: Path
    segmentations: tuple[Path, ...]
    images: tuple[Path, ...]
    days: int  # from that study to this one


class Pipeline(Protocol):
    """A model system behind one method. Built once per process and device, then run many times."""

    card: Card  # the declared one, with the algorithm's version and the weights that were loaded

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        """Load and verify the weights onto `device` ("cpu", "cuda:0"). Raises WeightsError, BadOptions."""

    def warm(self) -> None:
        """Run once on a constant input, so that the first patient does not wait for compilation."""

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        """One series in, findings out.

        files: DICOM Part 10 files of one series, those that the verdict lets through, in its order; a pipeline takes
        them in any. Deterministic: same files, same Findings.
        Raises UnfitInput with a reason in words; torch.OutOfMemoryError passes through.
        """
