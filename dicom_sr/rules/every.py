"""Rules for every object: modules of the Standard, values, whose it is and what it names."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import validate_value

from dicom_sr import attributes, modules
from dicom_sr.copies import ALWAYS_COPIED, describe_copied
from dicom_sr.previous import pertinent_uids
from dicom_sr.rules.subject import Subject
from dicom_sr.source import headers_by_uid, plane

NOT_TEXT = {"SQ", "UI", "OB", "OW", "FL", "FD", "US", "UL", "SL", "SS", "AT"}


def sop_class(known: frozenset[str], subject: Subject) -> Iterator[str]:
    if subject.dataset.get("SOPClassUID") not in known:
        yield f"SOP Class {subject.dataset.get('SOPClassUID')} is none that we write"


def module(module: str, subject: Subject) -> Iterator[str]:
    yield from modules.missing(subject.dataset, module)


def frame_of_reference(subject: Subject) -> Iterator[str]:
    if any(plane(header, 1).is_in_space for header in subject.sources):  # 1 is the image itself where it has no frames
        yield from modules.missing(subject.dataset, "frame-of-reference")


def only_known_attributes(subject: Subject) -> Iterator[str]:
    for keyword in modules.strangers(subject.dataset):
        yield f"{keyword} belongs to no module of this kind of object"


def uids(subject: Subject) -> Iterator[str]:
    """What we wrote ourselves. A UID of the sources is theirs: see `uids_of_sources`."""
    theirs = subject.uids_of_sources
    for keyword, uid in _uids(subject):
        if not UID(uid).is_valid and uid not in theirs:
            yield f"{keyword} {uid} is not a UID"


def uids_of_sources(subject: Subject) -> Iterator[str]:
    """A reference must say what the source says, so a UID of the sources that breaks PS3.5 9.1 is written as it is."""
    theirs = subject.uids_of_sources
    for keyword in sorted({keyword for keyword, uid in _uids(subject) if uid in theirs and not UID(uid).is_valid}):
        yield f"{keyword} is the images' own, which breaks the rules for UIDs (a component begins with 0)"


def _uids(subject: Subject) -> Iterator[tuple[str, str]]:
    for element in (subject.dataset["StudyInstanceUID"], *subject.written):
        if element.VR == "UI":
            for uid in element.value if element.VM > 1 else [element.value]:
                if uid:
                    yield element.keyword, str(uid)


def values(subject: Subject) -> Iterator[str]:
    """Length and characters of every value, as text, which is how it is written."""
    for element in subject.written:
        if element.VR in NOT_TEXT or element.is_empty:
            continue
        for value in element.value if element.VM > 1 else [element.value]:
            try:
                validate_value(element.VR, str(value), pydicom_config.RAISE)
            except ValueError as error:
                yield f"{element.keyword} is no value of VR {element.VR}: {str(error).splitlines()[0]}"


def character_set(subject: Subject) -> Iterator[str]:
    if subject.dataset.get("SpecificCharacterSet") != "ISO_IR 192":
        yield f"SpecificCharacterSet is {subject.dataset.get('SpecificCharacterSet')}, not ISO_IR 192"


def file_meta(subject: Subject) -> Iterator[str]:
    meta, dataset = subject.dataset.file_meta, subject.dataset
    if meta.get("MediaStorageSOPInstanceUID") != dataset.get("SOPInstanceUID"):
        yield "the file meta information names another SOP Instance UID"
    if meta.get("MediaStorageSOPClassUID") != dataset.get("SOPClassUID"):
        yield "the file meta information names another SOP Class UID"


def code_items(subject: Subject) -> Iterator[str]:
    for element in subject.written:
        if element.VR != "SQ" or not element.keyword.endswith("CodeSequence"):
            continue
        for item in element.value:
            if any(keyword in item for keyword in ("LongCodeValue", "URNCodeValue")):
                continue
            lacking = [
                keyword
                for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
                if keyword not in item or item[keyword].is_empty
            ]
            if lacking:
                yield f"a code in {element.keyword} has no {' and no '.join(lacking)}"
            elif item.CodingSchemeDesignator == "SRT":
                yield f"a code in {element.keyword} is of the retired scheme SRT: {item.CodeValue}"


def identity(subject: Subject) -> Iterator[str]:
    for keyword in ALWAYS_COPIED:
        own = describe_copied(subject.dataset, keyword)
        if all(describe_copied(source, keyword) != own for source in subject.sources):  # the first has it
            yield f"{keyword} is not the sources'"


def references(subject: Subject) -> Iterator[str]:
    """Every instance that is named exists: among the sources, our own set, or what is replaced."""
    known = headers_by_uid([*subject.sources, *subject.segmentations])
    before = {each.sop_instance_uid: each.sop_class_uid for each in subject.replaces}
    pertinent = pertinent_uids(subject.dataset)  # of an earlier study, of which nothing else is known here
    for item in _items_with_reference(subject.dataset):
        uid = str(item.ReferencedSOPInstanceUID)
        if uid in pertinent:
            continue
        if uid not in known and uid not in before:
            yield f"it refers to {uid}, which is none of the sources"
            continue
        if item.ReferencedSOPClassUID != (before[uid] if uid in before else attributes.text(known[uid], "SOPClassUID")):
            yield f"it refers to {uid} as another SOP Class"
        frames = item.get("ReferencedFrameNumber")
        if frames is not None and uid in known:
            last = int(known[uid].get("NumberOfFrames") or 1)
            for frame in [frames] if isinstance(frames, int | str) else frames:
                if not 1 <= int(frame) <= last:
                    yield f"it refers to frame {frame} of {uid}, which has {last}"


def _items_with_reference(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        if element.VR == "SQ" and element.keyword not in modules.AS_THE_SOURCE_HAS_IT:
            for item in element.value:
                if "ReferencedSOPInstanceUID" in item:
                    yield item
                yield from _items_with_reference(item)


def own_series(subject: Subject) -> Iterator[str]:
    """OHIF shows one Segmentation of a series, and the last report of one."""
    dataset = subject.dataset
    others = [each for each in subject.segmentations if each.SOPInstanceUID != dataset.SOPInstanceUID]
    if dataset.SeriesInstanceUID in {
        attributes.text(each, "SeriesInstanceUID") for each in (*others, *subject.sources)
    }:
        yield "it shares its series with another object"
