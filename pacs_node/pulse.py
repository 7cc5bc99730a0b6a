"""What is a heartbeat of the node, and what only says so: a phantom makes no result for a patient, nor the reverse.

A series is one if the node itself has sent all of it, which only its own address may, and all of it bears the Patient
ID that is reserved for this. It goes the way of one route to one destination. Anything else that has a mark of a
heartbeat, a patient's image among its images or its Patient ID on somebody's image, matches no route.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pacs_node.records import HEARTBEAT_AE, HEARTBEAT_ID


@dataclass(frozen=True)
class Way:
    """Of heartbeats, as the settings have it."""

    route: str
    to: str  # name of a peer


def is_marked(senders: Collection[str], patients: Collection[str]) -> bool:
    """Whether something of a series says that it is a heartbeat."""
    return HEARTBEAT_AE in senders or any(_folded(patient) == HEARTBEAT_ID for patient in patients)


def why_none(senders: Collection[str], patients: Collection[str]) -> str | None:
    """None: all of a series is a heartbeat. senders: AE titles of its images; patients: their Patient IDs."""
    if set(senders) != {HEARTBEAT_AE}:
        return (
            "its Patient ID is reserved for the heartbeat of the node, and another has sent it: nothing is made of it"
        )
    if set(patients) != {HEARTBEAT_ID}:
        return "it came as a heartbeat of the node, and not all of it is one: nothing is made of it"
    return None


def _folded(patient: str) -> str:
    return patient.strip().upper()
