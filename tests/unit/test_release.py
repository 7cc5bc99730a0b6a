"""What is handed out: one version from one place, typed packages, and the terms behind every weight file."""

from __future__ import annotations

import ast
import contextlib
import email
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from config import load
from dicom_sr.uids import IMPLEMENTATION_VERSION_NAME
from models.phantoms import breast_ultrasound
from pacs_node import __version__
from pacs_node.cli import app
from pacs_node.conformance import statement
from pacs_node.facts import NodeFacts
from pacs_node.node import Node
from tests.harness import free_port, wait_for

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


def test_the_cards_of_the_models_travel(wheel: zipfile.ZipFile) -> None:
    """The page of each model shows it."""
    cards = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("models/*/CARD.md")}
    assert cards
    assert cards <= set(wheel.namelist())


def test_the_languages_of_the_pages_travel_compiled(wheel: zipfile.ZipFile) -> None:
    compiled = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pacs_node/web/locale").rglob("*.mo")}
    assert compiled
    assert compiled <= set(wheel.namelist())
    needed = [each for each in metadata(wheel).get_all("Requires-Dist") or () if "extra ==" not in each]
    assert needed
    assert not [each for each in needed if each.lower().startswith("babel")]


def test_the_licence_travels_with_the_code(wheel: zipfile.ZipFile) -> None:
    [licence] = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    [notice] = [name for name in wheel.namelist() if name.endswith("/NOTICE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert wheel.read(notice) == (ROOT / "NOTICE").read_bytes()
    assert metadata(wheel)["License-Expression"] == "MIT"
    assert wheel.read(licence).startswith(b"MIT License\n")


def test_what_trains_stays_at_the_desk(wheel: zipfile.ZipFile) -> None:
    assert [name for name in wheel.namelist() if "training" in name] == []
    assert "rm -r models/training" in (ROOT / "deploy/Dockerfile").read_text()


REFUSE = """\
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())
"""
SETTINGS = """\
[node]
dicom_port = {dicom}
web_port = {web}
data_dir = "data"
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 0.5
quiet_unreleased_s = 0.5
[[peer]]
name = "scanner"
ae_title = "SCANNER"
may_send = true
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
options = {{ threads = 1 }}
"""


def test_the_installed_wheel_serves_without_what_trains(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """In an environment of its own: the dependencies, the wheel, its weights, and no package of the extras."""
    python = environment(wheel, tmp_path / "env")
    breast_ultrasound(tmp_path / "us", seed=7)
    dicom, web = free_port(), free_port()
    (tmp_path / "node.toml").write_text(SETTINGS.format(dicom=dicom, web=web))
    command = [python, "-m", "pacs_node.cli"]
    with (tmp_path / "log.txt").open("w") as log:
        node = subprocess.Popen([*command, "serve", "--config", "node.toml"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for(lambda: health(web) == "ok", 120, "the node to start")
        send = [*command, "send", "us", "--to", f"PACSNODE@127.0.0.1:{dicom}", "--aet", "SCANNER"]
        subprocess.run(send, cwd=tmp_path, check=True, capture_output=True, timeout=120)
        wait_for(lambda: len(list((tmp_path / "results").rglob("S*.dcm"))) == 2, 240, "a Segmentation and a report")
    finally:
        node.terminate()
        node.wait(60)
    assert "training" not in (tmp_path / "log.txt").read_text()


def environment(wheel: zipfile.ZipFile, folder: Path) -> Path:
    """A virtual environment with the wheel; the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    wheel.extractall(packages)
    for path in WEIGHTS:
        shutil.copy(ROOT / path, packages / path)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files do not count
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.split(r"[<>=]", name)[0].replace("-", "_") for name in (*extras["train"], *extras["dev"])}
    names = named - {"openvino"}  # the node's own, where it is there
    (packages / "sitecustomize.py").write_text(REFUSE.format(names=names))
    code = "import models, sys; print(models.__file__); sys.exit('train' in dir(models))"
    found = subprocess.run([folder / "bin/python", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(folder))
    return folder / "bin/python"


def health(port: int) -> str | None:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["status"]
    return None


# The terms behind the weights ---------------------------------------------------------------------------------------

WEIGHTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "models").rglob("*.safetensors"))
NOTICE = (ROOT / "NOTICE").read_text()
NAMED = re.findall(r"^(models/\S+\.safetensors)\n  Data: +(.+)\n  Start from: (.+)$", NOTICE, re.M)


def learnt_from(about: dict[str, object], known: dict[str, str]) -> str:
    """What the JSON beside a weight file says of the weights that its training began with."""
    config = about["config"]
    assert isinstance(config, dict)
    if config.get("start_sha256") in known:
        return f"{known[config['start_sha256']]}, ours"
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
    assert all(re.match(r"CC BY [34]\.0|Apache License 2\.0|MIT-like", words) for words in terms.values())


def test_the_cards_know_the_data_of_the_notice() -> None:
    for path, names, _ in NAMED:
        card = (ROOT / path).with_name("CARD.md").read_text()
        for name in names.split("; "):
            assert name.endswith("of our own") or name in card, (path, name)
