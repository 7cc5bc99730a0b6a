"""One frame of an image, wherever its header keeps what is said of it: at the top, or in functional groups.

A single-frame image says everything at its top (PS3.3 C.7.6.2). An enhanced one says it in the frame's own functional
groups, or in those that its frames share (PS3.3 C.7.6.16); one converted from single frames keeps what fits no group in
sequences of "unassigned" attributes (PS3.3 C.7.6.16.2.25 and A.70). Here, and nowhere else, is written where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute

OWN, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
MOST_FRAMES = 1 << 16  # more than any scanner makes of one examination; a claim beyond is garbage

# attribute -> the functional group macro that holds it, PS3.3 C.7.6.16.2 and C.8.15.3 (CT)
MACROS = {
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "WindowCenterWidthExplanation": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "PixelPresentation": "CTImageFrameTypeSequence",
    "VolumetricProperties": "CTImageFrameTypeSequence",
    "VolumeBasedCalculationTechnique": "CTImageFrameTypeSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "ContrastBolusAgentNumber": "ContrastBolusUsageSequence",
    "ContrastBolusAgentAdministered": "ContrastBolusUsageSequence",
    "IrradiationEventUID": "IrradiationEventIdentificationSequence",
    "KVP": "CTXRayDetailsSequence",
    "FrameLaterality": "FrameAnatomySequence",
}
FRAME_TYPE = "CTImageFrameTypeSequence"  # those of other modalities hold the same: PS3.3 C.8.13.5.1, C.8.22.5.1
ALSO_IN = {FRAME_TYPE: ("MRImageFrameTypeSequence", "PETFrameTypeSequence")}
UNASSIGNED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
# Where a frame lies is said by its groups alone: a value at the top of an enhanced image is of another object.
GROUPS_ALONE = frozenset(
    {"PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient"}
    | {"RescaleSlope", "RescaleIntercept", "RescaleType", "FrameType"}
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of an image; of a single-frame image the image itself.

    number   from 1; None for an image that has no frames to count
    layers   functional groups, the frame's own before the shared ones; none where the header has none
    """

    header: Dataset
    number: int | None
    layers: tuple[Dataset, ...] = ()

    def holder(self, keyword: str) -> Dataset:
        """The data set that holds an attribute for this frame; one without it where none does."""
        if not self.layers:
            return self.header
        macro = MACROS.get(keyword)
        for name in (macro, *ALSO_IN.get(macro, ())) if macro else ():
            for layer in self.layers:
                for group in attributes.items(layer, name):
                    if keyword in group:
                        return group
        if keyword in GROUPS_ALONE:
            return Dataset()
        for name in UNASSIGNED:
            for layer in self.layers:
                for group in attributes.items(layer, name):
                    if keyword in group:
                        return group
        return self.header

    def values(self, keyword: str) -> list[Any]:
        """As `attributes.values`. Raises BadAttribute, which names the functional group too."""
        return self._named(keyword, lambda: attributes.values(self.holder(keyword), keyword))

    def decimals(self, keyword: str, count: int) -> tuple[str, ...]:
        """As `attributes.decimals`. Raises BadAttribute."""
        found: tuple[str, ...] = self._named(keyword, lambda: attributes.decimals(self.holder(keyword), keyword, count))
        return found

    def numbers(self, keyword: str, count: int) -> tuple[float, ...]:
        """As `attributes.numbers`. Raises BadAttribute."""
        return tuple(float(each) for each in self.decimals(keyword, count))

    def text(self, keyword: str) -> str:
        return attributes.text(self.holder(keyword), keyword)

    def texts(self, keyword: str) -> list[str]:
        return attributes.texts(self.holder(keyword), keyword)

    def _named(self, keyword: str, ask: Any) -> Any:
        try:
            return ask()
        except BadAttribute as error:
            if not self.layers or keyword not in MACROS:
                raise
            what = str(error).removeprefix(f"{keyword} ")
            raise BadAttribute(f"{keyword} in {MACROS[keyword]}", what) from error


def frame(header: Dataset, number: int | None = None) -> Frame:
    """Frame `number` (from 1) of an image; the image itself where it has no functional groups. Never raises: what is
    not there is found missing when it is asked for."""
    if number is None or OWN not in header:
        return Frame(header, number)
    own, shared = attributes.items(header, OWN), attributes.items(header, SHARED)
    return Frame(header, number, (own[number - 1] if number <= len(own) else Dataset(), *shared[:1]))


def holders(header: Dataset, keyword: str) -> list[Dataset]:
    """The data sets that hold an attribute of an image: itself, or the functional groups of its frames, each once.
    Never raises."""
    if OWN not in header:
        return [header]
    own, shared = attributes.items(header, OWN), attributes.items(header, SHARED)[:1]
    every = [Frame(header, number, (groups, *shared)).holder(keyword) for number, groups in enumerate(own, start=1)]
    return list({id(holder): holder for holder in every if keyword in holder}.values())


def frames(header: Dataset) -> Iterator[Frame]:
    """Every frame of an image that lies somewhere: one, or one for each item of its functional groups.

    Raises BadAttribute when the header does not say how many there are, or where they lie.
    """
    claimed = count(header)
    if OWN not in header:
        if claimed is not None and claimed > 1:
            raise BadAttribute(OWN, f"is missing: nothing says where the {claimed} frames lie (NumberOfFrames)")
        yield Frame(header, None)
        return
    own, shared = attributes.items(header, OWN), tuple(attributes.items(header, SHARED)[:1])
    if not own:
        raise BadAttribute(OWN, "is empty or cannot be read: nothing says where the frames lie")
    if claimed is None:
        raise BadAttribute("NumberOfFrames", "is missing or empty")
    if claimed != len(own):
        raise BadAttribute("NumberOfFrames", f"is {claimed}, but {OWN} has {len(own)} items")
    for number, groups in enumerate(own, start=1):
        yield Frame(header, number, (groups, *shared))


def rows_and_columns(header: Dataset) -> tuple[int, int]:
    """Raises BadAttribute."""
    return attributes.whole(header, "Rows", least=1), attributes.whole(header, "Columns", least=1)


def count(header: Dataset) -> int | None:
    """NumberOfFrames; None where the header has none, or an empty one. Raises BadAttribute."""
    if not attributes.has(header, "NumberOfFrames"):
        return None
    claimed = attributes.whole(header, "NumberOfFrames", least=1)
    if claimed > MOST_FRAMES:
        raise BadAttribute("NumberOfFrames", f"is {claimed}; no image has more than {MOST_FRAMES}")
    return claimed
