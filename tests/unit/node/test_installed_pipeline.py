"""A stranger's package, as pip installs it, serves series in the node: of CT, and of MR, which ours do not read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import MRImageStorage

from models.phantoms import chest_ct
from pacs_node.new_pipeline import write
from tests.harness import ROOT, NodeProcess, Receiver, storescu, wait_for

TOML = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 1.0
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
[[route]]
name = "bones"
match = {{ Modality = "{modality}" }}
pipeline = "bone-finder"
options = {{ threshold_hu = 300 }}
send_to = ["pacs"]
"""
BROKEN = """[build-system]
requires = ["setuptools>=69"]
build-backend = "setuptools.build_meta"
[project]
name = "broken"
version = "1.0"
[project.entry-points."pacs_node.pipelines"]
broken = "broken:PIPELINE"
[tool.setuptools]
py-modules = ["broken"]
"""
FOR_MR = {  # what somebody changes to read MR
    "card.py": {'frozenset({"CT"})': 'frozenset({"MR"})', ", hounsfield=True": ""},
    "pipeline.py": {"read_ct": "read_volume", "volume.hu": "volume.values"},
    "options.py": {},
}


def install(package: Path, into: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--upgrade",
         "--target", str(into), str(package)],
        check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def packages(folder: Path, modality: str) -> Path:
    """Where the pipeline is installed, and another one that cannot be loaded."""
    package = write("bone-finder", folder)
    for name, changes in FOR_MR.items() if modality == "MR" else ():
        path = package / "bone_finder" / name
        text = path.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
    broken = folder / "broken"
    broken.mkdir()
    (broken / "pyproject.toml").write_text(BROKEN)
    (broken / "broken.py").write_text("import a_module_that_is_not_there\n")
    for each in (package, broken):
        install(each, folder / "site")
    return folder / "site"


def series(folder: Path, modality: str) -> list[Path]:
    """A small chest; as MR with values from 0 and nothing that rescales them."""
    truth = chest_ct(folder, slices=24, size=128, spacing_mm=(5.0, 2.8, 2.8), nodules=0)
    for path in truth.files if modality == "MR" else ():
        image = pydicom.dcmread(path)
        image.Modality, image.SOPClassUID = "MR", MRImageStorage
        image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
        del image.RescaleSlope, image.RescaleIntercept, image.RescaleType
        stored = np.frombuffer(image.PixelData, "<i2")
        image.PixelData = np.clip(stored, 0, None).astype("<i2").tobytes()
        image.save_as(path)
    return list(truth.files)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_installed_package_serves_a_series_from_end_to_end(tmp_path: Path, modality: str) -> None:
    site, files = packages(tmp_path, modality), series(tmp_path / "images", modality)
    uid = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
    with (
        Receiver() as pacs,
        NodeProcess(tmp_path / "node", TOML.format(port=pacs.port, modality=modality), installed=site) as node,
    ):
        node.start()
        storescu(node, *files)
        facts = wait_for(lambda: node.finished(uid), 120, f"results:\n{node.log()}")
        wait_for(lambda: pacs.of("SR"), 30, f"a report:\n{facts}\n{node.log()}")
        [report], [segmentation] = pacs.of("SR"), pacs.of("SEG")
    assert facts["verdict"]["fit"], facts["verdict"]
    assert facts["verdict"]["reason"].startswith("24 slices, 5 mm apart")
    assert report.ManufacturerModelName == segmentation.ManufacturerModelName == "bone-finder"
    assert len(segmentation.SegmentSequence) >= 1
    [named] = segmentation.ReferencedSeriesSequence
    referenced = {str(each.ReferencedSOPInstanceUID) for each in named.ReferencedInstanceSequence}
    assert referenced <= {str(pydicom.dcmread(path).SOPInstanceUID) for path in files}
    planes = [g.PlanePositionSequence[0].ImagePositionPatient for g in segmentation.PerFrameFunctionalGroupsSequence]
    places = {tuple(map(float, pydicom.dcmread(path).ImagePositionPatient)) for path in files}
    assert {tuple(map(float, place)) for place in planes} <= places


def test_mr_is_not_accepted_without_a_pipeline_that_reads_it(tmp_path: Path) -> None:
    files = series(tmp_path / "images", "MR")
    toml = TOML.format(port=1, modality="CT").replace("bone-finder", "lung-nodule").replace("threshold_hu = 300", "")
    with NodeProcess(tmp_path / "node", toml) as node:
        node.start()
        with pytest.raises(AssertionError, match=r"No Acceptable Presentation Contexts|No presentation context"):
            storescu(node, files[0])


def test_check_names_the_package_that_is_broken(tmp_path: Path) -> None:
    site = packages(tmp_path, "CT")
    (tmp_path / "node.toml").write_text(TOML.format(port=1, modality="CT").replace('"bone-finder"', '"broken"'))
    done = subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", "check", "--config", str(tmp_path / "node.toml")],
        check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])},
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "[[route]] 'bones': pipeline 'broken' of package broken 1.0 cannot be loaded: ModuleNotFoundError"
        in done.stdout
    )
