"""Findings -> DICOM: Segmentation (PS3.3 A.51) and TID 1500 reports (PS3.16). No torch; usable alone.

objects = encode(findings, headers, when=datetime.now())
for dataset in objects:
    dataset.save_as(f"{dataset.Modality}.dcm", enforce_file_format=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicom_sr.objects import EncodingError, Fault, Rejected, Written, check_objects, encode

    checked = check_objects  # its name up to 0.1

__all__ = ["EncodingError", "Fault", "Rejected", "Written", "check_objects", "checked", "encode"]


def __getattr__(name: str) -> Any:
    """What makes objects takes 50 MB: it is loaded when it is first needed, not by whoever reads a header."""
    if name not in __all__:
        raise AttributeError(f"module 'dicom_sr' has no attribute {name!r}")
    from dicom_sr import objects

    return getattr(objects, "check_objects" if name == "checked" else name)
