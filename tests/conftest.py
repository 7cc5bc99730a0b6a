"""Fixtures shared by every kind of test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# CI draws the same examples each time: a landing must not hang on luck. Elsewhere they are new each time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

os.environ["TCP_NODELAY"] = "1"  # DCMTK's programs stall 40 ms per image without it

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, when this checkout stands beside one."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no folder of real images at {SHARED_DATA}")
    return SHARED_DATA
