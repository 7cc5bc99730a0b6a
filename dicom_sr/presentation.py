"""Segmentation and report -> Grayscale Softcopy Presentation State IOD, PS3.3 A.33.1: outlines, calipers and names
drawn over the images by the viewer itself. For images in grey values only."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import highdicom as hd
import numpy as np
from highdicom._standard_utils import get_module_attribute_map
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from dicom_sr.copies import ALWAYS_COPIED
from dicom_sr.derived import Marked, Results, derived, mark_findings, say_body_part
from dicom_sr.findings import ImageRef
from dicom_sr.frames import frame as frame_of
from dicom_sr.header import RESEARCH_ONLY
from dicom_sr.outline import outlines
from dicom_sr.source import EncodingError

PIXEL = hd.pr.AnnotationUnitsValues.PIXEL  # (0, 0) is the outer corner of the first pixel, PS3.3 C.10.5.1.2
DISPLAY = hd.pr.AnnotationUnitsValues.DISPLAY
POLYLINE = hd.pr.GraphicTypeValues.POLYLINE
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
NAME_OFFSET = 2.0  # pixels between a name and the part it names
WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction")
RESCALING = ("RescaleSlope", "RescaleIntercept", "RescaleType")
FOOT = (0.0, 0.95, 1.0, 1.0)  # of the displayed area: the line that says what this is not for


@contextmanager
def _table_let_go() -> Iterator[None]:
    """highdicom looks into a table of all modules of the standard for what is an image and what is copied of it: 75 MB,
    which it would keep for as long as the process lives."""
    try:
        yield
    finally:
        get_module_attribute_map.cache_clear()


@_table_let_go()
def presentation_state(segmentation: Dataset, results: Results) -> list[Dataset]:
    """One presentation state for all images with a finding. The images' own window and rescaling hold.

    Raises EncodingError: an image is in colour or is not there, there are several clips, or the rescaling differs.
    """
    findings = mark_findings(segmentation, results.report)
    refs = sorted(
        {ref for finding in findings for ref in finding.segment.masks},
        key=lambda ref: (ref.sop_instance_uid, ref.frame or 0),
    )
    images = {
        uid: _complete(results.source(some), [ref.frame for ref in refs if ref.sop_instance_uid == uid])
        for uid, some in {ref.sop_instance_uid: ref for ref in refs}.items()
    }
    if any(image.get("PhotometricInterpretation") not in MONOCHROME for image in images.values()):
        raise EncodingError("the images are in colour")
    if len(images) > 1 and any(int(image.get("NumberOfFrames") or 1) > 1 for image in images.values()):
        raise EncodingError("several images, some of many frames: a presentation state takes one such image")
    if len({(str(i.get("RescaleSlope")), str(i.get("RescaleIntercept"))) for i in images.values()}) > 1:
        raise EncodingError("the images are rescaled differently, and a presentation state rescales all alike")

    layers = {
        finding.segment.number: hd.pr.GraphicLayer(
            layer_name=f"FINDING {finding.segment.number}",
            order=order,
            description=finding.segment.label[:64],
            display_color=hd.color.CIELabColor.from_rgb(*finding.colour),
        )
        for order, finding in enumerate(findings, start=1)
    }
    remark = hd.pr.GraphicLayer(layer_name="REMARK", order=len(layers) + 1)
    state = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=list(images.values()),
        series_instance_uid=segmentation.SeriesInstanceUID,  # these are replaced by `derived`
        series_number=1,
        sop_instance_uid=segmentation.SOPInstanceUID,
        instance_number=1,
        manufacturer=segmentation.Manufacturer,
        manufacturer_model_name=segmentation.ManufacturerModelName,
        software_versions=str(segmentation.SoftwareVersions),
        device_serial_number=segmentation.DeviceSerialNumber,
        content_label="AI FINDINGS",
        content_description=RESEARCH_ONLY,
        graphic_layers=[*layers.values(), remark],
        graphic_annotations=[
            *(
                _annotation(finding, ref, layers[finding.segment.number], results)
                for finding in findings
                for ref in refs
                if ref in finding.segment.masks or any(line.image == ref for line in finding.calipers)
            ),
            _remark(remark, list(images.values())),
        ],
    )
    result = derived(
        segmentation,
        sop_class_uid=GrayscaleSoftcopyPresentationStateStorage,
        modality="PR",
        role="presentation state",
        series_number=9400,
    )
    for element in state:
        if element.keyword not in result:
            result.add(element)
    result.PresentationCreationDate, result.PresentationCreationTime = (
        segmentation.ContentDate,
        segmentation.ContentTime,
    )
    say_body_part(result, images.values())
    for keyword in ("ContentDate", "ContentTime"):  # of images, not of presentation states
        result.pop(keyword, None)
    return [result]


def _complete(source: Dataset, frames: Sequence[int | None]) -> Dataset:
    """The header with the attributes that highdicom reads, empty where there is none; `derived` has the values.

    Of an image of many frames rescaling and window of the frames named stand in functional groups: highdicom takes
    every such image for an enhanced one, and wants what is common to all frames among the shared ones.
    Raises EncodingError where the frames are rescaled differently.
    """
    header = copy.deepcopy(source)
    for keyword in ALWAYS_COPIED:
        if keyword not in header:
            setattr(header, keyword, None)
    if "NumberOfFrames" not in header:
        return header
    of_frames = {frame: _window_and_rescaling(source, frame) for frame in frames if frame is not None}
    rescalings = [rescaling for _, rescaling in of_frames.values()]
    if any(rescaling != rescalings[0] for rescaling in rescalings):
        raise EncodingError("the frames are rescaled differently, and a presentation state rescales all alike")
    shared = Dataset()
    if rescalings and rescalings[0]:
        shared.PixelValueTransformationSequence = [rescalings[0]]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(int(header.NumberOfFrames))]
    for frame, (window, _) in of_frames.items():
        if window:
            header.PerFrameFunctionalGroupsSequence[frame - 1].FrameVOILUTSequence = [window]
    return header


def _window_and_rescaling(source: Dataset, frame: int) -> tuple[Dataset, Dataset]:
    """Items of Frame VOI LUT and Pixel Value Transformation Sequence, PS3.3 C.7.6.16.2.10b and 9; empty if none."""
    one = frame_of(source, frame)
    items = Dataset(), Dataset()
    for item, keywords in zip(items, (WINDOW, RESCALING), strict=True):
        for keyword in keywords if one.layers else ():
            holder = one.holder(keyword)
            if keyword in holder:
                item[keyword] = holder[keyword]
    return items


def _annotation(finding: Marked, ref: ImageRef, layer: hd.pr.GraphicLayer, results: Results) -> hd.pr.GraphicAnnotation:
    mask = finding.segment.masks.get(ref)
    loops = [] if mask is None else [loop for part in outlines(mask) for loop in part]
    lines = [line.points for line in finding.calipers if line.image == ref]
    corner = np.concatenate([*loops, *lines]).max(axis=0) + NAME_OFFSET
    source = results.source(ref)
    right, below = np.minimum(corner, (int(source.Columns), int(source.Rows)))
    return hd.pr.GraphicAnnotation(
        referenced_images=[source],
        referenced_frame_number=ref.frame,
        graphic_layer=layer,
        graphic_objects=[
            hd.pr.GraphicObject(
                graphic_type=POLYLINE,
                graphic_data=points,
                units=PIXEL,
                tracking_id=finding.segment.label,
                tracking_uid=finding.segment.tracking_uid,
            )
            for points in (*loops, *lines)
        ],
        text_objects=[
            hd.pr.TextObject(
                text_value=finding.segment.label,
                units=PIXEL,
                anchor_point=(float(right), float(below)),
                anchor_point_visible=False,
            )
        ],
    )


def _remark(layer: hd.pr.GraphicLayer, images: list[Dataset]) -> hd.pr.GraphicAnnotation:
    return hd.pr.GraphicAnnotation(
        referenced_images=images,
        graphic_layer=layer,
        text_objects=[hd.pr.TextObject(text_value=f"{RESEARCH_ONLY}.", units=DISPLAY, bounding_box=FOOT)],
    )
