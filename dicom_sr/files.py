"""Finished objects as the files that they become."""

from __future__ import annotations

from io import BytesIO

from pydicom.dataset import Dataset


class Files:
    """Objects as DICOM files (PS3.10 7.1), each made once: the bytes that were checked are those that are written.

    An object does not change any more once its file has been asked for.
    """

    def __init__(self) -> None:
        self._made: dict[str, bytes] = {}  # by SOP Instance UID

    def of(self, dataset: Dataset) -> bytes:
        """Raises what pydicom raises for values that cannot be written."""
        uid = str(dataset.SOPInstanceUID)
        if uid not in self._made:
            file = BytesIO()
            dataset.save_as(file, enforce_file_format=True)
            self._made[uid] = file.getvalue()
        return self._made[uid]
