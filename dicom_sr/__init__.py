"""Findings -> DICOM: Segmentation (PS3.3 A.51) and TID 1500 reports (PS3.16). No torch; usable alone.

objects = encode(findings, headers, when=datetime.now())
for dataset in objects:
    dataset.save_as(f"{dataset.Modality}.dcm", enforce_file_format=True)
"""

from dicom_sr.objects import EncodingError, Fault, Rejected, Written, check_objects, encode

__all__ = ["EncodingError", "Fault", "Rejected", "Written", "check_objects", "checked", "encode"]

checked = check_objects  # its name up to 0.1
