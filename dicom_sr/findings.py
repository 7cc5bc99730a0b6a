"""What an algorithm can say about images: the words `models` answers in and `dicom_sr` encodes.

Geometry contract, the one rule that keeps a nodule on the right side of the right patient:
a mask never leaves the pixel grid of the source. `Findings.images` lists source images (or frames) in the order
of the mask's first axis; voxel (z, y, x) is row y, column x of the stored pixels of `images[z]`.
Nobody here resamples, flips or re-sorts; millimetres are derived from the headers of those very images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import numpy as np
from pydicom.sr.coding import Code

NOTHING = np.zeros((0, 0, 0), bool)  # the mask of a finding without an extent


@dataclass(frozen=True)
class ImageRef:
    """One source image, or one frame of a multi-frame image (`frame` is 1-based, PS3.3 Table 10-3)."""

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One number with its concept and UCUM unit, e.g. long axis 7.3 mm."""

    name: Code
    value: float
    unit: Code
    derivation: Code | None = None


@dataclass(frozen=True)
class Evaluation:
    """One coded statement, e.g. nodule type = solid."""

    name: Code
    value: Code


@dataclass(frozen=True)
class Axis:
    """A caliper line drawn on one image: end points in (column, row) pixel coordinates, PS3.3 C.18.6.1.1.

    (0.0, 0.0) is the top left corner of the first pixel; its centre is (0.5, 0.5).
    """

    image: int  # index into Findings.images
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Finding:
    """One lesion: where it is, how sure the algorithm is, and what it measures.

    mask            bool (d, h, w), the smallest box that holds the lesion; of a box all true, without an extent empty
    offset_zyx      index of mask[0, 0, 0] in the source grid
    key_image       index into Findings.images of the slice with the largest area
    """

    number: int  # 1-based; the segment number
    label: str  # "Nodule 1"
    category: Code  # e.g. SCT 49755003 morphologically abnormal structure
    type: Code  # e.g. SCT 27925004 nodule
    site: Code  # e.g. SCT 39607008 lung
    laterality: Code | None
    mask: np.ndarray
    offset_zyx: tuple[int, int, int]
    key_image: int
    certainty: float | None  # 0..1; None where the algorithm states none
    long_axis: Axis | None = None
    short_axis: Axis | None = None
    measurements: tuple[Measurement, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    predecessor_uid: str | None = None  # Tracking UID of the same lesion in the report of an earlier study
    change: str = ""  # since that study, in words: "grew from 6.1 to 8.3 mm in 184 days"
    colour: tuple[int, int, int] | None = None  # RGB that it is shown in; None: one that differs from its neighbours'
    # what the mask is: every pixel of the lesion; a box round it; nothing, for the algorithm says on which image it is
    # and no more. Only a mask becomes a Segmentation.
    extent: Literal["mask", "box", "none"] = "mask"

    @classmethod
    def boxed(cls, corner_zyx: tuple[int, int, int], size_zyx: tuple[int, int, int], **facts: Any) -> Finding:
        """What a detector marks with a box: its first voxel, and how many along z (images), y and x."""
        key = facts.pop("key_image", corner_zyx[0] + size_zyx[0] // 2)
        return cls(mask=np.ones(size_zyx, bool), offset_zyx=corner_zyx, key_image=key, extent="box", **facts)

    @classmethod
    def on_image(cls, key_image: int, **facts: Any) -> Finding:
        """What is known to be on an image, and not where."""
        return cls(mask=NOTHING, offset_zyx=(key_image, 0, 0), key_image=key_image, extent="none", **facts)


@dataclass(frozen=True)
class ComparedWith:
    """The report of an earlier study of the same patient that findings were compared with."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    study_date: date
    days: int  # from that study to this one
    residual_mm: float  # of the registration
    no_longer_found: int = 0  # lesions of that report, at places that this study shows
    remarks: tuple[str, ...] = ()  # in words, for readers


@dataclass(frozen=True)
class Algorithm:
    """Who says it: TID 4019 and ContributingEquipmentSequence (IHE AI Results)."""

    name: str  # "pacs-node lung-nodule"
    version: str  # "0.1.0+<first 8 hex of the weights' SHA-256>": changes with every retraining
    manufacturer: str = "pacs-node"
    family: Code = field(default_factory=lambda: Code("123110", "DCM", "Artificial Intelligence"))


@dataclass(frozen=True, eq=False)
class Picture:
    """What a pipeline draws beside its findings: how it came to one of them. Sent as a Secondary Capture."""

    finding: int  # its number
    title: str  # what it shows, without the finding's name: findings are numbered anew when they are compared
    pixels: np.ndarray  # uint8 (rows, columns, 3); it says on itself what it is not for


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything one pipeline says about one series. No findings is an answer too."""

    pipeline: str  # "lung-nodule", "breast-us"
    geometry: Literal["volume", "image"]  # volume: TID 1411 (CT); image: TID 1410 (ultrasound)
    images: tuple[ImageRef, ...]
    findings: tuple[Finding, ...]
    algorithm: Algorithm
    measurements: tuple[Measurement, ...] = ()  # of the whole image: class probabilities of an ultrasound
    evaluations: tuple[Evaluation, ...] = ()
    warnings: tuple[str, ...] = ()  # in words, shown in the report: "no calibration: sizes in pixels"
    facts: Mapping[str, str | float] = field(default_factory=dict)  # for the web page: seconds, device, windows
    # what "nothing found" is said of; None: nothing was sought, the images as a whole were classified or measured
    sought: Code | None = field(default_factory=lambda: Code("52988006", "SCT", "Lesion"))
    sought_site: Code | None = None  # and where it was looked for, e.g. SCT 39607008 lung
    compared_with: ComparedWith | None = None
    not_calibrated: tuple[Code, ...] = (Code("111012", "DCM", "Certainty of Finding"),)  # probabilities in name only
    pictures: tuple[Picture, ...] = ()
    variant: str = ""  # of the pipeline's options, where they are not the defaults: other options, other result UIDs

    @property
    def said_by(self) -> str:
        """What result UIDs derive from, besides the source series, the algorithm's version and the revision."""
        return f"{self.pipeline} {self.variant}" if self.variant else self.pipeline
