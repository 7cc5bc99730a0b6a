"""The modules every result shares: patient, study, series, equipment, SOP common (PS3.3 C.7 and C.12)."""

from __future__ import annotations

from datetime import datetime

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from dicom_sr import attributes, codes
from dicom_sr.copies import ALWAYS_COPIED, COPIED_IF_PRESENT, copied
from dicom_sr.findings import Algorithm, Findings, ImageRef
from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, device_uid, result_uid

RESEARCH_ONLY = "Research use only, not for diagnostic use"

# Ours, for file meta information (PS3.7 D.3.3.2); fixed, so that the bytes do not change with the library.

SERIES_NAMES = {  # pipeline -> what its series are called
    "lung-nodule": "AI lung nodules",
    "lymph-node": "AI lymph nodes",
    "breast-us": "AI breast lesions",
}
SERIES_NUMBERS = {"SEG": 9100, "SR": 9200}  # far above the scanners' own

# What objects of one analysis share besides patient and study: when they were made, and by whom.
OF_ONE_ANALYSIS = (
    "SpecificCharacterSet",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SeriesDate",
    "SeriesTime",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "ContributingEquipmentSequence",
)


def result_header(
    findings: Findings,
    source: Dataset,
    *,
    sop_class_uid: str,
    modality: str,
    when: datetime,
    revision: int,
    number: int = 0,
) -> Dataset:
    """A data set of the source's patient and study, in a new series of our own.

    modality   "SEG" or "SR": the kind of object; each has its own series
    number     0, or which of several objects of that kind: each has its own series, because viewers show
               one Segmentation of a series
    """
    algorithm = findings.algorithm
    kind = modality.lower()
    here = (attributes.text(source, "SeriesInstanceUID"), findings.said_by, algorithm.version, revision)
    when = _in_zone_of(source, when)
    date, time = when.strftime("%Y%m%d"), when.strftime("%H%M%S")

    result = Dataset()
    result.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever the source had
    for keyword in (*ALWAYS_COPIED, *COPIED_IF_PRESENT):
        element, _ = copied(source, keyword)
        if element is not None:
            result.add(element)

    result.SOPClassUID = sop_class_uid
    result.SOPInstanceUID = result_uid(*here, kind, number)
    result.InstanceCreationDate = result.ContentDate = result.SeriesDate = date
    result.InstanceCreationTime = result.ContentTime = result.SeriesTime = time
    result.Modality = modality
    result.SeriesInstanceUID = result_uid(*here, f"{kind} series", number)
    result.SeriesNumber = SERIES_NUMBERS[modality] + number
    result.SeriesDescription = series_description(algorithm.name, modality, revision)
    result.InstanceNumber = revision

    result.Manufacturer = algorithm.manufacturer
    result.ManufacturerModelName = algorithm.name
    result.DeviceSerialNumber = algorithm.version
    result.SoftwareVersions = algorithm.version
    result.ContributingEquipmentSequence = [_contribution(algorithm, date + time)]

    result.file_meta = FileMetaDataset()
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    result.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return result


def series_description(name: str, modality: str, revision: int) -> str:
    """'AI lung nodules SEG', at most 64 characters (LO). What it is stands in the first 25, which is what a list of
    series has room for; the versions of algorithm and weights are in Software Versions.

    name   of the algorithm: "pacs-node lung-nodule"
    """
    tail = f" {modality}" + (f" rev {revision}" if revision > 1 else "")
    what = name.removeprefix("pacs-node ")
    head = SERIES_NAMES.get(what, f"AI {what}")
    return head[: 64 - len(tail)] + tail


def code_item(code: Code) -> Dataset:
    """Code Sequence Macro, PS3.3 Table 8.8-1."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def image_reference(ref: ImageRef) -> Dataset:
    """Image SOP Instance Reference Macro, PS3.3 Table 10-3."""
    item = Dataset()
    item.ReferencedSOPClassUID = ref.sop_class_uid
    item.ReferencedSOPInstanceUID = ref.sop_instance_uid
    if ref.frame is not None:
        item.ReferencedFrameNumber = ref.frame
    return item


def references(instances: dict[str, tuple[str, str]], sequence: str = "ReferencedInstanceSequence") -> list[Dataset]:
    """Items of Referenced Series Sequence for {SOP Instance UID: (SOP Class UID, Series Instance UID)}.

    sequence    of the instances of a series; "ReferencedImageSequence" in a presentation state, PS3.3 C.11.11
    """
    series: dict[str, Dataset] = {}
    for instance_uid, (class_uid, series_uid) in instances.items():
        if series_uid not in series:
            series[series_uid] = Dataset()
            series[series_uid].SeriesInstanceUID = series_uid
            setattr(series[series_uid], sequence, [])
        series[series_uid][sequence].value.append(image_reference(ImageRef(class_uid, instance_uid)))
    return list(series.values())


def _contribution(algorithm: Algorithm, at: str) -> Dataset:
    item = Dataset()
    # IHE AI Results calls the purpose "Processing Algorithm"; CID 7005 has this for it
    item.PurposeOfReferenceCodeSequence = [code_item(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer = algorithm.manufacturer
    item.ManufacturerModelName = algorithm.name
    item.DeviceSerialNumber = algorithm.version
    item.SoftwareVersions = algorithm.version
    item.DeviceUID = device_uid(algorithm.manufacturer, algorithm.name, algorithm.version)
    item.ContributionDateTime = at
    item.ContributionDescription = f"Processing Algorithm. {RESEARCH_ONLY}."
    return item


def _in_zone_of(source: Dataset, when: datetime) -> datetime:
    """`when` on the source's clock, if both say their time zone; else as given."""
    offset, _ = copied(source, "TimezoneOffsetFromUTC")  # one that is none is left out of the result
    if when.tzinfo is None or offset is None:
        return when
    return when.astimezone(datetime.strptime(str(offset.value), "%z").tzinfo)
