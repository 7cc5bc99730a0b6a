"""`ORTHANC=1 make demo`: what a stranger runs first, with the real PACS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pacs_node.demo import PICTURES
from tests.harness import ROOT, need


@pytest.mark.timeout(1200)  # four views of a whole chest take minutes on a processor without bfloat16
def test_the_demo_finds_most_lesions_and_gets_its_results_from_orthanc(tmp_path: Path) -> None:
    need("Orthanc")
    done = subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", "demo", "--orthanc", "--folder", str(tmp_path / "demo")],
        cwd=ROOT, capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lesions found" in done.stdout
    assert "mm against the phantom" in done.stdout
    assert "mediastinum" in done.stdout
    assert "Lymph" in done.stdout, "a node is found in the phantom's mediastinum"
    for name in PICTURES:
        assert (tmp_path / "demo" / name).stat().st_size > 10_000
    kinds = {path.name.partition("-")[0] for path in (tmp_path / "demo" / "orthanc").glob("*.dcm")}
    assert kinds, "the results were read back from the PACS"
