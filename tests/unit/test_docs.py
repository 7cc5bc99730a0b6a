"""Documents that are printed from the code are as the code is now."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from pacs_node.conformance import statement
from pacs_node.inputs import page
from tests.harness import missing

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_what_is_taken_and_refused_is_printed_from_the_code() -> None:
    assert (DOCS / "inputs.md").read_text() == page(), "run: python -m pacs_node.inputs > docs/inputs.md"


def test_the_conformance_statement_is_printed_from_the_code() -> None:
    assert (DOCS / "conformance.md").read_text() == statement(), "run: pacs-node conformance > docs/conformance.md"


# The README and the Makefile: what a newcomer follows ---------------------------------------------------------------


STUB = """#!/bin/sh
if [ "$1" = -c ]; then exec {python} -c "import sys; sys.version_info = {version}
$2"; fi
echo "$@" >> {asked}
[ "$2" = venv ] || exit 0
mkdir -p .venv/bin
for name in pip python ruff mypy pacs-node; do cp {stub} .venv/bin/$name; done
"""


def make(folder: Path, goal: str, version: tuple[int, int], *options: str) -> tuple[int, str, list[str]]:
    """`make goal` in a folder of its own with a Python of that version: exit code, what was said, what Python was
    asked to do."""
    if (program := shutil.which("make")) is None:
        missing("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    asked = folder / "asked"
    stub = folder / "python-stub"
    stub.write_text(STUB.format(python=sys.executable, version=(*version, 0), asked=asked, stub=stub))
    stub.chmod(0o755)
    done = subprocess.run(
        [program, goal, f"PYTHON={stub}", *options], cwd=folder, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"]}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr, asked.read_text().splitlines() if asked.exists() else []


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 14), (3, 15)])
@pytest.mark.parametrize("goal", ["demo", "test", "setup"])
def test_a_python_that_will_not_do_is_refused_before_anything_is_fetched(
    tmp_path: Path, goal: str, version: tuple[int, int]
) -> None:
    code, said, asked = make(tmp_path, goal, version)
    assert code != 0
    assert f"pacs-node needs Python 3.11, 3.12 or 3.13, and {tmp_path}/python-stub is {version[0]}.{version[1]}" in said
    assert f"make {goal} PYTHON=python3.12" in said
    assert asked == []
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11,<3.14"


def test_running_needs_no_developers_tools_and_says_its_size_first(tmp_path: Path) -> None:
    code, said, asked = make(tmp_path, "demo", (3, 12))
    assert code == 0, said
    assert not any("dev" in line for line in asked)
    assert asked[0] == "-m venv .venv"
    assert asked[-1] == "demo"
    assert re.search(r"about [\d.]+ GB to download and [\d.]+ GB on disk", said.partition("venv .venv\n")[0])
    asked = make(tmp_path, "lint", (3, 12))[2][len(asked) :]
    assert asked[0].endswith("-e .[dev]"), "what lint and test need comes on top"
    assert asked[1:] == ["check .", "format --check .", ""]
    assert make(tmp_path, "lint", (3, 12))[2][-3:] == asked[1:], "once"


def test_what_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists() and link != "docs/run.md"] == []
    goals = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z]+)", text)) | set(re.findall(r"^    make ([a-z]+)", text, re.M)) <= goals
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for group in re.findall(r"\.\[([a-z,]+)\]", text) for name in group.split(",")} <= extras.keys()
    assert max(map(len, text.splitlines())) < 200


def test_pictures_of_the_documents_are_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", (ROOT / "README.md").read_text())
    assert shown
    for picture in shown:
        assert (ROOT / picture).stat().st_size < 200_000
        with Image.open(ROOT / picture) as image:
            assert image.width >= 800


# Each model system beside its source ---------------------------------------------------------------------------------


def test_no_system_lacks_an_answer_and_every_file_it_names_is_there() -> None:
    text = (DOCS / "systems.md").read_text()
    systems = text.split("\n## ")[1:]
    assert len(systems) == 5
    asked = ["The source says", "Built full-size", "Ships", "Trained", "Our figure", "What did not help"]
    for system in systems:
        rows = [line.strip("| ").split(" | ", 1) for line in system.splitlines() if line.startswith("| ")]
        answers = dict(row for row in rows if len(row) == 2 and row[0] in asked)
        assert list(answers) == asked, system.splitlines()[0]
        assert all(len(answer.strip()) > 10 for answer in answers.values())
    for name in re.findall(r"`((?:docs|models)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    for weights in re.findall(r"`([a-z0-9_]+_w\d+)`", text):
        assert list((ROOT / "models").glob(f"*/{weights}.safetensors")), weights


PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "models").rglob("CARD.md")]


@pytest.mark.parametrize("name", sorted(str(path.relative_to(ROOT)) for path in PAGES))
def test_every_table_has_its_head(name: str) -> None:
    """A blank line in a table ends it: what follows is shown as text with bars."""
    lines = ["", *(ROOT / name).read_text(encoding="utf-8").splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"[|:\- ]+", after), f"{name}: a table begins without its head: {line[:60]}"
