"""`pacs-node new-pipeline`: a package with a pipeline that runs, to be changed into another."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from pacs_node.errors import NodeError

FILES = Path(__file__).parent / "files"
NAME, MODULE, CLASS = "@name@", "@module@", "@Class@"  # what is filled in
WRITTEN = {  # file of the package -> its text, below `files`
    "pyproject.toml": "pyproject.toml.txt",
    "@module@/__init__.py": "init.py.txt",
    "@module@/options.py": "options.py.txt",
    "@module@/card.py": "card.py.txt",
    "@module@/pipeline.py": "pipeline.py.txt",
    "@module@/CARD.md": "CARD.md.txt",
    "tests/test_@module@.py": "test.py.txt",
}


class CannotWrite(NodeError):
    """The package cannot be written; the message says why."""


def write(name: str, into: Path) -> Path:
    """Write the package of a pipeline; the folder it was written to. Nothing is overwritten. Raises CannotWrite."""
    module = name.replace("-", "_").replace(".", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise CannotWrite(f"'{name}' is no name for a pipeline: small letters, digits and hyphens, as in bone-density")
    folder = into / name
    if folder.exists():
        raise CannotWrite(f"{folder} is there already; nothing is overwritten: name another folder with --into")
    filled = {NAME: name, MODULE: module, CLASS: "".join(part.capitalize() for part in module.split("_"))}
    for target, source in WRITTEN.items():
        path = folder / _filled(target, filled)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_filled((FILES / source).read_text(encoding="utf-8"), filled), encoding="utf-8")
    return folder


def _filled(text: str, filled: dict[str, str]) -> str:
    for mark, value in filled.items():
        text = text.replace(mark, value)
    return text
