"""The documentation as a site: python deploy/site.py (`make site`); open build/site/index.html.

The documents lie where they are read in the repository. They are copied with the pictures that they show; a link to
what is no document becomes its path. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build" / "site-source"
DOCUMENTS = ("*.md", "docs/**/*.md", "models/*/CARD.md")
PICTURES = {".png", ".svg", ".jpg"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def main() -> int:
    shutil.rmtree(SOURCE, ignore_errors=True)
    found = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    for path in found:
        copied(path, set(found))
    (SOURCE / "assets").mkdir()
    shutil.copy(ROOT / "deploy" / "iframe-worker.js", SOURCE / "assets")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", ROOT / "deploy" / "site.yml"]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=quiet, check=False).returncode


def copied(path: Path, documents: set[Path]) -> None:
    target = SOURCE / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)

    def link(found: re.Match[str]) -> str:
        picture, words, where, _ = found.groups()
        if "://" in where or where.startswith("mailto:") or not where:
            return found[0]
        named = (path.parent / where).resolve()
        if named in documents:
            return found[0]
        if named.suffix in PICTURES and named.is_file():
            beside = SOURCE / named.relative_to(ROOT)
            beside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(named, beside)
            return found[0]
        if picture or words.startswith("`"):
            return found[0] if picture else words
        return f"{words} (`{named.relative_to(ROOT)}`)"

    target.write_text(LINK.sub(link, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
