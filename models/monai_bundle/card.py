"""What monai-bundle is, and what it takes with these options. No torch here."""

from __future__ import annotations

from pathlib import Path

from dicom_sr.findings import Algorithm
from models.labels import measured_kinds
from models.monai_bundle.options import Options
from models.pipeline import Card, Declaration, Requirements

VERSION = "0.1.0"  # of what is done here; the bundle's own is added when it is loaded


def card(options: Options) -> Card:
    name = Path(options.bundle).name
    return Card(
        name="monai-bundle",
        modality=frozenset({options.modality}),
        algorithm=Algorithm(f"MONAI bundle {name}"[:64], VERSION),
        intended_use=f"Runs the MONAI bundle {name} as its own configuration says. Research use only, not for"
        " diagnostic use.",
        body_part=frozenset(options.body_part),
        requires=Requirements(volume=True, min_slices=2, max_tilt_deg=0.5, hounsfield=options.modality == "CT"),
        finds=measured_kinds(options.labels),
    )


PIPELINE = Declaration(card, "models.monai_bundle.pipeline:MonaiBundle", Options)
