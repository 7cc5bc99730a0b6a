"""What a result copies from its source: whose it is, and what is said of patient and study.

What makes a result belong to its study must equal the source, so it is copied as it stands, odd values too. The rest is
written only as the Standard allows it: mended where the meaning is plain, else left out. Each is said in a remark that
names the attribute, never its value. No bad copy holds a result back.
"""

from __future__ import annotations

import re

from pydicom import config
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID
from pydicom.valuerep import PersonName, validate_value

from dicom_sr import attributes
from dicom_sr.attributes import UNREADABLE, BadAttribute

# Type 2 of the Patient and General Study modules: written even if the source lacks them, and equal to it.
ALWAYS_COPIED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
# Written if the source has them. Time zone: it holds for the copied times too.
COPIED_IF_PRESENT = (
    "TimezoneOffsetFromUTC",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "TypeOfPatientID",
    "OtherPatientIDsSequence",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "ProcedureCodeSequence",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
)
MUST_BE_EQUAL = (*ALWAYS_COPIED, "IssuerOfPatientID")  # or an archive files the result under another patient or study

VALUES = {  # the values that an attribute can have at all: PS3.3 C.7.1.1, C.12.1.1.8
    "PatientIdentityRemoved": re.compile("YES|NO"),
    "TimezoneOffsetFromUTC": re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]"),
}
HOW_REMOVED = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")  # one is needed, PS3.3 C.7.1.1
CLINICAL_TRIAL = tuple(keyword for keyword in COPIED_IF_PRESENT if keyword.startswith("ClinicalTrial"))
WHOSE_TRIAL = (  # Type 1 and 1C of the Clinical Trial Subject module, PS3.3 C.7.1.3: one of each
    ("ClinicalTrialSponsorName",),
    ("ClinicalTrialProtocolID",),
    ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
)
EMPTY_OF_TRIAL = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")  # Type 2
CODE = (("CodeMeaning",), ("CodeValue", "LongCodeValue", "URNCodeValue"))  # Code Sequence Macro, PS3.3 8.8
ITEMS: dict[str, tuple[tuple[str, ...], ...]] = {  # sequence -> what each item must say: one of each group
    "ProcedureCodeSequence": CODE,
    "DeidentificationMethodCodeSequence": CODE,
    "OtherPatientIDsSequence": (("PatientID",), ("TypeOfPatientID",)),  # PS3.3 C.7.1.1
    "IssuerOfAccessionNumberSequence": (("LocalNamespaceEntityID", "UniversalEntityID"),),  # PS3.3 10.17
    "IssuerOfPatientIDQualifiersSequence": (),  # PS3.3 10.18
}
ONE_ITEM = ("IssuerOfAccessionNumberSequence", "IssuerOfPatientIDQualifiersSequence")
BESIDE = {  # an attribute of an item -> what belongs to it
    "CodeValue": "CodingSchemeDesignator",
    "LongCodeValue": "CodingSchemeDesignator",
    "UniversalEntityID": "UniversalEntityIDType",
}

NOT_A_LETTER = "�"  # what a decoder puts in the place of bytes that it cannot read
ONLY_ASCII = "iso8859"  # pydicom's encoding for ISO_IR 6, the default, and for a character set that it does not know
FREE_TEXT = {"LO": 64, "SH": 16, "ST": 1024, "LT": 10240}  # VR -> most characters, PS3.5 Table 6.2-1
TEXTS = frozenset({*FREE_TEXT, "AE", "AS", "CS", "DA", "DS", "DT", "IS", "PN", "TM", "UC", "UI", "UR", "UT"})
WITH_CHARACTER_SET = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT"])  # PS3.5 6.1.2.3


def copied(source: Dataset, keyword: str) -> tuple[DataElement | None, str | None]:
    """(the element to write, a remark): None instead of an element that is left out, None where nothing is to be said.

    Never raises. An attribute in ALWAYS_COPIED always has an element, empty if the source has none.
    """
    if keyword in CLINICAL_TRIAL:
        return _of_trial(source, keyword)
    element, remark = _alone(source, keyword)
    is_removed = keyword == "PatientIdentityRemoved" and element is not None and element.value == "YES"
    if is_removed and not any(_alone(source, how)[0] for how in HOW_REMOVED):
        return None, f"{keyword} of the images is left out: no {' and no '.join(HOW_REMOVED)} that can be written"
    return element, remark


def _alone(source: Dataset, keyword: str) -> tuple[DataElement | None, str | None]:
    """As `copied`, whatever the other attributes are."""
    own_vr = dictionary_VR(keyword)
    if keyword not in source:
        return (_element(keyword, own_vr, None), None) if keyword in ALWAYS_COPIED else (None, None)
    if own_vr == "SQ":
        return _sequence(source, keyword)
    try:
        text, undecodable = _text(source, keyword, attributes.texts(source, "SpecificCharacterSet"))
    except (BadAttribute, *UNREADABLE):
        remark = f"{keyword} of the images cannot be read; it is left {'empty' if keyword in ALWAYS_COPIED else 'out'}"
        return (_element(keyword, own_vr, None) if keyword in ALWAYS_COPIED else None), remark
    several = "\\" in text and own_vr not in ("ST", "LT", "UT") and dictionary_VM(keyword) == "1"
    is_sound = not _breaks(own_vr, text) and not several
    if keyword in MUST_BE_EQUAL:
        odd = (
            f"{keyword} of the images breaks its VR {own_vr}{' by several values' * several}; it is copied as it stands"
        )
        said_elsewhere = is_sound or own_vr == "UI"  # of UIDs the gate tells
        return _element(keyword, own_vr, text or None), undecodable or (None if said_elsewhere else odd)
    if not text:
        return None, None  # what need not be there is not there without a value
    if keyword in VALUES and not VALUES[keyword].fullmatch(text):
        return None, f"{keyword} of the images is none of the values that it can have; it is left out"
    if is_sound:
        return _element(keyword, own_vr, text), undecodable
    if mended := _mended(own_vr, text):
        return _element(keyword, own_vr, mended), f"{keyword} of the images breaks its VR {own_vr}; it is mended"
    return None, f"{keyword} of the images is no value of VR {own_vr}; it is left out"


def _of_trial(source: Dataset, keyword: str) -> tuple[DataElement | None, str | None]:
    """An attribute of the Clinical Trial Subject module, which is written as a whole or not at all."""
    known = {each for each in CLINICAL_TRIAL if _alone(source, each)[0] is not None}
    missing = [" or ".join(each) for each in WHOSE_TRIAL if not known.intersection(each)]
    if known and missing:
        return None, f"what the images say of a clinical trial is left out: they say no {' and no '.join(missing)}"
    element, remark = _alone(source, keyword)
    if known and element is None and keyword in EMPTY_OF_TRIAL:
        return _element(keyword, dictionary_VR(keyword), None), remark
    return element, remark


def remarks(source: Dataset) -> list[str]:
    """Everything that is odd about what a result of this source copies, in words, without values."""
    found = [remark for keyword in (*ALWAYS_COPIED, *COPIED_IF_PRESENT) if (remark := copied(source, keyword)[1])]
    return list(dict.fromkeys(found))


def describe_copied(source: Dataset, keyword: str) -> str:
    """The value as a result writes it; empty where the source has none."""
    element, _ = copied(source, keyword)
    if element is None or element.value is None:
        return ""
    return "\\".join(map(str, element.value)) if element.VM > 1 else str(element.value)


def coded(source: Dataset, keyword: str) -> str:
    """The value of a coded string (CS) of the source; empty where it has none that can be written."""
    text = attributes.text(source, keyword)
    return "" if _breaks("CS", text) else text


def ratio_and_method(source: Dataset) -> tuple[list[DataElement], str | None]:
    """Lossy Image Compression Ratio and Method for an object made of a lossy image, PS3.3 C.7.6.1.1.5; and a remark on
    a ratio that is no number, which is left out with its method."""
    if not attributes.has(source, "LossyImageCompressionRatio"):
        return [], None
    try:
        ratios = [str(value).strip() for value in attributes.values(source, "LossyImageCompressionRatio")]
    except BadAttribute:
        ratios = [""]
    methods = attributes.texts(source, "LossyImageCompressionMethod")
    if not all(attributes.NUMBER.fullmatch(ratio) for ratio in ratios) or any(_breaks("DS", r) for r in ratios):
        return [], "LossyImageCompressionRatio of the images is no number; it is left out"
    elements = [_element("LossyImageCompressionRatio", "DS", "\\".join(ratios))]
    if methods and not any(_breaks("CS", method) for method in methods):
        elements.append(_element("LossyImageCompressionMethod", "CS", "\\".join(methods)))
    return elements, None


def _sequence(source: Dataset, keyword: str) -> tuple[DataElement | None, str | None]:
    """The items that say what the Standard wants of them, in letters of our own character set."""
    try:
        items = attributes.values(source, keyword)
        if not all(isinstance(item, Dataset) for item in items):
            raise BadAttribute(keyword, "is no sequence")
        sets = attributes.texts(source, "SpecificCharacterSet")
        read = [_item(item, sets) for item in items]
    except (BadAttribute, *UNREADABLE, OSError):  # OSError: pydicom's, of items that are cut off
        return None, f"{keyword} of the images cannot be read; it is left out"
    if not items:
        return None, None
    whole = [item for item, _ in read if _is_whole(item, ITEMS[keyword])]
    if not whole or (keyword in ONE_ITEM and len(whole) > 1):
        why = f"has {len(whole)} items, one is allowed" if whole else "has no item that says what it must"
        return None, f"{keyword} of the images {why}; it is left out"
    remark = next((remark for _, remark in read if remark), None)
    if len(whole) < len(items):
        remark = f"{len(items) - len(whole)} of {len(items)} items of {keyword} of the images do not say what they must"
        remark += "; they are left out"
    return DataElement(Tag(keyword), "SQ", Sequence(whole)), remark


def _item(item: Dataset, sets: list[str]) -> tuple[Dataset, str | None]:
    """(the item as it can be written, a remark on its letters). Raises BadAttribute or one of UNREADABLE."""
    sets = attributes.texts(item, "SpecificCharacterSet") or sets
    written, remark = Dataset(), None
    for tag in sorted(item.keys()):
        keyword = keyword_for_tag(tag)
        vr = dictionary_VR(tag) if keyword else ""
        if vr == "SQ":
            inner = [_item(each, sets) for each in attributes.items(item, keyword)]
            written.add(DataElement(tag, "SQ", Sequence([each for each, _ in inner])))
            remark = remark or next((said for _, said in inner if said), None)
        elif vr in TEXTS and keyword != "SpecificCharacterSet":
            text, undecodable = _text(item, keyword, sets)
            sound = text if not _breaks(vr, text) else _mended(vr, text)
            if sound:
                written.add(_element(keyword, vr, sound))
            remark = remark or undecodable
    return written, remark


def _is_whole(item: Dataset, needed: tuple[tuple[str, ...], ...]) -> bool:
    """Whether it has one of each group, what belongs to that, and whole items of its own."""
    if not item or not all(any(keyword in item for keyword in group) for group in needed):
        return False
    if any(keyword in item and beside not in item for keyword, beside in BESIDE.items()):
        return False
    return all(
        _is_whole(each, CODE if "CodeSequence" in element.keyword else ())
        for element in item
        if element.VR == "SQ"
        for each in element.value
    )


def _text(source: Dataset, keyword: str, sets: list[str]) -> tuple[str, str | None]:
    """(the value as text, what is wrong with its letters). No letter is lost: bytes that the character set does not
    know are read as Latin-1, which has a letter for each. Raises BadAttribute or one of UNREADABLE."""
    tag = Tag(keyword)
    vr = dictionary_VR(tag)
    if vr in ("DS", "IS"):
        return "\\".join(str(value) for value in attributes.values(source, keyword)), None
    raw = source.get_item(tag)
    if isinstance(raw, RawDataElement):
        data = raw.value or b""
    else:
        value = source[tag].value
        data = value.original_string if isinstance(value, PersonName) else None
        if not isinstance(data, bytes):
            several = value if not isinstance(value, str | PersonName) and hasattr(value, "__iter__") else [value]
            return "\\".join("" if each is None else str(each) for each in several), None
    data = data.strip(b" \0") if vr not in ("ST", "LT", "UT") else data.rstrip(b" \0")
    if vr not in WITH_CHARACTER_SET:
        return data.decode("latin-1"), None
    sets = sets or [""]
    encodings = convert_encodings(sets)
    text = decode_bytes(data, encodings, {ord("\\"), ord("^"), ord("=")} if vr == "PN" else {ord("\\")})
    outside = set(encodings) == {ONLY_ASCII} and not data.isascii()  # and pydicom takes them for Latin-1
    if NOT_A_LETTER not in text and not outside:
        return text, None
    try:
        text, read_as = data.decode("utf-8"), "ISO_IR 192"
    except UnicodeDecodeError:
        text, read_as = data.decode("latin-1"), "ISO_IR 100"
    declared = "\\".join(sets) or "the default"
    return text, f"{keyword} of the images is not written in their character set ({declared}); it is read as {read_as}"


def _mended(vr: str, text: str) -> str:
    """Without what no text of this VR may hold, and as long as it may be; empty where that does not do."""
    mended = re.sub(r"[\x00-\x1f\x7f]+", " ", text)[: FREE_TEXT.get(vr, 0)].strip()
    return "" if _breaks(vr, mended) else mended


def _breaks(vr: str, text: str) -> bool:
    parts = text.split("\\") if vr not in ("ST", "LT", "UT") else [text]
    if vr in ("LO", "SH", "PN") and not all(letter.isprintable() for letter in text):
        return True
    try:
        for part in parts:
            if vr == "UI" and part and not UID(part).is_valid:
                return True
            if vr in ("DS", "IS") and part and not attributes.NUMBER.fullmatch(part.strip()):
                return True
            validate_value(vr, part, config.RAISE)
    except ValueError:
        return True
    return False


def _element(keyword: str, vr: str, text: str | None) -> DataElement:
    return DataElement(Tag(keyword), vr, text, validation_mode=config.IGNORE)
