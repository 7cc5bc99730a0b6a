"""What tells who the patient is: never in a reason, nor in what the pages give to a helper (PS3.15 Table E.1-1)."""

from __future__ import annotations

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.tag import BaseTag

PATIENT_GROUP = 0x0010
CLINICAL_TRIAL_GROUP = 0x0012
IDENTIFYING = {  # beside both groups and every person's name: what names order, study or stay, and free text
    "AccessionNumber",
    "AdmissionID",
    "ImageComments",
    "IssuerOfAccessionNumberSequence",
    "ServiceEpisodeID",
    "StudyComments",
    "StudyDescription",
    "StudyID",
}


def identifies(tag: BaseTag) -> bool:
    """Would the value of this attribute tell who the patient is?"""
    person = dictionary_has_tag(tag) and dictionary_VR(tag) == "PN"
    return tag.group in (PATIENT_GROUP, CLINICAL_TRIAL_GROUP) or person or keyword_for_tag(tag) in IDENTIFYING
