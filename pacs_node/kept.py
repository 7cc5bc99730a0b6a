"""The findings of a job, kept with it: what is written or sent again is never inferred again.

One file, a NumPy archive without pickles: `findings.json` as bytes, and the masks. Everything comes back as it was, to
the last bit of every number, so that the same findings make the same results. What a job goes on with is what was
read back, whether it has been inferred just now or by a worker that has died since.
"""

from __future__ import annotations

import hashlib
import io
import json
import types
import typing
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from pydicom.sr.coding import Code

from dicom_sr.findings import Findings
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
        return [str(path), stored.offset, stored.size]
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
    text = json.dumps(_plain(findings, masks), allow_nan=True).encode()
    file = io.BytesIO()
    arrays: dict[str, Any] = {f"mask{number}": mask for number, mask in enumerate(masks)}
    arrays[TEXT] = np.frombuffer(text, np.uint8)
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def load(content: bytes) -> Findings:
    """Raises ValueError, KeyError, TypeError or BadZipFile for what `dump` has not written."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        told = json.loads(arrays[TEXT].tobytes())
        return typing.cast(Findings, _made(Findings, told, arrays))


def _plain(value: Any, masks: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        masks.append(value)
        return f"mask{len(masks) - 1}"
    if isinstance(value, Code):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), masks) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each, masks) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each, masks) for each in value]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, np.generic):
        return value.item()
    return value


def _made(kind: Any, told: Any, masks: Mapping[str, np.ndarray]) -> Any:
    """The value of a declared type that `_plain` has told."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if told is None:
        return None
    if kind is np.ndarray:
        return masks[told]
    if kind is Code:
        return Code(*told)
    if kind is date:
        return date.fromisoformat(told)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _made(hints[name], each, masks) for name, each in told.items()})
    if origin is tuple:
        each_kind = [inner[0]] * len(told) if inner[-1] is Ellipsis else inner
        return tuple(_made(one, each, masks) for one, each in zip(each_kind, told, strict=True))
    if origin is types.UnionType or origin is typing.Union:
        options = [option for option in inner if option is not types.NoneType]
        return _made(options[0], told, masks) if len(options) == 1 else told
    return told


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
