"""Our codes against another source: the concepts pydicom took from PS3.16."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.sr._cid_dict import cid_concepts as CID_CONCEPTS
from pydicom.sr._concepts_dict import concepts as CONCEPTS
from pydicom.sr.coding import Code

from dicom_sr import codes

OURS = {name: value for name, value in vars(codes).items() if isinstance(value, Code)}
# Not in pydicom's tables: an annotation of UCUM is free text in braces; this meaning is that of TID 1501, row 4
ELSEWHERE = {"PIXELS", "LESIONS", "FRAMES", "FINDING_CATEGORY"}
# RadLex and NCI Thesaurus as the public LIDC reports use them (lidc2dicom); PS3.16 lists the schemes, not these codes
ELSEWHERE |= {"NODULE_TYPE", "SOLID", "PART_SOLID", "NON_SOLID"}
ELSEWHERE |= {"SOURCE"}  # SNOMED CT: "Source (attribute)"
ELSEWHERE |= {"QUALITATIVE_EVALUATIONS"}  # TID 1500, row 12, of UMLS, which pydicom has no table of
PRIVATE = {name for name, code in OURS.items() if code.scheme_designator == "99PACSNODE"}


def test_private_codes_are_few_and_named() -> None:
    """Where PS3.16 has a concept it is used; each of these was looked for there in vain."""
    assert {
        *("SOLID_DIAMETER", "PLEURA_DISTANCE", "NODULE_TYPE_RULE"),
        *("DIAMETER_CHANGE", "VOLUME_CHANGE", "VOLUME_DOUBLING_TIME", "GROWTH_IN_12_MONTHS"),
        *("PRIOR_STUDY", "NO_LONGER_FOUND", "REGISTRATION_RESIDUAL"),
        *("PROBABILITY_OF_NORMAL", "PROBABILITY_OF_BENIGN"),
    } == PRIVATE


def meanings(code: Code) -> set[str]:
    """What pydicom calls it."""
    return {
        meaning
        for concepts in CONCEPTS[code.scheme_designator].values()
        for value, (meaning, _) in concepts.items()
        if value == code.value
    }


@pytest.mark.parametrize("name", sorted(OURS.keys() - ELSEWHERE - PRIVATE))
def test_code_is_known_under_this_meaning(name: str) -> None:
    code = OURS[name]
    known = {re.sub(r" \((qualifier value|procedure|observable entity)\)$", "", m).lower() for m in meanings(code)}
    assert code.meaning.lower() in known


def test_no_code_of_the_retired_snomed_rt_scheme() -> None:
    assert {code.scheme_designator for code in OURS.values()} <= {
        *("SCT", "DCM", "UCUM", "IBSI", "LN", "NCIt", "RADLEX"),
        *("UMLS", "99PACSNODE"),
    }


def test_long_and_short_axis_are_written_as_ohif_looks_for_them() -> None:
    assert codes.LONG_AXIS.meaning == "Long Axis"
    assert codes.SHORT_AXIS.meaning == "Short Axis"


def test_cited_context_groups_list_the_code() -> None:
    """Each `# CID n` beside a code in the source holds in pydicom's tables."""
    cited = re.findall(r'^(\w+) = Code\("([^"]+)", "([^"]+)".*# (?:.*?)CID (\d+)', _source(), re.MULTILINE)
    assert len(cited) > 10
    for name, value, scheme, cid in cited:
        keywords = CID_CONCEPTS.get(int(cid), {}).get(scheme, [])
        listed = {v for keyword in keywords for v in CONCEPTS[scheme][keyword]}
        assert value in listed, f"{name} is not in CID {cid}"


def _source() -> str:
    return Path(codes.__file__).read_text(encoding="utf-8")
