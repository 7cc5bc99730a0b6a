"""The findings of a job, kept with it: what is written or sent again is never inferred again.

One file, a NumPy archive without pickles: `findings.json` as bytes, and the masks. Everything comes back as it was, to
the last bit of every number, so that the same findings make the same results. What a job goes on with is what was
read back, whether it has been inferred just now or by a worker that has died since.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from dicom_sr.findings import Findings
from dicom_sr.typed import made, plain
from pacs_node import pack
from pacs_node.durable import write_whole
from pacs_node.records import Stored

log = structlog.get_logger()

FORM = 1  # of the file: another one is read as if there were none
TEXT = "findings.json"


def request_digest(pipeline: str, options: Mapping[str, Any], images: Sequence[Stored]) -> str:
    """A digest of what was asked of which images. They are never written again: their place in a pack, or the size and
    time of their file, tell them."""
    told = json.dumps([FORM, pipeline, dict(options), [_known(each) for each in images]], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _known(stored: Stored) -> list[Any]:
    path = stored.path
    if path.suffix == pack.SUFFIX:
        return [path.parent.name, path.name, stored.offset, stored.size]  # the same on every machine
    try:
        about = path.stat()
    except OSError:
        return [str(path)]  # whoever reads it says what is wrong
    return [str(path), about.st_size, about.st_mtime_ns]


def load_kept(path: Path) -> Findings | None:
    """What is kept there; None, with a line in the log, when it cannot be read: it is inferred once more."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("kept findings unreadable", file=path.name, error=type(error).__name__)
        return None


def keep(path: Path, findings: Findings) -> Findings:
    """Write the findings whole or not at all, and give back what was read again. Raises OSError."""
    content = dump(findings)
    write_whole(path, lambda file: file.write(content))
    return load(content)


def dump(findings: Findings) -> bytes:
    masks: list[np.ndarray] = []
    text = json.dumps(plain(findings, masks), allow_nan=True).encode()
    file = io.BytesIO()
    arrays: dict[str, Any] = {f"mask{number}": mask for number, mask in enumerate(masks)}
    arrays[TEXT] = np.frombuffer(text, np.uint8)
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def load(content: bytes) -> Findings:
    """Raises ValueError, KeyError, TypeError or BadZipFile for what `dump` has not written."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        told = json.loads(arrays[TEXT].tobytes())
        findings: Findings = made(Findings, told, arrays)
        return findings
