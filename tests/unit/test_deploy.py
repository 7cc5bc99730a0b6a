"""What deploy/ ships is what the code understands. (No container engine runs here: the images are not built.)"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from config import load, problems
from models import catalogue

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def said(text: str, folder: Path) -> list[str]:
    """What `pacs-node check` says of these settings, on a machine that grants them their data_dir."""
    (folder / "node.toml").write_text(text.replace('"/var/lib/pacs-node"', f'"{folder}"'))
    return [str(problem) for problem in problems(folder / "node.toml", catalogue())]


def test_the_settings_are_good(tmp_path: Path) -> None:
    (warning,) = said((DEPLOY / "node.toml").read_text(), tmp_path)
    assert "web_host" in warning, "0.0.0.0 is the container's; compose.yaml publishes the pages to 127.0.0.1 alone"
    assert 'ports: ["127.0.0.1:8080:8080"]' in (DEPLOY / "compose.yaml").read_text()


def test_node_and_orthanc_know_each_other() -> None:
    settings = load(DEPLOY / "node.toml", catalogue())
    orthanc = json.loads((DEPLOY / "orthanc.json").read_text())
    title, _, port = orthanc["DicomModalities"]["pacs-node"]
    assert (title, port) == (settings.node.ae_title, settings.node.dicom_port)
    peer = settings.peer("pacs")
    assert (peer.ae_title, peer.port) == (orthanc["DicomAet"], orthanc["DicomPort"])
    assert "/modalities/pacs-node/store" in (DEPLOY / "route.lua").read_text()


def test_the_settings_of_the_readme_are_good(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    lines = [line.removeprefix("   ") for line in block.group(1).splitlines()]
    assert said("\n".join(lines), tmp_path) == []


def test_every_package_of_the_distribution_is_in_the_image() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = (DEPLOY / "Dockerfile").read_text()
    for package in packages:
        assert f"COPY {package.rstrip('*')} " in copied
