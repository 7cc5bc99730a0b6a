"""The whole way round with a real PACS: Orthanc forwards by its own rules, the node answers, Orthanc has SEG and SR.

The script of the PACS forwards everything, the node's own results too: a loop if the node had no guard.
"""

from __future__ import annotations

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

from dicom_sr import codes, read
from models.phantoms import chest_ct, lymph_node_ct
from models.phantoms.breast import breast_ultrasound, ultrasound_dicom
from tests.harness import NodeProcess, Orthanc, node_toml, storescu, wait_for

FORWARD_EVERYTHING = """
function OnStoredInstance(instanceId, tags, metadata)
  SendToModality(instanceId, 'ainode')
end
"""


class Hospital:
    """One PACS and one node that know each other."""

    def __init__(self, folder: Path) -> None:
        self.pacs = Orthanc(folder / "orthanc", lua=FORWARD_EVERYTHING)
        toml = node_toml(self.pacs.aet, self.pacs.dicom_port, assemble={"quiet_s": 3.0})
        asking = 'pipeline = "lung-nodule"\npriors = "pacs"\n'
        self.node = NodeProcess(folder / "node", toml.replace('pipeline = "lung-nodule"\n', asking))

    def answer(self, images: Path, seconds: float) -> tuple[dict, list[Dataset], Dataset]:
        """What came back to the PACS for the series in `images`: the node's facts, the SEGs, the SR."""
        header = pydicom.dcmread(next(images.rglob("*.dcm")), stop_before_pixels=True)
        storescu(self.pacs, images)  # a modality stores to the PACS; what happens then is the PACS's doing
        facts = wait_for(lambda: self.node.finished(header.SeriesInstanceUID), seconds, f"results\n{self.node.log()}")
        assert [job["state"] for job in facts["jobs"]] == ["done"] * 3, facts
        assert facts["jobs"][-1]["reason"] == "arrived: storage commitment"
        study = header.StudyInstanceUID
        segs = [d for d in self.pacs.instances("SEG") if d.StudyInstanceUID == study]
        [sr] = [d for d in self.pacs.instances("SR") if d.StudyInstanceUID == study]
        for result in (*segs, sr):
            for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
                assert result.get(keyword) == header.get(keyword), keyword
        captures = [d for d in self.pacs.instances("OT") if d.StudyInstanceUID == study]
        assert bool(captures) == (header.Modality == "CT" and bool(segs))
        sent = {r["sop_instance_uid"] for job in facts["jobs"] for r in job["receipts"] if r["stored"]}
        assert sent == {d.SOPInstanceUID for d in (*segs, sr, *captures)}
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
    facts, segs, sr = hospital.answer(tmp_path / "ct", 240)
    why_not = "no comparison: pacs has no report of lung-nodule in an earlier study of the patient"
    assert f"Warning: {why_not}" in read.comments(sr), "the route asks for priors, see test_priors"
    assert len(segs) == 1
    assert segs[0].SegmentSequence
    assert facts["rules"][0]["why_not"] is None
    assert facts["rules"][1]["why_not"]
    assert facts["closed_because"]


TWO = """
[[route]]
name = "nodules"
match = { Modality = "CT" }
pipeline = "lung-nodule"
send_to = ["pacs"]
options = { malignancy = true, views = 1 }

[[route]]
name = "lymph nodes"
match = { Modality = "CT", ContrastBolusAgent = { present = true } }
pipeline = "lymph-node"
send_to = ["pacs"]
options = { experimental = true, attention = true }
"""


def test_two_pipelines_answer_for_one_series(tmp_path: Path) -> None:
    """Nodules and lymph nodes of a contrast-enhanced chest: two reports, and pictures of where the networks looked."""
    pacs = Orthanc(tmp_path / "orthanc", lua=FORWARD_EVERYTHING)
    settings = node_toml(pacs.aet, pacs.dicom_port, assemble={"quiet_s": 3.0})
    node = NodeProcess(tmp_path / "node", settings.partition("[[route]]")[0] + TWO)
    truth = lymph_node_ct(tmp_path / "ct", seed=7)
    with pacs, node.start():
        pacs.register("ainode", node)
        storescu(pacs, tmp_path / "ct")
        uid = pydicom.dcmread(truth.files[0], stop_before_pixels=True).SeriesInstanceUID
        facts = wait_for(lambda: node.finished(uid), 300, f"two results\n{node.log()}")
        assert {job["state"] for job in facts["jobs"]} == {"done"}, facts
        reports = {str(d.SeriesDescription): d for d in pacs.instances("SR")}
        assert len(reports) == 2
        nodes = reports["AI lymph nodes SR"]
        assert any("experimental" in comment for comment in read.comments(nodes))
        marked = [group for group in read.groups(nodes) if group.type == codes.LYMPH_NODE]
        assert marked
        assert all(any(m.name == codes.SHORT_AXIS for m in group.measurements) for group in marked)
        drawn = [d for d in pacs.instances("OT") if "where the network looked" in str(d.get("ImageComments", ""))]
        of_nodes = [d for d in drawn if str(d.ImageComments).startswith("Lymph node")]
        assert len(of_nodes) == len(marked)
        nodules = reports["AI lung nodules SR"]
        for group in read.groups(nodules):
            if group.type == codes.NODULE and group.template == "1411":
                assert any(m.name == codes.PROBABILITY_OF_CANCER for m in group.measurements)


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


def test_the_pacs_is_asked_how_many_images_there_are(tmp_path: Path) -> None:
    """With a quiet time of a minute, the count closes the series long before: it is known to be complete."""
    pacs = Orthanc(tmp_path / "orthanc", lua=FORWARD_EVERYTHING)
    node = NodeProcess(
        tmp_path / "node", node_toml(pacs.aet, pacs.dicom_port, assemble={"quiet_s": 60.0, "ask_peer": True})
    )
    with pacs, node.start():
        pacs.register("ainode", node)
        breast_ultrasound(tmp_path / "us", seed=5, images=3, patient_id="PHANTOM-US-5")
        storescu(pacs, tmp_path / "us")
        uid = pydicom.dcmread(next((tmp_path / "us").rglob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID
        facts = wait_for(lambda: node.finished(uid), 50, f"a series closed by its count\n{node.log()}")
        assert facts["closed_because"] == "all 3 images that pacs announced arrived"


def test_a_real_ct_goes_round(hospital: Hospital, tmp_path: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "ct_CMB-CRC-MSB-01068.zip") as archive:
        archive.extractall(tmp_path / "ct")
    facts, segs, sr = hospital.answer(tmp_path / "ct", 400)
    assert facts["instances"] == 100
    assert facts["verdict"]["fit"]
    sources = {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in (tmp_path / "ct").rglob("*.dcm")}
    [inference] = [job for job in facts["jobs"] if job["kind"] == "infer"]
    marked = sum(len(seg.SegmentSequence) for seg in segs)
    assert inference["reason"] == f"{marked} finding{'' if marked == 1 else 's'}"
    assert len(segs) == (1 if marked else 0)
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
        _, segs, sr = hospital.answer(tmp_path / f"us{number}", 120)
        assert len(segs) == 1, "both images show a lesion"
        source = pydicom.dcmread(tmp_path / f"us{number}" / "image.dcm", stop_before_pixels=True)
        assert (segs[0].Rows, segs[0].Columns) == (source.Rows, source.Columns)
        assert sr.CurrentRequestedProcedureEvidenceSequence
