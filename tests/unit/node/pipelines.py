"""Pipelines that behave as badly as real ones can; loaded by the real inference process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicom_sr.findings import Algorithm, Findings
from models.pipeline import UnfitInput


class Pipeline:
    """Does what its options say, and names the first file in its answer."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.does = (options or {}).get("does", "answer")

    def warm(self) -> None:
        pass

    def run(self, files: Sequence[Path], progress: Callable[[float, str], None]) -> Findings:
        progress(0.5, "half")
        if self.does == "hang":
            time.sleep(60)
        if self.does == "die":
            os._exit(3)
        if self.does == "break":
            raise KeyError("a bug")
        if self.does == "refuse":
            raise UnfitInput("the slices are not axial")
        if self.does == "eat":
            raise MemoryError("8 GB wanted")
        return Findings("t", "volume", (), (), Algorithm("t", "1"), facts={"file": files[0].name, "pid": os.getpid()})
