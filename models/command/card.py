"""What command is, and what it takes with these options. No torch here."""

from __future__ import annotations

from dicom_sr.findings import Algorithm
from models.command.options import Options
from models.pipeline import Card, Declaration, Requirements


def card(options: Options) -> Card:
    volume = Requirements(
        volume=True, min_slices=options.min_slices, max_tilt_deg=0.5, hounsfield=options.modality == ["CT"]
    )
    return Card(
        name="command",
        modality=frozenset(options.modality),
        algorithm=Algorithm(options.name, options.version),
        intended_use=f"Runs {options.name}, a program of another maker. Research use only, not for diagnostic use.",
        body_part=frozenset(options.body_part),
        requires=volume if options.volume else Requirements(),
    )


PIPELINE = Declaration(card, "models.command.pipeline:Command", Options)
