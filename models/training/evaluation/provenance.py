"""Where the figures of a file come from: weights, data, commit and command, at the head of every file of figures.

What was not written down when the figures were made is called NOT_RECORDED, with what is known after it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.training.export import git_sha
from models.training.files import write_text

NOT_RECORDED = "not recorded"
NONE = "none"  # no network is run, or nothing is read but phantoms that the program makes


def write_figures(
    path: Path, figures: Mapping[str, Any], weights: Mapping[str, str] | str, data: Mapping[str, str] | str
) -> None:
    """A file of figures that says where they come from; see provenance."""
    write_text(path, json.dumps({**figures, "provenance": provenance(weights, data)}, indent=1) + "\n")


def provenance(weights: Mapping[str, str] | str, data: Mapping[str, str] | str) -> dict[str, Any]:
    """Of figures that this process makes. weights, data: name -> SHA-256, or one of the words above."""
    return {
        "weights_sha256": weights if isinstance(weights, str) else dict(weights),
        "data_sha256": data if isinstance(data, str) else dict(data),
        "commit": git_sha(),
        "command": command(),
    }


def command() -> str:
    """How this process was asked, folders left out: they are this machine's."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name
    words = (Path(word).name if word.startswith(("/", "~")) else word for word in sys.argv[1:])
    return " ".join(["python", name, *words])


def digests(files: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file by its name; of a folder, of what stands directly in it."""
    found = {}
    for path in files:
        for file in sorted(path.iterdir()) if path.is_dir() else (path,):
            if file.is_file():
                with file.open("rb") as stream:
                    found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def of_trainings(folder: Path, data: Mapping[str, str] | str) -> dict[str, Any]:
    """Of figures of what was trained below a folder, perhaps by an earlier commit than this one."""
    paths = sorted(folder.rglob("*.safetensors"))
    known = [json.loads(path.with_suffix(".json").read_text("utf-8")) for path in paths]
    weights = {str(path.relative_to(folder)): one["sha256"] for path, one in zip(paths, known, strict=True)}
    commits = sorted({one["git_sha"] for one in known} - {"unknown"})
    said = provenance(weights or f"{NOT_RECORDED}: the command trains them", data)
    return said | ({"commit": ", ".join(commits)} if commits else {})


def faults(document: Mapping[str, Any]) -> Iterator[str]:
    """What is missing or ill-formed in the provenance of a file of figures, or of each of its parts, in words."""
    parts = [*document.values()]
    if "provenance" not in document and parts and all(isinstance(one, Mapping) for one in parts):
        for name, one in document.items():
            yield from (f"{name}: {fault}" for fault in _faults(one.get("provenance", {})))
    else:
        yield from _faults(document.get("provenance", {}))


FORMS = {
    "weights_sha256": "[0-9a-f]{64}",
    "data_sha256": "[0-9a-f]{64}",
    "commit": "[0-9a-f]{7,40}(, [0-9a-f]{7,40})*",
    "command": "(python|make) .+",
}


def _faults(said: Mapping[str, Any]) -> Iterator[str]:
    for part, form in FORMS.items():
        value = said.get(part) or "nothing"
        for name, one in value.items() if isinstance(value, Mapping) else [("", value)]:
            if not re.fullmatch(f"({form})|({NOT_RECORDED}|{NONE}).*", one):
                yield f"{part} {name}: {one}"
