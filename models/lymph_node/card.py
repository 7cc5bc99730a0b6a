"""What lymph-node is, and what it may be used for. No torch here."""

from __future__ import annotations

from dicom_sr import codes
from dicom_sr.findings import Algorithm
from models.lymph_node.options import Options
from models.pipeline import Card, Declaration, Requirements

VERSION = "0.1.0"  # of what is done with the weights' answers; not that of the node

CARD = Card(
    name="lymph-node",
    modality=frozenset({"CT"}),
    algorithm=Algorithm("pacs-node lymph-node", VERSION),
    intended_use="Marks what may be lymph nodes of the mediastinum and abdomen on axial CT with contrast agent, for"
    " engineers; experimental, made without any real image of one. Research use only, not for diagnostic use.",
    requires=Requirements(volume=True, axial=True, min_slices=9, max_tilt_deg=0.5, hounsfield=True),
    finds={codes.LYMPH_NODE.meaning: True},
)
PIPELINE = Declaration(CARD, "models.lymph_node.pipeline:LymphNode", Options)
