"""Attributes that a result copies, each right by its VR, that break the module they belong to: PS3.3 C.7.1, C.7.2.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset


def item(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def code(**changes: str | None) -> Dataset:
    said = {"CodeValue": "77477000", "CodingSchemeDesignator": "SCT", "CodeMeaning": "CT"} | changes
    return item(**{keyword: value for keyword, value in said.items() if value is not None})


TRIAL = {
    "ClinicalTrialSponsorName": "Sponsor",
    "ClinicalTrialProtocolID": "P1",
    "ClinicalTrialProtocolName": "",
    "ClinicalTrialSiteID": "",
    "ClinicalTrialSiteName": "",
    "ClinicalTrialSubjectID": "S1",
}
REMOVED, METHOD, CODES = "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"
PROCEDURE, OTHERS, ISSUER = "ProcedureCodeSequence", "OtherPatientIDsSequence", "IssuerOfAccessionNumberSequence"
QUALIFIERS, ZONE = "IssuerOfPatientIDQualifiersSequence", "TimezoneOffsetFromUTC"
OTHER = item(PatientID="X1", TypeOfPatientID="TEXT")

# name -> (what the images say, how many values or items of it a result says; is it remarked on)
ODD: Mapping[str, tuple[Mapping[str, Any], Mapping[str, int], bool]] = {
    "identity removed, nobody says how": ({REMOVED: "YES"}, {}, True),
    "identity removed, by an empty method": ({REMOVED: "YES", METHOD: ""}, {}, True),
    "identity removed, by no codes": ({REMOVED: "YES", CODES: []}, {}, True),
    "identity removed, by an empty code": ({REMOVED: "YES", CODES: [Dataset()]}, {}, True),
    "identity removed, by a code": ({REMOVED: "YES", CODES: [code()]}, {REMOVED: 1, CODES: 1}, False),
    "identity removed, by a method": ({REMOVED: "YES", METHOD: "by hand", CODES: []}, {REMOVED: 1, METHOD: 1}, False),
    "identity not removed, by an empty method": ({REMOVED: "NO", METHOD: ""}, {REMOVED: 1}, False),
    "an empty method alone": ({METHOD: ""}, {}, False),
    "identity removed: Y": ({REMOVED: "Y", METHOD: "by hand"}, {METHOD: 1}, True),
    "identity removed: yes": ({REMOVED: "yes", METHOD: "by hand"}, {METHOD: 1}, True),
    "a procedure of no codes": ({PROCEDURE: []}, {}, False),
    "a procedure of an empty code": ({PROCEDURE: [Dataset()]}, {}, True),
    "a procedure without value": ({PROCEDURE: [code(CodeValue=None)]}, {}, True),
    "a procedure without scheme": ({PROCEDURE: [code(CodingSchemeDesignator=None)]}, {}, True),
    "a procedure without meaning": ({PROCEDURE: [code(CodeMeaning=None)]}, {}, True),
    "a procedure of an empty meaning": ({PROCEDURE: [code(CodeMeaning="")]}, {}, True),
    "a procedure of a long meaning": ({PROCEDURE: [code(CodeMeaning="x" * 70)]}, {PROCEDURE: 1}, False),
    "a procedure of two codes": ({PROCEDURE: [code(), code(CodeValue="2")]}, {PROCEDURE: 2}, False),
    "a procedure of a good code and an empty one": ({PROCEDURE: [code(), Dataset()]}, {PROCEDURE: 1}, True),
    "no other number": ({OTHERS: []}, {}, False),
    "another number without type": ({OTHERS: [item(PatientID="X1")]}, {}, True),
    "another number that is empty": ({OTHERS: [item(PatientID="", TypeOfPatientID="TEXT")]}, {}, True),
    "one of two other numbers": ({OTHERS: [OTHER, item(PatientID="X2")]}, {OTHERS: 1}, True),
    "no issuer of the accession number": ({ISSUER: []}, {}, False),
    "an empty issuer of the accession number": ({ISSUER: [Dataset()]}, {}, True),
    "an issuer of no type": ({ISSUER: [item(UniversalEntityID="1.2.3")]}, {}, True),
    "two issuers": ({ISSUER: [item(LocalNamespaceEntityID="A"), item(LocalNamespaceEntityID="B")]}, {}, True),
    "an issuer": ({ISSUER: [item(LocalNamespaceEntityID="A")]}, {ISSUER: 1}, False),
    "empty qualifiers of the issuer": ({QUALIFIERS: []}, {}, False),
    "a qualifier of the issuer without type": ({QUALIFIERS: [item(UniversalEntityID="1.2.3")]}, {}, True),
    "a time zone that is none": ({ZONE: "+2500"}, {}, True),
    "a time zone as ISO 8601 has it": ({ZONE: "Z"}, {}, True),
    "a clinical trial": (TRIAL, TRIAL.fromkeys(TRIAL, 1) | TRIAL.fromkeys(list(TRIAL)[2:5], 0), False),
    "an empty clinical trial": (dict.fromkeys(TRIAL, ""), {}, False),
    **{f"a clinical trial that says only {keyword}": ({keyword: "x"}, {}, True) for keyword in TRIAL},
    **{
        f"a clinical trial without {keyword}": (TRIAL | {keyword: ""}, {}, True)
        for keyword in ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID")
    },
}


def say(images: Sequence[Dataset], name: str) -> None:
    for image in images:
        for keyword, value in ODD[name][0].items():
            setattr(image, keyword, value)
