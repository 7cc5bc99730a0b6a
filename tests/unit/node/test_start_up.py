"""What must hold before the node does anything."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from tests.harness import ROOT

USE = """
import ctypes
from pacs_node.start_up import give_memory_back

class Use(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Use
give_memory_back()
large = bytearray(16 << 20)
del large
before = libc.mallinfo2().hblkhd
block = bytearray(8 << 20)
print(libc.mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library")
def test_a_large_block_is_the_systems_own_also_after_a_larger_one_was_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(told.stdout) >= 8 << 20
