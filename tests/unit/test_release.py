"""What is handed out: one version from one place, typed packages, and the terms behind every weight file."""

from __future__ import annotations

import ast
import email
import json
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from typer.testing import CliRunner

from config import load
from dicom_sr.uids import IMPLEMENTATION_VERSION_NAME
from pacs_node import __version__
from pacs_node.cli import app
from pacs_node.conformance import statement
from pacs_node.facts import NodeFacts
from pacs_node.node import Node

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pacs_node", "models", "dicom_sr", "config")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built away from it, without the weights: they are large, and nothing here reads them."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    subprocess.run([sys.executable, "-c", BUILD, "dist"], cwd=folder, check=True, capture_output=True, timeout=240)
    [built] = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


# The version --------------------------------------------------------------------------------------------------------


def test_the_wheel_has_the_version_of_the_package(wheel: zipfile.ZipFile) -> None:
    assert metadata(wheel)["Version"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_version_is_written_once() -> None:
    written = [
        path.relative_to(ROOT).as_posix()
        for package in ("pacs_node", "dicom_sr", "config")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == __version__
    ]
    assert written == ["pacs_node/__init__.py"]
    assert f'"{__version__}"' not in (ROOT / "pyproject.toml").read_text()


def test_whoever_asks_hears_that_version(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["version"]).output.strip() == __version__
    assert f"| version | {__version__} |" in statement()
    assert re.fullmatch(r"[A-Z_]+", IMPLEMENTATION_VERSION_NAME), "with a version it would have to be this one"
    (tmp_path / "node.toml").write_text("")
    node = Node(load(tmp_path / "node.toml"))
    node.ledger.migrate()
    assert NodeFacts(node).health()["version"] == __version__
    node.stop()


def test_the_changelog_knows_the_version_and_what_comes_next() -> None:
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert sections[0] == "Unreleased"
    assert __version__ in sections
    assert len(sections) == len(set(sections))


# What the wheel holds -----------------------------------------------------------------------------------------------


def test_every_package_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_licence_travels_with_the_code(wheel: zipfile.ZipFile) -> None:
    [licence] = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    [notice] = [name for name in wheel.namelist() if name.endswith("/NOTICE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert wheel.read(notice) == (ROOT / "NOTICE").read_bytes()
    assert metadata(wheel)["License-Expression"] == "MIT"
    assert wheel.read(licence).startswith(b"MIT License\n")


# The terms behind the weights ---------------------------------------------------------------------------------------

WEIGHTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "models").rglob("*.safetensors"))
NOTICE = (ROOT / "NOTICE").read_text()
NAMED = re.findall(r"^(models/\S+\.safetensors)\n  Data: +(.+)\n  Start from: (.+)$", NOTICE, re.M)


def learnt_from(about: dict[str, object], known: dict[str, str]) -> str:
    """What the JSON beside a weight file says of the weights that its training began with."""
    config = about["config"]
    assert isinstance(config, dict)
    if config.get("encoder") == "lite0" and config.get("pretrained"):
        return "EfficientNet-Lite0, learnt on ImageNet"
    first = [known[digest] for digest in about.get("init") or {} if digest in known]  # type: ignore[attr-defined]
    return f"{first[0]}, ours" if first else "nothing of others"


def test_every_weight_file_has_its_data_and_its_start_in_the_notice() -> None:
    assert WEIGHTS
    assert sorted(path for path, _, _ in NAMED) == WEIGHTS
    beside = {path: json.loads((ROOT / path).with_suffix(".json").read_text()) for path in WEIGHTS}
    known = {str(about["sha256"]): path for path, about in beside.items()}
    assert {path: start for path, _, start in NAMED} == {
        path: learnt_from(about, known) for path, about in beside.items()
    }


def test_all_data_and_weights_of_others_have_their_terms() -> None:
    terms = dict(re.findall(r"^(\S.*)\n  Terms: +(.+)$", NOTICE, re.M))
    data = {name for _, names, _ in NAMED for name in names.split("; ") if not name.endswith("of our own")}
    others = {start.partition(",")[0] for _, _, start in NAMED if not start.endswith((", ours", "nothing of others"))}
    assert terms.keys() == data | others
    assert all(re.match(r"CC BY [34]\.0|Apache License 2\.0", words) for words in terms.values())


def test_the_cards_know_the_data_of_the_notice() -> None:
    for path, names, _ in NAMED:
        card = (ROOT / path).with_name("CARD.md").read_text()
        for name in names.split("; "):
            assert name.endswith("of our own") or name in card, (path, name)
