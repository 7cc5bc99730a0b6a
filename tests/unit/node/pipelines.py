"""Pipelines that behave as badly as real ones can; loaded by the real inference process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicom_sr.findings import Algorithm, Findings
from models.pipeline import Card, Declaration, UnfitInput


class Pipeline:
    """Does what its options say, and names the first file in its answer."""

    card = Card("t", frozenset({"CT"}), Algorithm("t", "1"), "Research use only, not for diagnostic use.", {})

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.does = (options or {}).get("does", "answer")
        if self.does == "not begin":
            raise ZeroDivisionError("division by zero")

    def warm(self) -> None:
        if self.does == "not warm":
            raise RuntimeError("the engine is cold")

    def run(self, files: Sequence[Path], progress: Callable[[float, str], None]) -> Findings:
        progress(0.5, "half")
        if self.does == "hang":
            time.sleep(60)
        if self.does == "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "die":
            os._exit(3)
        if self.does == "break":
            raise KeyError("a bug")
        if self.does == "quote":
            raise ValueError("PatientName is 'DOE^JANE'")
        if self.does == "unpicklable":
            facts = {"file": lambda: "no such answer"}
            return Findings("t", "volume", (), (), Algorithm("t", "1"), facts=facts)  # type: ignore[dict-item]
        if self.does == "exit":
            raise SystemExit(4)
        if self.does == "refuse":
            raise UnfitInput("the slices are not axial")
        if self.does == "eat":
            raise MemoryError("8 GB wanted")
        return Findings("t", "volume", (), (), Algorithm("t", "1"), facts={"file": files[0].name, "pid": os.getpid()})


PIPELINE = Declaration(Pipeline.card, "tests.unit.node.pipelines:Pipeline")
