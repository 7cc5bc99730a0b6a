"""Findings -> DICOM: Segmentation (PS3.3 A.51) and TID 1500 reports (PS3.16). No torch; usable alone."""
