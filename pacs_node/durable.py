"""What a power cut must not undo."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """fsync of a file by name; of a folder, which holds the names of its files: a rename lasts only after it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
