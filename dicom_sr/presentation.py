"""Segmentation and report -> Grayscale Softcopy Presentation State IOD, PS3.3 A.33.1: outlines, calipers and names
drawn over the images by the viewer itself. For images in grey values only."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
from highdicom.color import CIELabColor
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicom_sr import attributes
from dicom_sr.derived import Marked, Results, derived, mark_findings, say_body_part
from dicom_sr.findings import ImageRef
from dicom_sr.frames import Frame
from dicom_sr.frames import frame as frame_of
from dicom_sr.header import RESEARCH_ONLY, image_reference, references
from dicom_sr.outline import outlines
from dicom_sr.source import EncodingError, group_by_instance

PIXEL, DISPLAY = "PIXEL", "DISPLAY"  # pixels: (0, 0) is the outer corner of the first one, PS3.3 C.10.5.1.2
SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # of the presentation LUT: it alone says what is white
NAME_OFFSET = 2.0  # pixels between a name and the part it names
WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence")
RESCALING = ("RescaleIntercept", "RescaleSlope", "RescaleType")
FOOT = (0.0, 0.95, 1.0, 1.0)  # of the displayed area: the line that says what this is not for
REMARK = "REMARK"  # its layer


def presentation_state(segmentation: Dataset, results: Results) -> list[Dataset]:
    """One presentation state for all images with a finding. The images' own window and rescaling hold.

    Written by hand: highdicom's classes look into a table of all modules of the Standard; nothing else needs its 75 MB.

    Raises EncodingError: an image is in colour or is not there, there are several clips, or the rescaling differs.
    """
    findings = mark_findings(segmentation, results.report)
    refs = sorted(
        {ref for finding in findings for ref in finding.segment.masks},
        key=lambda ref: (ref.sop_instance_uid, ref.frame or 0),
    )
    images = {ref.sop_instance_uid: results.source(ref) for ref in refs}
    shapes = {SHAPES.get(attributes.text(image, "PhotometricInterpretation")) for image in images.values()}
    if None in shapes:
        raise EncodingError("the images are in colour")
    if len(shapes) > 1:
        raise EncodingError(
            "the least value is white in some images, black in others: a presentation state shows all alike"
        )
    if len(images) > 1 and any(int(image.get("NumberOfFrames") or 1) > 1 for image in images.values()):
        raise EncodingError("several images, some of many frames: a presentation state takes one such image")
    shown = {ref: frame_of(images[ref.sop_instance_uid], ref.frame) for ref in refs}

    state = derived(
        segmentation,
        sop_class_uid=GrayscaleSoftcopyPresentationStateStorage,
        modality="PR",
        role="presentation state",
        series_number=9400,
    )
    for keyword in ("ContentDate", "ContentTime"):  # of images, not of presentation states
        state.pop(keyword, None)
    say_body_part(state, images.values())
    state.ContentLabel, state.ContentDescription = "AI FINDINGS", RESEARCH_ONLY
    state.PresentationCreationDate = segmentation.ContentDate
    state.PresentationCreationTime = segmentation.ContentTime
    state.ContentCreatorName = None
    series = {uid: (str(image.SOPClassUID), str(image.SeriesInstanceUID)) for uid, image in images.items()}
    state.ReferencedSeriesSequence = references(series, "ReferencedImageSequence")
    state.GraphicAnnotationSequence = [
        *(
            _annotation(finding, ref, results)
            for finding in findings
            for ref in refs
            if ref in finding.segment.masks or any(line.image == ref for line in finding.calipers)
        ),
        _remark(refs),
    ]
    state.GraphicLayerSequence = [*map(_layer, findings), _item(GraphicLayer=REMARK)]
    for order, layer in enumerate(state.GraphicLayerSequence, start=1):
        layer.GraphicLayerOrder = order
    state.DisplayedAreaSelectionSequence = [_area(shown)]
    for element in _rescaling(shown):
        state[element.tag] = element
    if windows := _windows(shown):
        state.SoftcopyVOILUTSequence = windows
    [state.PresentationLUTShape] = shapes
    return [state]


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _references(refs: Iterable[ImageRef]) -> list[Dataset]:
    """One item for each image, with the frames that are meant."""
    items = []
    for (class_uid, instance_uid), frames in group_by_instance(list(refs)).items():
        item = image_reference(ImageRef(class_uid, instance_uid))
        if frames:
            item.ReferencedFrameNumber = frames
        items.append(item)
    return items


def _area(shown: Mapping[ImageRef, Frame]) -> Dataset:
    """The whole of each image, its pixels as wide and high as they are: PS3.3 C.10.4. Raises EncodingError."""
    kinds = {(int(frame.header.Columns), int(frame.header.Rows), *_aspect(frame)) for frame in shown.values()}
    if len(kinds) > 1:
        raise EncodingError("the images are of several sizes or shapes of pixels, and a presentation state shows one")
    [(columns, rows, *aspect)] = kinds
    return _item(
        PixelOriginInterpretation="VOLUME",
        DisplayedAreaTopLeftHandCorner=[1, 1],
        DisplayedAreaBottomRightHandCorner=[columns, rows],
        PresentationSizeMode="SCALE TO FIT",
        PresentationPixelAspectRatio=aspect,
    )


def _aspect(frame: Frame) -> tuple[int, int]:
    """Height to width of a pixel, in small whole numbers; 1 to 1 where the image does not say it."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        try:
            height, width = frame.numbers(keyword, 2)
        except attributes.BadAttribute:
            continue
        if height > 0 and width > 0 and (ratio := Fraction(height / width).limit_denominator(1000)) > 0:
            return ratio.numerator, ratio.denominator
    return 1, 1


def _held(frame: Frame, keywords: Iterable[str]) -> Dataset:
    """What a frame says of these, wherever it says it, without what is empty."""
    found = Dataset()
    for keyword in keywords:
        holder = frame.holder(keyword)
        if keyword in holder and not holder[keyword].is_empty:
            found[keyword] = copy.deepcopy(holder[keyword])
    return found


def _rescaling(shown: Mapping[ImageRef, Frame]) -> list[DataElement]:
    """The Modality LUT module, PS3.3 C.11.1; it holds for all images. Raises EncodingError."""
    if any(frame.header.get("ModalityLUTSequence") for frame in shown.values()):
        raise EncodingError("the values of the images go through a table of their own (Modality LUT Sequence)")
    rescalings = {str(found): found for frame in shown.values() for found in [_held(frame, RESCALING)]}
    if len(rescalings) > 1:
        raise EncodingError("the images are rescaled differently, and a presentation state rescales all alike")
    found = next(iter(rescalings.values()), Dataset())
    if ("RescaleSlope" in found) != ("RescaleIntercept" in found):
        raise EncodingError("the images have a rescale slope without an intercept, or the other way round")
    if "RescaleSlope" not in found:
        return []
    if "RescaleType" not in found:
        found.RescaleType = "US"  # unspecified
    return list(found)


def _windows(shown: Mapping[ImageRef, Frame]) -> list[Dataset]:
    """The Softcopy VOI LUT module, PS3.3 C.11.8: one item for all images and frames if they have one window, else one
    for those of each window; none for those without. Raises EncodingError."""
    headers = {ref.sop_instance_uid: frame.header for ref, frame in shown.items()}
    every = sum(int(header.get("NumberOfFrames") or 1) for header in headers.values())
    alike: dict[str, list[ImageRef]] = {}
    windows: dict[str, Dataset] = {}
    for ref, frame in shown.items():
        window = _held(frame, WINDOW)
        if ("WindowCenter" in window) != ("WindowWidth" in window):
            raise EncodingError("the images have a window centre without a width, or the other way round")
        if "WindowCenter" not in window and "VOILUTSequence" not in window:
            continue
        windows[str(window)] = window
        alike.setdefault(str(window), []).append(ref)
    for said, refs in alike.items():
        if len(refs) < every:
            windows[said].ReferencedImageSequence = _references(refs)
    return list(windows.values())


def _layer(finding: Marked) -> Dataset:
    """PS3.3 C.10.7"""
    return _item(
        GraphicLayer=_layer_of(finding),
        GraphicLayerDescription=finding.segment.label[:64],
        GraphicLayerRecommendedDisplayCIELabValue=list(CIELabColor.from_rgb(*finding.colour).value),
    )


def _layer_of(finding: Marked) -> str:
    return f"FINDING {finding.segment.number}"


def _annotation(finding: Marked, ref: ImageRef, results: Results) -> Dataset:
    """PS3.3 C.10.5: the outline of a finding on one image, its calipers if they lie there, and its name."""
    mask = finding.segment.masks.get(ref)
    loops = [] if mask is None else [loop for part in outlines(mask) for loop in part]
    lines = [line.points for line in finding.calipers if line.image == ref]
    corner = np.concatenate([*loops, *lines]).max(axis=0) + NAME_OFFSET
    source = results.source(ref)
    right, below = np.minimum(corner, (int(source.Columns), int(source.Rows)))
    name = _item(
        AnchorPointAnnotationUnits=PIXEL,
        UnformattedTextValue=finding.segment.label,
        AnchorPoint=[float(right), float(below)],
        AnchorPointVisibility="N",
    )
    return _item(
        ReferencedImageSequence=[image_reference(ref)],
        GraphicLayer=_layer_of(finding),
        TextObjectSequence=[name],
        GraphicObjectSequence=[_polyline(points, finding) for points in (*loops, *lines)],
    )


def _polyline(points: np.ndarray, finding: Marked) -> Dataset:
    return _item(
        TrackingID=finding.segment.label,
        TrackingUID=finding.segment.tracking_uid,
        GraphicAnnotationUnits=PIXEL,
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(points),
        GraphicData=points.astype(float).ravel().tolist(),
        GraphicType="POLYLINE",
        GraphicFilled="N",
    )


def _remark(refs: Iterable[ImageRef]) -> Dataset:
    """On each image, all its frames."""
    text = _item(
        BoundingBoxAnnotationUnits=DISPLAY,
        UnformattedTextValue=f"{RESEARCH_ONLY}.",
        BoundingBoxTopLeftHandCorner=list(FOOT[:2]),
        BoundingBoxBottomRightHandCorner=list(FOOT[2:]),
        BoundingBoxTextHorizontalJustification="CENTER",
    )
    images = _references(replace(ref, frame=None) for ref in refs)
    return _item(ReferencedImageSequence=images, GraphicLayer=REMARK, TextObjectSequence=[text])
