"""What deploy/ ships is what the code understands. (No container engine runs here: the images are not built.)"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from config import load, problems
from models import pipeline_options

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def test_the_settings_are_good() -> None:
    assert [str(p) for p in problems(DEPLOY / "node.toml", pipeline_options())] == []


def test_node_and_orthanc_know_each_other() -> None:
    settings = load(DEPLOY / "node.toml", pipeline_options())
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text())
    title, _, port = orthanc["DicomModalities"]["pacs-node"]
    assert (title, port) == (settings.node.ae_title, settings.node.dicom_port)
    peer = settings.peer("pacs")
    assert (peer.ae_title, peer.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    assert "'pacs-node'" in (DEPLOY / "route.lua").read_text()


def test_the_settings_of_the_readme_are_good(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    lines = [line.removeprefix("   ") for line in block.group(1).splitlines()]
    (tmp_path / "node.toml").write_text("\n".join(lines))
    assert [str(p) for p in problems(tmp_path / "node.toml", pipeline_options())] == []


def test_every_package_of_the_distribution_is_in_the_image() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = (DEPLOY / "Dockerfile").read_text()
    for package in packages:
        assert f"COPY {package.rstrip('*')} " in copied
