"""What must hold before the node does anything."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.harness import ROOT

BORROWED = """
from pacs_node.start_up import give_memory_back
from tests.unit.node.pipelines import borrowed
give_memory_back()
print(borrowed())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library")
def test_a_large_block_is_the_systems_own_also_after_a_larger_one_was_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", BORROWED], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(told.stdout) >= 8 << 20
