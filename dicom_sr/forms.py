"""In which forms a result can be sent, the best first: the table that a destination's answer is held against.

Segmentation         -> RT Structure Set -> Grayscale Softcopy Presentation State -> Secondary Capture
Comprehensive 3D SR  -> Comprehensive SR -> Enhanced SR -> Basic Text SR -> Secondary Capture

The report is stored as Comprehensive 3D SR; the others are made of it, and what a viewer wants (`Profile.viewer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_sr.capture import Pixels, foremost_key_images, key_images, pages
from dicom_sr.derived import Results
from dicom_sr.hydratable import hydratable
from dicom_sr.key_objects import key_object_selection
from dicom_sr.labelmap import LABEL_MAP_SEGMENTATION_STORAGE, label_map, with_empty_frames
from dicom_sr.plain_sr import basic_text_sr, comprehensive_sr, enhanced_sr
from dicom_sr.presentation import presentation_state
from dicom_sr.rtstruct import rt_structure_set

BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
# a label map has whole bytes; a BINARY Segmentation has bits, and RLE is for bytes only (PS3.5 A.4.2, G.2)
SMALL = (RLELossless, *BOTH)


@dataclass(frozen=True)
class Form:
    """One way to say what a result says.

    make    (the original, all results, pixels of an image) -> objects; raises EncodingError where it cannot be said so
    """

    name: str
    sop_class_uid: str
    make: Callable[[Dataset, Results, Pixels], list[Dataset]]
    transfer_syntaxes: tuple[str, ...] = BOTH


@dataclass(frozen=True)
class Profile:
    """What a destination wants other than the default."""

    label_map: bool = False
    omit_empty_frames: bool = True
    key_objects: bool = False
    # of which findings captures are sent beside the Segmentation
    key_images: Literal["largest", "clips", "all", "none"] = "largest"
    viewer: Literal["none", "ohif"] = "none"  # whose readers work on the measurements there


SEGMENTATION = Form("Segmentation", SegmentationStorage, lambda seg, results, pixels: [seg])
ALL_FRAMES = Form(
    "Segmentation with empty frames",
    SegmentationStorage,
    lambda seg, results, pixels: [with_empty_frames(seg, results)],
)
LABEL_MAP = Form(
    "Label Map Segmentation", LABEL_MAP_SEGMENTATION_STORAGE, lambda seg, results, pixels: [label_map(seg)], SMALL
)
LABEL_MAP_ALL_FRAMES = Form(
    "Label Map Segmentation with empty frames",
    LABEL_MAP_SEGMENTATION_STORAGE,
    lambda seg, results, pixels: [label_map(with_empty_frames(seg, results))],
    SMALL,
)
REPORT = Form("Comprehensive 3D SR", Comprehensive3DSRStorage, lambda report, results, pixels: [report])
COMPREHENSIVE = Form(
    "Comprehensive SR", ComprehensiveSRStorage, lambda report, results, pixels: comprehensive_sr(report)
)
ENHANCED = Form("Enhanced SR", EnhancedSRStorage, lambda report, results, pixels: enhanced_sr(report))
KEY_OBJECTS = Form(
    "Key Object Selection",
    KeyObjectSelectionDocumentStorage,
    lambda report, results, pixels: key_object_selection(report, results),
)

KEY_IMAGES = Form("Secondary Capture", SecondaryCaptureImageStorage, key_images)
# beside a report whose findings have boxes, and so no Segmentation to come beside
BOXES = Form("Secondary Capture of the boxes", SecondaryCaptureImageStorage, key_images)
FOREMOST = Form("Secondary Capture of the foremost findings", SecondaryCaptureImageStorage, foremost_key_images)

PICTURE = Form("Picture", SecondaryCaptureImageStorage, lambda picture, results, pixels: [picture])

CHAINS: dict[str, tuple[Form, ...]] = {  # SOP Class of a result -> its forms
    SegmentationStorage: (
        SEGMENTATION,
        Form(
            "RT Structure Set",
            RTStructureSetStorage,
            lambda seg, results, pixels: rt_structure_set(seg, results),
            (ImplicitVRLittleEndian,),
        ),
        Form(
            "Grayscale Softcopy Presentation State",
            GrayscaleSoftcopyPresentationStateStorage,
            lambda seg, results, pixels: presentation_state(seg, results),
        ),
        KEY_IMAGES,
    ),
    Comprehensive3DSRStorage: (
        REPORT,
        COMPREHENSIVE,
        ENHANCED,
        Form("Basic Text SR", BasicTextSRStorage, lambda report, results, pixels: basic_text_sr(report)),
        Form("Secondary Capture", SecondaryCaptureImageStorage, lambda report, results, pixels: pages(report, results)),
    ),
}
REPORTS = (Comprehensive3DSRStorage, ComprehensiveSRStorage)  # as which reports are, or were, stored
REFER_TO_SEGMENTS = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)


def _for_ohif(form: Form) -> Form:
    return Form(
        f"{form.name} for OHIF",
        form.sop_class_uid,
        lambda report, results, pixels: form.make(hydratable(report, results), results, pixels),
        form.transfer_syntaxes,
    )


FOR_OHIF = {form.name: _for_ohif(form) for form in (REPORT, COMPREHENSIVE, ENHANCED)}


def forms_of(sop_class_uid: str, profile: Profile) -> tuple[Form, ...]:
    """The forms of a result of this SOP class, the best for such a destination first; none for a class not ours."""
    if sop_class_uid == PICTURE.sop_class_uid:
        return (PICTURE,)
    chain = CHAINS.get(sop_class_uid, ())
    if sop_class_uid == ComprehensiveSRStorage:  # a result of an earlier version, in the queue still
        chain = CHAINS[Comprehensive3DSRStorage][1:]
    if sop_class_uid != SegmentationStorage:
        return tuple(FOR_OHIF.get(form.name, form) for form in chain) if profile.viewer == "ohif" else chain
    first = () if profile.omit_empty_frames else (ALL_FRAMES,)
    if profile.label_map:
        first = (LABEL_MAP if profile.omit_empty_frames else LABEL_MAP_ALL_FRAMES, *first)
    return (*first, *chain)
