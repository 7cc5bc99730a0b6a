"""What the node is made of: every package has a licence that was looked at, and stands in the bill of materials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from tests.licences import add_vendored, closure, licences, main

ROOT = Path(__file__).resolve().parents[2]
# terms that also ask something of what they are part of, of packages that the node cannot do without: looked at on
# 2026-11-30; a node that is given away with them is given away under these terms, too
COPYLEFT = {
    "certifi": "MPL-2.0",
    "orthanc-rest-client": "GPL-3.0-or-later",
    "psycopg": "LGPL-3.0-only",
    "psycopg-binary": "LGPL-3.0-only",
    "pylibjpeg-libjpeg": "GPL-3.0",
    "tqdm": "MPL-2.0 and MIT",
}


def test_every_package_says_its_licence() -> None:
    assert [each.package for each in licences() if not each.licence] == []


def test_no_package_has_come_under_terms_that_nobody_looked_at() -> None:
    copyleft = [each for each in licences() if each.copyleft and each.needed]
    found = {each.package.lower().replace("_", "-"): each.licence for each in copyleft}
    assert found.keys() <= COPYLEFT.keys(), found


def test_what_is_needed_is_pinned() -> None:
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    needed = closure("pacs-node", frozenset({"dev", "openvino", "s3", "train"})) - {"pacs-node", "setuptools", "pip"}
    left = {name for name in needed if not name.startswith(("nvidia", "cuda", "triton"))}  # of torch with CUDA
    assert left - pinned == set()


def test_the_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path / "build" / "licences.csv")
    lines = (tmp_path / "build" / "licences.csv").read_text().splitlines()
    assert lines[0] == "package,version,licence,needed by a node,copyleft,licence files"
    assert any(line.startswith("pydicom,3.") for line in lines)
    assert f"{len(lines) - 1} packages" in capsys.readouterr().out


def test_the_bill_of_materials_names_every_package(tmp_path: Path) -> None:
    out = tmp_path / "sbom.cdx.json"
    program = Path(sys.executable).parent / "cyclonedx-py"
    command = [program, "environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "-o", out]
    done = subprocess.run([*command, sys.executable], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    add_vendored(out)
    validated = JsonStrictValidator(SchemaVersion.V1_6).validate_str(out.read_text())
    assert validated is None, validated
    bill = json.loads(out.read_text())
    [niivue] = [each for each in bill["components"] if each["name"] == "niivue"]
    assert f"NiiVue {niivue['version']}" in (ROOT / "NOTICE").read_text()
    assert f"@niivue/niivue@{niivue['version']}" in niivue["bom-ref"].replace("%40", "@")
    [of_node] = [each for each in bill["dependencies"] if each["ref"] == bill["metadata"]["component"]["bom-ref"]]
    assert niivue["bom-ref"] in of_node["dependsOn"]
    assert bill["bomFormat"] == "CycloneDX"
    named = {canonicalize_name(each["name"]) for each in bill["components"]}
    assert closure("pacs-node") - {"pacs-node"} <= named
    assert bill["metadata"]["component"]["name"] == "pacs-node"
