"""What breast-us is, and what it may be used for. No torch here."""

from __future__ import annotations

from dataclasses import replace

from dicom_sr import codes
from dicom_sr.findings import Algorithm
from models.breast_us.options import Options
from models.pipeline import Card, Declaration

NAME = "breast-us"
VERSION = "0.4.0"  # of what is done with the weights' answers; not that of the node

CARD = Card(
    name=NAME,
    modality=frozenset({"US"}),
    algorithm=Algorithm(f"pacs-node {NAME}", VERSION),
    intended_use=(
        "Outlines the largest lesion of a breast ultrasound image and estimates whether the image is normal, "
        "benign or malignant. Research use only, not for diagnostic use."
    ),
    finds={codes.MASS.meaning: True},  # where the image says how large its pixels are
    categories=("normal", "benign", "malignant"),
    # no body part: many systems leave BodyPartExamined empty or at a preset; a report of another one carries a warning
)
BI_RADS = tuple(f"BI-RADS {grade}" for grade in ("3", "4A", "4B", "4C", "5"))


def card(options: Options) -> Card:
    return replace(CARD, categories=(*CARD.categories, *BI_RADS)) if options.suggest_birads else CARD


PIPELINE = Declaration(card, "models.breast_us.pipeline:BreastUltrasound", Options)
