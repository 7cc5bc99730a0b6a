"""What lung-nodule is, and what it may be used for. No torch here."""

from __future__ import annotations

from dataclasses import replace

from dicom_sr import codes
from dicom_sr.findings import Algorithm
from models.lung_nodule.options import Options
from models.pipeline import Card, Declaration, Requirements

VERSION = "0.5.3"  # of what is done with the weights' answers; not that of the node

CARD = Card(
    name="lung-nodule",
    modality=frozenset({"CT"}),
    algorithm=Algorithm("pacs-node lung-nodule", VERSION),
    intended_use="Marks and measures candidate pulmonary nodules on axial chest CT of adults for engineers and"
    " researchers. Research use only, not for diagnostic use.",
    # no body part: BodyPartExamined of a CT is what the protocol was called, and often wrong; lungs are looked for
    requires=Requirements(
        volume=True,
        axial=True,
        min_slices=16,
        max_tilt_deg=0.5,  # 0.9 mm of shift over 100 mm
        hounsfield=True,
    ),
    finds={codes.NODULE.meaning: True},
)
SCREENING = replace(CARD, categories=tuple(f"Lung-RADS {grade}" for grade in ("2", "3", "4A", "4B")))


def card(options: Options) -> Card:
    return SCREENING if options.purpose == "screening" else CARD


PIPELINE = Declaration(
    card, "models.lung_nodule.pipeline:LungNodule", Options, comparison="models.lung_nodule.compare:compare"
)
