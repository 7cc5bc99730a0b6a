"""The whole way round with a real PACS: Orthanc forwards by its own rules, the node answers, Orthanc has SEG and SR.

The script of the PACS forwards everything, the node's own results too: a loop if the node had no guard.
"""

from __future__ import annotations

import subprocess
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset

from models.phantoms import breast_ultrasound, chest_ct, ultrasound_dicom
from tests.harness import NodeProcess, Orthanc, need, wait_for

FORWARD_EVERYTHING = """
function OnStoredInstance(instanceId, tags, metadata)
  SendToModality(instanceId, 'ainode')
end
"""

TOML = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 3.0
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
may_send = true
[[route]]
name = "chest CT"
match = {{ Modality = "CT" }}
pipeline = "lung-nodule"
send_to = ["pacs"]
[[route]]
name = "breast ultrasound"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["pacs"]
"""


class Hospital:
    """One PACS and one node that know each other."""

    def __init__(self, folder: Path) -> None:
        self.pacs = Orthanc(folder / "orthanc", lua=FORWARD_EVERYTHING)
        self.node = NodeProcess(folder / "node", TOML.format(port=self.pacs.dicom_port))

    def send(self, folder: Path) -> None:
        """A modality stores to the PACS; what happens then is the PACS's doing."""
        done = subprocess.run(
            [need("storescu"), "-R", "+sd", "+r", "-aec", "ORTHANC", "127.0.0.1", str(self.pacs.dicom_port),
             str(folder)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def answer(self, images: Path, seconds: float) -> tuple[dict, list[Dataset], Dataset]:
        """What came back to the PACS for the series in `images`: the node's facts, the SEGs, the SR."""
        header = pydicom.dcmread(next(images.rglob("*.dcm")), stop_before_pixels=True)
        self.send(images)
        facts = wait_for(lambda: self.node.finished(header.SeriesInstanceUID), seconds, f"results\n{self.node.log()}")
        assert [job["state"] for job in facts["jobs"]] == ["done", "done"], facts
        study = header.StudyInstanceUID
        segs = [d for d in self.pacs.instances("SEG") if d.StudyInstanceUID == study]
        [sr] = [d for d in self.pacs.instances("SR") if d.StudyInstanceUID == study]
        for result in (*segs, sr):
            for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
                assert result.get(keyword) == header.get(keyword), keyword
        sent = {r["sop_instance_uid"] for job in facts["jobs"] for r in job["receipts"] if r["stored"]}
        assert sent == {d.SOPInstanceUID for d in (*segs, sr)}
        return facts, segs, sr


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path_factory.mktemp("hospital"))
    with hospital.pacs, hospital.node:
        hospital.node.start()
        hospital.pacs.register("ainode", hospital.node)
        yield hospital


def test_a_phantom_ct_goes_round(hospital: Hospital, tmp_path: Path) -> None:
    chest_ct(tmp_path / "ct", seed=11)
    facts, segs, _ = hospital.answer(tmp_path / "ct", 240)
    assert len(segs) == 1
    assert segs[0].SegmentSequence
    assert facts["rules"][0]["why_not"] is None
    assert facts["rules"][1]["why_not"]
    assert facts["closed_because"]


def test_a_phantom_ultrasound_goes_round(hospital: Hospital, tmp_path: Path) -> None:
    breast_ultrasound(tmp_path / "us", seed=3, patient_id="PHANTOM-US-3")
    _, segs, sr = hospital.answer(tmp_path / "us", 120)
    assert len(segs) == 1
    assert sr.ConceptNameCodeSequence[0].CodeValue == "126000"


def test_the_node_ignores_its_own_results(hospital: Hospital, tmp_path: Path) -> None:
    """Orthanc has forwarded every SEG and SR back; they are received, and start nothing."""
    breast_ultrasound(tmp_path / "us", seed=4, patient_id="PHANTOM-US-4")
    _, segs, sr = hospital.answer(tmp_path / "us", 120)
    for result in (*segs, sr):
        facts = wait_for(lambda r=result: hospital.node.finished(r.SeriesInstanceUID), 60, "the echo of our own result")
        assert facts["jobs"] == []
        assert all(rule["why_not"] for rule in facts["rules"])
    count = len(hospital.pacs.instances("SR"))
    time.sleep(3)
    assert len(hospital.pacs.instances("SR")) == count


def test_a_real_ct_goes_round(hospital: Hospital, tmp_path: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "ct_CMB-CRC-MSB-01068.zip") as archive:
        archive.extractall(tmp_path / "ct")
    facts, segs, sr = hospital.answer(tmp_path / "ct", 400)
    assert facts["instances"] == 100
    assert facts["verdict"]["fit"]
    sources = {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in (tmp_path / "ct").rglob("*.dcm")}
    for seg in segs:
        referenced = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
        assert referenced <= sources
    assert sr.CurrentRequestedProcedureEvidenceSequence


def test_real_ultrasounds_go_round(hospital: Hospital, tmp_path: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "busi.zip") as archive:
        for number, name in enumerate(("benign/1.png", "malignant/1.png")):
            pixels = np.asarray(Image.open(BytesIO(archive.read(name))).convert("L"))
            folder = tmp_path / f"us{number}"
            folder.mkdir()
            ultrasound_dicom(pixels, spacing_mm=(0.2, 0.2), patient_id=f"BUSI-{number}").save_as(
                folder / "image.dcm", enforce_file_format=True
            )
    for number in range(2):
        hospital.answer(tmp_path / f"us{number}", 120)
