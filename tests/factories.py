"""Small, valid DICOM images with known geometry, for every test that needs some.

`ct_series`, `enhanced_ct` and `us_image` build data sets that dciodvfy accepts; each knob spoils exactly one thing.
UIDs derive from `name`, so the same call makes the same files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as ItemSequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

# Image Orientation (Patient), PS3.3 C.7.6.2.1.1, and Patient Position, C.7.3.1.1.2, of each named orientation.
ORIENTATIONS: dict[str, tuple[tuple[float, ...], str]] = {
    "HFS": ((1, 0, 0, 0, 1, 0), "HFS"),
    "FFS": ((-1, 0, 0, 0, 1, 0), "FFS"),  # as scanned, not flipped for the reader
    "HFP": ((-1, 0, 0, 0, -1, 0), "HFP"),
    "sagittal": ((0, 1, 0, 0, 0, -1), "HFS"),
    "coronal": ((1, 0, 0, 0, 0, -1), "HFS"),
    # axial turned by 20 degrees round the y axis, then by 12 round the new x axis
    "oblique": ((0.939693, 0.0, -0.342020, 0.071110, 0.978148, 0.195375), "HFS"),
}

FRAME_MACROS = {  # of PS3.3 C.7.6.16.2 and C.8.15.3: functional group -> what of a CT Image stands in it
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth"),
}
OF_A_FRAME = {  # of a CT Image; no attributes of the top level of an enhanced one
    *(keyword for keywords in FRAME_MACROS.values() for keyword in keywords),
    *("ImagePositionPatient", "GantryDetectorTilt", "KVP", "ConvolutionKernel", "AcquisitionDate", "AcquisitionTime"),
}


def ct_series(
    folder: Path | None = None,
    *,
    shape: tuple[int, int, int] = (12, 32, 40),
    spacing_mm: tuple[float, float, float] = (2.5, 0.75, 0.75),
    orientation: str | Sequence[float] = "HFS",
    descending: bool = False,
    shuffled_instance_numbers: bool = False,
    origin_lps_mm: tuple[float, float, float] = (-120.0, -110.0, -300.0),
    voxels: np.ndarray | None = None,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = -1024.0,
    gantry_tilt_degrees: float = 0.0,
    without_position: Sequence[int] = (),
    duplicate_position: Sequence[int] = (),
    missing: Sequence[int] = (),
    localizer: bool = False,
    transfer_syntax: str = ExplicitVRLittleEndian,
    name: str = "ct",
    **attributes: Any,
) -> list[Dataset]:
    """One CT series; element z of the list shows voxels[z], in HU (default: air with a noisy body).

    shape, spacing_mm          (slices, rows, columns); (between slices, between rows, between columns)
    orientation                a name in ORIENTATIONS, or the six cosines of ImageOrientationPatient
    descending                 slice z lies z steps AGAINST the normal (row x column); otherwise along it
    shuffled_instance_numbers  InstanceNumber says nothing about the position
    slope, intercept           one for all, or one per slice
    gantry_tilt_degrees        slices lean round the row axis while the table moves straight on
    without_position           indices that lack ImagePositionPatient and ImageOrientationPatient
    duplicate_position         indices that are repeated at the end as another instance at the same place
    missing                    indices that are left out (a gap)
    localizer                  a coronal scout of the same series is put at the end
    attributes                 any DICOM keyword; None takes the attribute away

    JPEG 2000 wants 32 rows and columns or more.

    With a folder, writes 0000.dcm ... there in the order of the list; `.filename` says where.
    """
    slices, rows, columns = shape if voxels is None else voxels.shape
    hu = _body((slices, rows, columns)) if voxels is None else np.asarray(voxels)
    cosines, position = ORIENTATIONS[orientation] if isinstance(orientation, str) else (tuple(orientation), "HFS")
    row, column = np.array(cosines[:3], float), np.array(cosines[3:], float)
    step = np.cross(row, column) * spacing_mm[0] * (-1 if descending else 1)
    if gantry_tilt_degrees:
        tilt = np.deg2rad(gantry_tilt_degrees)
        column = np.cos(tilt) * column - np.sin(tilt) * np.cross(row, column)
    numbers = np.arange(1, slices + 1)
    if shuffled_instance_numbers:
        numbers = np.random.default_rng(5).permutation(numbers)
    slopes, intercepts = np.broadcast_to(slope, slices), np.broadcast_to(intercept, slices)

    series = []
    for z in range(slices):
        image = _ct_header(name, f"{z}")
        image.InstanceNumber = int(numbers[z])
        image.PatientPosition = position
        image.GantryDetectorTilt = f"{gantry_tilt_degrees:g}"
        image.ImagePositionPatient = _ds(np.array(origin_lps_mm) + step * z)
        image.ImageOrientationPatient = _ds([*row, *column])
        image.PixelSpacing = _ds(spacing_mm[1:])
        image.SliceThickness = f"{spacing_mm[0]:g}"
        image.RescaleSlope, image.RescaleIntercept = f"{slopes[z]:g}", f"{intercepts[z]:g}"
        stored = np.rint((hu[z] - intercepts[z]) / slopes[z]).astype("<i2")
        _pixels(image, stored, bits=16, signed=True)
        series.append(image)

    for z in without_position:
        del series[z].ImagePositionPatient, series[z].ImageOrientationPatient
    for z in duplicate_position:
        twin = copy.deepcopy(series[z])
        twin.SOPInstanceUID = _uid(name, f"twin {z}")
        twin.InstanceNumber = slices + 1 + z
        series.append(twin)
    if localizer:
        scout = copy.deepcopy(series[0])
        scout.SOPInstanceUID = _uid(name, "localizer")
        scout.InstanceNumber = 0
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        del scout.RescaleType  # a localizer is not in HU
        scout.ImageOrientationPatient = _ds(ORIENTATIONS["coronal"][0])
        series.append(scout)
    series = [image for z, image in enumerate(series) if z not in missing]
    return [_finish(image, attributes, transfer_syntax, folder, k) for k, image in enumerate(series)]


def enhanced_ct(
    series: Sequence[Dataset],
    folder: Path | None = None,
    *,
    legacy: bool = False,
    shared: bool = False,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> Dataset:
    """The slices of `ct_series` as the frames of one Enhanced CT Image, PS3.3 A.38.1, in the order of the list.

    What describes a frame stands in the functional groups alone: the top level has neither spacing nor position,
    orientation, thickness, rescaling or window.

    legacy       Legacy Converted Enhanced CT Image, PS3.3 A.70.1
    shared       what all frames have in common stands in the shared functional groups; otherwise in each frame's own
    attributes   of the top level: any DICOM keyword; None takes the attribute away
    """
    first = series[0]
    name = str(first.SeriesInstanceUID)
    image = Dataset()
    for element in first:
        if element.keyword not in OF_A_FRAME and element.keyword != "PixelData":
            image.add(copy.deepcopy(element))
    image.SOPClassUID = LegacyConvertedEnhancedCTImageStorage if legacy else EnhancedCTImageStorage
    image.SOPInstanceUID = _uid(name, "legacy" if legacy else "enhanced")
    image.InstanceNumber = 1
    image.NumberOfFrames = len(series)
    image.ImageType = ["DERIVED" if legacy else "ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.PixelPresentation = "MONOCHROME"
    image.VolumetricProperties = "VOLUME"
    image.VolumeBasedCalculationTechnique = "NONE"
    image.PresentationLUTShape = "IDENTITY"
    image.BurnedInAnnotation = "NO"
    image.LossyImageCompression = "00"
    image.ContentQualification = "RESEARCH"
    image.AcquisitionDateTime = "20260301101500"
    image.AcquisitionContextSequence = []
    image.DimensionOrganizationSequence = [Dataset()]
    image.DimensionOrganizationSequence[0].DimensionOrganizationUID = _uid(name, "dimensions")
    image.DimensionIndexSequence = [_index(_uid(name, "dimensions"), tag) for tag in (0x00209056, 0x00209057)]
    common, frames = Dataset(), []
    for number, slice_ in enumerate(series, start=1):
        own = Dataset()
        content = Dataset()
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number, [1, number]
        content.FrameAcquisitionNumber = 1
        own.FrameContentSequence = [content]
        own.PlanePositionSequence = [_group(slice_, "ImagePositionPatient")]
        target = common if shared else own
        for macro, keywords in FRAME_MACROS.items():
            setattr(target, macro, [_group(slice_, *keywords)])
        kind = Dataset()
        kind.FrameType = list(image.ImageType)
        for keyword in ("PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique"):
            setattr(kind, keyword, image[keyword].value)
        target.CTImageFrameTypeSequence = [kind]
        anatomy, region = Dataset(), Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "43799004", "SCT", "Thorax"
        anatomy.FrameLaterality, anatomy.AnatomicRegionSequence = "U", [region]
        target.FrameAnatomySequence = [anatomy]
        if legacy:
            converted = Dataset()
            converted.ReferencedSOPClassUID = slice_.SOPClassUID
            converted.ReferencedSOPInstanceUID = slice_.SOPInstanceUID
            own.ConversionSourceAttributesSequence = [converted]
            own.UnassignedPerFrameConvertedAttributesSequence = [_group(slice_, "InstanceNumber")]
            common.UnassignedSharedConvertedAttributesSequence = [_group(slice_, "KVP", "ConvolutionKernel")]
        frames.append(own)
    image.SharedFunctionalGroupsSequence = [common]
    image.PerFrameFunctionalGroupsSequence = frames
    image.PixelData = b"".join(slice_.PixelData for slice_ in series)
    image["PixelData"].VR = "OW"
    return _finish(image, attributes, transfer_syntax, folder, 0)


def us_image(
    folder: Path | None = None,
    *,
    shape: tuple[int, int] = (48, 64),
    frames: int | None = None,
    spacing_mm: tuple[float, float] | None = (0.25, 0.25),
    calibrated_by: str = "regions",
    colour: bool = False,
    voxels: np.ndarray | None = None,
    number: int = 1,
    transfer_syntax: str = ExplicitVRLittleEndian,
    name: str = "us",
    **attributes: Any,
) -> Dataset:
    """One ultrasound image (or clip, with `frames`) of a breast, without a frame of reference.

    spacing_mm      (between rows, between columns); None for an uncalibrated image
    calibrated_by   "regions" (SequenceOfUltrasoundRegions, in cm) or "pixel_spacing"
    voxels          uint8 (rows, columns), or (frames, rows, columns); with colour a last axis of 3
    number          InstanceNumber; images of the same `name` with different numbers are one series
    """
    if voxels is None:
        voxels = _speckle((frames or 1, *shape))
        voxels = voxels if frames else voxels[0]
        voxels = np.repeat(voxels[..., None], 3, axis=-1) if colour else voxels
    rows, columns = voxels.shape[1:3] if frames else voxels.shape[:2]

    image = _us_header(name, f"{number}", cine=frames is not None)
    image.InstanceNumber = number
    if frames:
        image.NumberOfFrames = frames
        image.FrameTime = "40"
        image.FrameIncrementPointer = 0x00181063  # Frame Time
    if spacing_mm and calibrated_by == "regions":
        image.SequenceOfUltrasoundRegions = [_region(rows, columns, spacing_mm)]
    elif spacing_mm:
        image.PixelSpacing = _ds(spacing_mm)
        image.PixelSpacingCalibrationType = "GEOMETRY"
    _pixels(image, voxels.astype(np.uint8), bits=8, signed=False)
    if colour:
        image.SamplesPerPixel = 3
        image.PhotometricInterpretation = "RGB"
        image.PlanarConfiguration = 0
        image.Rows, image.Columns = rows, columns
    return _finish(image, attributes, transfer_syntax, folder, number - 1)


def point_lps_mm(image: Dataset, row: float, column: float) -> np.ndarray:
    """Patient position of the centre of pixel (row, column), by equation C.7.6.2.1-1 of PS3.3."""
    cosines = np.array(image.ImageOrientationPatient, float)
    between_rows, between_columns = (float(v) for v in image.PixelSpacing)
    return (
        np.array(image.ImagePositionPatient, float)
        + cosines[:3] * between_columns * column
        + cosines[3:] * between_rows * row
    )


def header(image: Dataset) -> Dataset:
    """The image as a room sees it that read it with stop_before_pixels."""
    bare = copy.deepcopy(image)
    if "PixelData" in bare:
        del bare.PixelData
    return bare


# ----------------------------------------------------------------------------------------------- how they are made


def _uid(name: str, what: str) -> str:
    return generate_uid(prefix="2.25.", entropy_srcs=["tests/factories", name, what])


def _ds(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{value:.9f}".rstrip("0").rstrip(".")[:16] for value in values]


def _patient_and_study(image: Dataset, name: str) -> None:
    image.SpecificCharacterSet = "ISO_IR 100"
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20260301"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "101500"
    image.AccessionNumber = "A1234567"
    image.Manufacturer = "Test"
    image.ManufacturerModelName = "Factory"
    image.DeviceSerialNumber = "1"
    image.SoftwareVersions = "1"
    image.InstitutionName = "Test Hospital"
    image.ReferringPhysicianName = "Referrer^Rita"
    image.PatientName = "Test^Patient"
    image.PatientID = "TEST-1"
    image.PatientBirthDate = "19600101"
    image.PatientSex = "F"
    image.StudyID = "S1"
    image.SeriesNumber = 2
    image.StudyInstanceUID = _uid(name, "study")
    image.SeriesInstanceUID = _uid(name, "series")


def _ct_header(name: str, instance: str) -> Dataset:
    image = Dataset()
    _patient_and_study(image, name)
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = _uid(name, instance)
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.Modality = "CT"
    image.StudyDescription = "CT chest"
    image.SeriesDescription = "Chest 2.5 mm"
    image.BodyPartExamined = "CHEST"
    image.KVP = "120"
    image.ConvolutionKernel = "B30f"
    image.AcquisitionNumber = 1
    image.FrameOfReferenceUID = _uid(name, "frame of reference")
    image.PositionReferenceIndicator = ""
    image.RescaleType = "HU"
    image.WindowCenter, image.WindowWidth = "-600", "1500"
    return image


def _us_header(name: str, instance: str, cine: bool) -> Dataset:
    image = Dataset()
    _patient_and_study(image, name)
    image.SOPClassUID = UltrasoundMultiFrameImageStorage if cine else UltrasoundImageStorage
    image.SOPInstanceUID = _uid(name, instance)
    image.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]
    image.Modality = "US"
    image.StudyDescription = "US breast"
    image.SeriesDescription = "Breast"
    image.PatientOrientation = ["", ""]
    image.LossyImageCompression = "00"
    image.BurnedInAnnotation = "NO"
    image.Laterality = "R"
    return image


def _group(slice_: Dataset, *keywords: str) -> Dataset:
    """The item of a functional group macro."""
    item = Dataset()
    for keyword in keywords:
        if keyword in slice_:
            item[keyword] = copy.deepcopy(slice_[keyword])
    return item


def _index(organization: str, pointer: int) -> Dataset:
    """An item of Dimension Index Sequence, of an attribute of the Frame Content macro."""
    item = Dataset()
    item.DimensionOrganizationUID = organization
    item.DimensionIndexPointer = pointer
    item.FunctionalGroupPointer = 0x00209111
    return item


def _region(rows: int, columns: int, spacing_mm: tuple[float, float]) -> Dataset:
    """US Region Calibration, PS3.3 C.8.5.5: a tissue region over the whole image, in cm per pixel."""
    region = Dataset()
    region.RegionSpatialFormat = 1  # 2D
    region.RegionDataType = 1  # tissue
    region.RegionFlags = 2
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = columns - 1, rows - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = spacing_mm[1] / 10, spacing_mm[0] / 10
    return region


def _pixels(image: Dataset, stored: np.ndarray, bits: int, signed: bool) -> None:
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = stored.shape[-2:]
    image.BitsAllocated = image.BitsStored = bits
    image.HighBit = bits - 1
    image.PixelRepresentation = int(signed)
    data = stored.tobytes()
    image.PixelData = data + b"\0" * (len(data) % 2)
    image["PixelData"].VR = "OW" if bits > 8 else "OB"


def _finish(
    image: Dataset, attributes: Mapping[str, Any], transfer_syntax: str, folder: Path | None, place: int
) -> Dataset:
    for keyword, value in attributes.items():
        if value is not None:
            setattr(image, keyword, value)
        elif keyword in image:
            delattr(image, keyword)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID("2.25.291446283194126405373862")
    image.file_meta = meta
    if meta.TransferSyntaxUID.is_compressed and not meta.TransferSyntaxUID.is_deflated:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.compress(transfer_syntax, generate_instance_uid=False)
    elif transfer_syntax == ExplicitVRBigEndian and image.BitsAllocated == 16:
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
        image["PixelData"].VR = "OW"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{place:04d}.dcm"
        image.save_as(path, enforce_file_format=True)
        image.filename = str(path)
    return image


def _body(shape: tuple[int, int, int]) -> np.ndarray:
    """HU: an elliptic body at 40 +- 10 in air at -1000."""
    _, rows, columns = shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    return hu + np.random.default_rng(0).normal(0, 10, shape)


def _speckle(shape: tuple[int, int, int]) -> np.ndarray:
    return np.clip(np.random.default_rng(0).rayleigh(40, shape), 0, 255).astype(np.uint8)


def nested_image() -> Dataset:
    """Sequences of every kind: defined and undefined lengths, private, UN, empty, one within the other."""
    image = ct_series(shape=(2, 8, 8))[0]
    item, inner = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-28000", "Lung"
    item.PurposeOfReferenceCodeSequence = ItemSequence([inner, inner])
    item.ReferencedSOPInstanceUID = "9.9.9"
    image.ReferencedImageSequence = ItemSequence([item, Dataset(), item])
    for sequence in (image["ReferencedImageSequence"], item["PurposeOfReferenceCodeSequence"]):
        sequence.is_undefined_length = True
    item.is_undefined_length_sequence_item = True
    image.SourceImageSequence = ItemSequence([inner])
    image.private_block(0x0009, "PACS NODE TEST", create=True).add_new(0x01, "UN", b"private")
    return image
