"""Small sets of scans in a folder, as models.training.lung_nodule.data.semisynthetic writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.training.lung_nodule.data.scans import FORMAT, INDEX, Scan, index_digest, store


def scan_set(folder: Path, scans: Mapping[str, tuple[str, Scan]], split_sha256: str = "5" * 64) -> Path:
    """The folder, with each scan under its name in a part: {"a": ("train", scan)}."""
    folder.mkdir(exist_ok=True)
    for name, (_, scan) in scans.items():
        store(folder / f"{name}.npz", scan)
    listed = [{"name": name, "file": f"{name}.npz", "part": part} for name, (part, _) in scans.items()]
    index = {"format": FORMAT, "semi_synthetic": True, "split_sha256": split_sha256, "scans": listed}
    (folder / INDEX).write_text(json.dumps(index | {"sha256": index_digest(index)}))
    return folder
