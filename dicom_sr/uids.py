"""UIDs of results, derived from what they are results of: a re-run replaces, it never duplicates."""

from __future__ import annotations

import uuid

from pydicom.uid import UID

# how the node, its associations and its files name their software: PS3.7 D.3.3.2; 2.25 and a UUID, PS3.5 B.2
IMPLEMENTATION_CLASS_UID = UID("2.25.148005963518218903624316907471250712499")
IMPLEMENTATION_VERSION_NAME = "PACS_NODE"

NAMESPACE = uuid.UUID("6f4d7b0e-7a55-5c9e-9d0e-2f6a1c7be0b3")  # ours; a new one would give every result a new UID


def result_uid(
    source_series_uid: str, pipeline: str, algorithm_version: str, revision: int, role: str, number: int = 0
) -> str:
    """The UID of one thing that one revision of one pipeline says about one series.

    role     what it is: "seg series", "seg", "sr series", "sr", "finding" ...
    number   which of them, where there are several

    2.25.<decimal of a name-based UUID>, PS3.5 B.2: at most 44 characters. Same arguments, same UID.
    """
    return _uid(source_series_uid, pipeline, algorithm_version, f"{revision}", role, f"{number}")


def device_uid(manufacturer: str, algorithm: str, algorithm_version: str) -> str:
    """The UID of the observing device: another one after every retraining (IHE AI Results)."""
    return _uid("device", manufacturer, algorithm, algorithm_version)


def child_uid(parent_uid: str, role: str) -> str:
    """The UID of something that exists only inside one object."""
    return _uid(parent_uid, role)


def _uid(*parts: str) -> str:
    return f"2.25.{uuid.uuid5(NAMESPACE, chr(0).join(parts)).int}"
