"""What Lung-RADS v2022 and Fleischner 2017 would say of a nodule: tables to be held against the papers, no judgement.

Lung-RADS v2022: American College of Radiology, November 2022; the rows that need no prior examination.
Fleischner 2017: MacMahon et al., Radiology 284:228, doi 10.1148/radiol.2017161659, Table 1.

A suggestion never says more than is known. There is no prior here, so Lung-RADS is that of a baseline screen; the
patient's risk is not known, so Fleischner is given for low and for high risk. What else is not judged stands in LIMITS,
which goes into the report with every suggestion. All codes are private: a standard code for the category would let a
receiver take the suggestion for a radiologist's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.findings import Evaluation, Finding
from models.lung_nodule.options import Purpose

T = TypeVar("T")


@dataclass(frozen=True)
class Nodule:
    """What the tables need to know."""

    type: Code  # SOLID, PART_SOLID or NON_SOLID of dicom_sr.codes
    mean_mm: float  # to 0.1 mm, as reported
    solid_mm: float  # mean diameter of the core, to 0.1 mm; 0 for a non-solid nodule


def private(value: str, meaning: str) -> Code:
    return Code(value, "99PACSNODE", meaning)


# ---------------------------------------------------------------------------------------------------------- Lung-RADS

LUNG_RADS = private("LUNGRADS2022", "Suggested Lung-RADS v2022 if baseline, radiologist to confirm")
LR_2, LR_3, LR_4A, LR_4B = (private(f"LUNGRADS{name}", f"Lung-RADS {name}") for name in ("2", "3", "4A", "4B"))

# type -> (mean diameter in mm from which it holds, category), of the whole nodule, at baseline
LUNG_RADS_BY_DIAMETER = {
    codes.SOLID: ((0.0, LR_2), (6.0, LR_3), (8.0, LR_4A), (15.0, LR_4B)),
    codes.PART_SOLID: ((0.0, LR_2),),  # from 6 mm on by its solid part
    codes.NON_SOLID: ((0.0, LR_2), (30.0, LR_3)),
}
PART_SOLID_FROM_MM = 6.0
LUNG_RADS_BY_SOLID_PART = ((0.0, LR_3), (6.0, LR_4A), (8.0, LR_4B))


def lung_rads(nodule: Nodule) -> Code:
    """The category of one nodule at baseline."""
    if nodule.type == codes.PART_SOLID and nodule.mean_mm >= PART_SOLID_FROM_MM:
        return row(LUNG_RADS_BY_SOLID_PART, nodule.solid_mm)
    return row(LUNG_RADS_BY_DIAMETER[nodule.type], nodule.mean_mm)


# --------------------------------------------------------------------------------------------------------- Fleischner

LOW_RISK = private("FLEISCHNER17LOW", "Suggested Fleischner 2017 if low risk, radiologist to confirm")
HIGH_RISK = private("FLEISCHNER17HIGH", "Suggested Fleischner 2017 if high risk, radiologist to confirm")

NONE = private("F17-NONE", "No routine follow-up")
CT_12_OPTIONAL = private("F17-CT12-OPT", "Optional CT at 12 months")
CT_6_CONSIDER_18 = private("F17-CT6-CT18-OPT", "CT at 6-12 months, then consider CT at 18-24 months")
CT_6_THEN_18 = private("F17-CT6-CT18", "CT at 6-12 months, then CT at 18-24 months")
CT_3_OR_MORE = private("F17-CT3-PET", "Consider CT at 3 months, PET/CT, or tissue sampling")
CT_3_CONSIDER_18 = private("F17-CT3-CT18-OPT", "CT at 3-6 months, then consider CT at 18-24 months")
CT_3_THEN_18 = private("F17-CT3-CT18", "CT at 3-6 months, then CT at 18-24 months")
CT_6_THEN_2_YEARLY = private("F17-CT6-2Y", "CT at 6-12 months; if persistent, every 2 years to 5 years")
CT_3_THEN_YEARLY = private("F17-CT3-1Y", "CT at 3-6 mo; unchanged and solid part < 6 mm: yearly to 5 y")
CT_3_SUSPICIOUS = private("F17-CT3-SUSP", "CT at 3-6 mo; solid part of 6 mm or more: highly suspicious")
CT_3_THEN_2_AND_4 = private("F17-CT3-2Y-4Y", "CT at 3-6 months; if stable, consider CT at 2 and 4 years")
CT_3_MOST_SUSPICIOUS = private("F17-CT3-MOST", "CT at 3-6 months, then by the most suspicious nodule")

# (solid, single) -> (mean diameter in whole mm from which it holds, (low risk, high risk))
FLEISCHNER_SOLID = {
    "single": (
        (0, (NONE, CT_12_OPTIONAL)),
        (6, (CT_6_CONSIDER_18, CT_6_THEN_18)),
        (9, (CT_3_OR_MORE, CT_3_OR_MORE)),  # "> 8 mm" of whole millimetres
    ),
    "multiple": ((0, (NONE, CT_12_OPTIONAL)), (6, (CT_3_CONSIDER_18, CT_3_THEN_18))),
}
FLEISCHNER_SINGLE_NON_SOLID = ((0, NONE), (6, CT_6_THEN_2_YEARLY))
FLEISCHNER_SINGLE_PART_SOLID = ((0, NONE), (6, CT_3_THEN_YEARLY))
FLEISCHNER_MULTIPLE_SUBSOLID = ((0, CT_3_THEN_2_AND_4), (6, CT_3_MOST_SUSPICIOUS))  # for subsolid risk does not matter
SUSPICIOUS_SOLID_PART_MM = 6
NODULE_UP_TO_MM = 30  # above it is a mass, of which the recommendations do not speak
YOUNGEST = 35  # years


def fleischner(nodule: Nodule, alone: bool) -> tuple[Code, Code] | None:
    """(for low, for high risk) of one nodule; None for a mass. Diameters count in whole mm, as below the paper's table.

    alone: it is the only solid, or the only subsolid, nodule.
    """
    mm, solid_mm = whole(nodule.mean_mm), whole(nodule.solid_mm)
    if mm > NODULE_UP_TO_MM:
        return None
    if nodule.type == codes.SOLID:
        return row(FLEISCHNER_SOLID["single" if alone else "multiple"], mm)
    if not alone:
        both = row(FLEISCHNER_MULTIPLE_SUBSOLID, mm)
    elif nodule.type == codes.NON_SOLID:
        both = row(FLEISCHNER_SINGLE_NON_SOLID, mm)
    else:
        both = row(FLEISCHNER_SINGLE_PART_SOLID, mm)
        if both == CT_3_THEN_YEARLY and solid_mm >= SUSPICIOUS_SOLID_PART_MM:
            both = CT_3_SUSPICIOUS
    return both, both


def whole(mm: float) -> int:
    """To whole mm, halves upwards; mm is to 0.1."""
    return (round(mm * 10) + 5) // 10


def row(table: Sequence[tuple[float, T]], value: float) -> T:
    """The last row whose bound is not above the value."""
    return next(found for bound, found in reversed(table) if value >= bound)


# ---------------------------------------------------------------------------------------------------- what is reported

LIMITS: dict[Purpose, str] = {
    "screening": (
        "Lung-RADS v2022 categories are suggested where the size leaves little doubt of them, for each mark by itself,"
        " to be confirmed by the radiologist, as on a baseline screen; the type is by HU rules. Not judged: priors and"
        " growth; benign calcification or fat; the shape of juxtapleural nodules; airway nodules, cysts, inflammation;"
        " features that make it 4X or S; the category of the examination."
    ),
    "incidental": (
        "Fleischner 2017 follow-up is suggested where the size leaves little doubt of it, for low and for high risk,"
        " to be confirmed by the radiologist; the type is by HU rules. Not known: the patient's risk, priors and"
        " growth, known cancer, immunosuppression (it does not apply to either, nor below 35 years). Single or multiple"
        " counts the marks of this report, solid and subsolid by themselves; false marks count too."
    ),
}
# What a size this much smaller or larger would change is not suggested: three of four mean diameters are no farther off
# those of phantoms and of readers, whichever are worse (docs/results/sizes.json; figures/sizes.py writes both).
CLOSE_MM: float = json.loads(Path(__file__).with_name("size_margin.json").read_text("utf-8"))["margin_mm"]
TOO_YOUNG = "No Fleischner follow-up is suggested: the patient is younger than 35 years."


def with_suggestions(
    purpose: Purpose | None, findings: Sequence[Finding], header: Dataset
) -> tuple[list[Finding], list[str]]:
    """The findings with what the tables say of their reported numbers, and what the report must say beside it.

    Without a purpose nothing is added; nor to a finding without a type, to a mass, or where a size as far off as ours
    are would change it.
    """
    if purpose is None:
        return list(findings), []
    if purpose == "incidental" and under_age(header):
        return list(findings), [TOO_YOUNG]
    nodules = [inputs(finding) for finding in findings]
    solid = sum(nodule is not None and nodule.type == codes.SOLID for nodule in nodules)
    subsolid = sum(nodule is not None for nodule in nodules) - solid

    def codes_of(nodule: Nodule) -> tuple[Evaluation, ...]:
        if purpose == "screening":
            return (Evaluation(LUNG_RADS, lung_rads(nodule)),)
        both = fleischner(nodule, alone=(solid if nodule.type == codes.SOLID else subsolid) == 1)
        return () if both is None else (Evaluation(LOW_RISK, both[0]), Evaluation(HIGH_RISK, both[1]))

    told, close = [], []
    for finding, nodule in zip(findings, nodules, strict=True):
        possible = {codes_of(one) for one in about(nodule)} if nodule is not None else {()}
        told.append(
            replace(finding, evaluations=finding.evaluations + next(iter(possible))) if len(possible) == 1 else finding
        )
        close += [finding.label] if len(possible) > 1 else []
    return told, [LIMITS[purpose], *([too_close(close)] if close else [])]


def about(nodule: Nodule) -> Iterator[Nodule]:
    """The nodule as it is reported, and as small and as large as it may be."""
    for off_mm in (-CLOSE_MM, 0.0, CLOSE_MM):
        sizes = (max(0.0, round(mm + off_mm, 1)) if mm else 0.0 for mm in (nodule.mean_mm, nodule.solid_mm))
        yield Nodule(nodule.type, *sizes)


def too_close(labels: Sequence[str]) -> str:
    return (
        f"No category or follow-up is suggested for {', '.join(labels)}: with a size {CLOSE_MM} mm smaller or larger it"
        " would be another, and one size of four is farther than that from the true one, or from what readers measure."
    )


def inputs(finding: Finding) -> Nodule | None:
    """What the tables need, out of what is reported; None when no type is."""
    kind = next((one.value for one in finding.evaluations if one.name == codes.NODULE_TYPE), None)
    mm = {one.name: one.value for one in finding.measurements if one.derivation is not None}
    return kind and Nodule(kind, mm[codes.MEAN_DIAMETER], mm.get(codes.SOLID_DIAMETER, 0.0))


def under_age(header: Dataset) -> bool:
    """By Patient's Age (AS, PS3.5 6.2), else by the dates of birth and study. False when neither is stated."""
    age = re.fullmatch(r"(\d{3})([DWMY])", str(header.get("PatientAge") or ""))
    if age is not None:
        return age[2] != "Y" or int(age[1]) < YOUNGEST
    born, studied = (str(header.get(keyword) or "") for keyword in ("PatientBirthDate", "StudyDate"))
    dated = all(re.fullmatch(r"\d{8}", each) for each in (born, studied))
    return dated and int(studied) - int(born) < YOUNGEST * 10_000  # yyyymmdd: whole years
