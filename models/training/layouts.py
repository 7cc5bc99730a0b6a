"""Training data as it lies on a disk: a zip or a folder, known by what is in it, and where extracts of it are kept."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

Root = Path | zipfile.Path  # of a folder, or of the inside of a zip: both are walked, opened and read alike

CACHE = Path("~/.cache/pacs-node/training")  # where extracts of large sets are kept unless another folder is named


class UnknownLayout(ValueError):
    """The path holds nothing that we know how to read; the message says what was looked for."""


def open_root(path: Path) -> Root:
    """The folder, or the inside of the zip, below which the data lie. A lone outer folder is stepped into."""
    if not path.exists():
        raise UnknownLayout(f"{path} does not exist; give the zip or the folder of the data")
    if path.is_dir():
        root: Root = path
    elif zipfile.is_zipfile(path):
        root = zipfile.Path(path)
    else:
        raise UnknownLayout(f"{path.name} is neither a folder nor a zip")
    while len(inside := [one for one in root.iterdir() if not one.name.startswith((".", "__MACOSX"))]) == 1:
        if not inside[0].is_dir():
            break
        root = inside[0]
    return root


def digest_of(files: Iterable[Path], root: Path, *what: object) -> str:
    """SHA-256 of a listing (names below root, sizes, times of change) and of what is done with it."""
    listing = [(file.relative_to(root).as_posix(), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([what, sorted(listing)], default=str).encode()).hexdigest()
