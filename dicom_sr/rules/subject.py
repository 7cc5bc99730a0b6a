"""What a rule is asked about, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_sr import attributes, modules, read
from dicom_sr.files import Files
from dicom_sr.findings import Findings
from dicom_sr.revision import Written
from dicom_sr.source import Plane, between_mm, headers_by_uid, plane

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """One rule that an object breaks. No patient values in `text`."""

    rule: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.text} [{self.rule}]"


@dataclass(frozen=True)
class Rule:
    """A promise about one kind of object, and where it comes from."""

    name: str
    source: str  # the section of the Standard, or the viewer
    objects: frozenset[str]  # SOP Class UIDs
    check: Callable[[Subject], Iterator[str]]
    stage: int
    severity: Severity = "error"


@dataclass(frozen=True)
class Subject:
    """One object, and all that it is compared with."""

    dataset: Dataset
    sources: Sequence[Dataset]
    findings: Findings | None
    segmentations: Sequence[Dataset]
    replaces: Sequence[Written]
    files: Files = field(default_factory=Files)

    @cached_property
    def written(self) -> list[DataElement]:
        """Every element at every depth that we wrote; what is copied is as the source has it."""
        return list(_written(self.dataset))

    @cached_property
    def uids_of_sources(self) -> set[str]:
        keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
        return {attributes.text(source, keyword) for source in self.sources for keyword in keywords}

    @cached_property
    def known(self) -> dict[str, Dataset]:
        return headers_by_uid(self.sources)

    @cached_property
    def groups(self) -> list[read.Group]:
        return read.groups(self.dataset)

    @cached_property
    def shared(self) -> Dataset:
        shared: Dataset = self.dataset.SharedFunctionalGroupsSequence[0]
        return shared

    @cached_property
    def frames(self) -> range:
        return range(int(self.dataset.NumberOfFrames))

    @cached_property
    def between_mm(self) -> float | None:
        """The mean distance of the images along their normal; None of images that are no volume."""
        if self.findings is None or self.findings.geometry != "volume":
            return None
        return between_mm(self.places)

    @cached_property
    def places(self) -> list[Plane]:
        """Of each image of the findings."""
        images = self.findings.images if self.findings is not None else ()
        return [plane(self.known[ref.sop_instance_uid], ref.frame) for ref in images]

    @cached_property
    def frame_places(self) -> list[Plane]:
        """Of each frame of a Segmentation."""
        return [plane(self.dataset, frame + 1) for frame in self.frames]


def _written(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        if element.keyword not in modules.AS_THE_SOURCE_HAS_IT:
            yield element
            if element.VR == "SQ":
                for item in element.value:
                    yield from _written(item)
