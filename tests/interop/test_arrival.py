"""Arrival proven with a real Orthanc: storage commitment in both directions, C-FIND, STOW-RS and QIDO-RS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest

from tests.harness import NodeProcess, Orthanc, need, storescu, wait_for
from tests.ultrasounds import ultrasound_study

DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

TOML = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 0.5
quiet_unreleased_s = 1.5
[jobs]
send_backoff_s = 0.5
send_backoff_max_s = 2
await_report_s = {await_report_s}
confirm_attempts = {confirm_attempts}
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {dicom_port}
may_send = true
[[peer]]
name = "queried"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {dicom_port}
confirm = "query"
[[peer]]
name = "web"
dicomweb_url = "http://127.0.0.1:{http_port}/dicom-web"
dicomweb_user = "node"
dicomweb_password = "hush-hush"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["pacs", "queried", "web"]
"""


def settings(pacs: Orthanc, await_report_s: float = 30, confirm_attempts: int = 12) -> str:
    return TOML.format(
        dicom_port=pacs.dicom_port,
        http_port=pacs.http_port,
        await_report_s=await_report_s,
        confirm_attempts=confirm_attempts,
    )


class LockedOrthanc(Orthanc):
    """One whose web server wants the user and the password."""

    def __init__(self, folder: Path, lua: str | None = None) -> None:
        need("Orthanc")
        assert DICOMWEB.exists(), "the Debian package orthanc-dicomweb is not installed"
        users = {"AuthenticationEnabled": True, "RegisteredUsers": {"node": "hush-hush"}}
        super().__init__(folder, lua=lua, settings={**users, "Plugins": [str(DICOMWEB)]})
        self.url = f"http://node:hush-hush@127.0.0.1:{self.http_port}"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with LockedOrthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path_factory.mktemp("node"), settings(pacs))
    with node.start():
        pacs.register("ainode", node)
        yield node
        assert "hush-hush" not in node.log()


def confirmations(facts: dict) -> dict[str, dict]:
    return {job["destination"]: job for job in facts["jobs"] if job["kind"] == "confirm"}


def test_results_arrive_and_each_says_how(node: NodeProcess, pacs: Orthanc, tmp_path: Path) -> None:
    study = ultrasound_study(tmp_path, seed=41)
    storescu(node, study.path)
    facts = wait_for(lambda: node.finished(study.series_uid), 90, f"arrival\n{node.log()}")
    made = {result["sop_instance_uid"] for job in facts["jobs"] for result in job["results"]}
    held = {d.SOPInstanceUID for modality in ("SEG", "SR") for d in pacs.instances(modality)}
    assert made <= held
    ways = {"pacs": "storage commitment", "queried": "C-FIND", "web": "QIDO-RS"}
    jobs = confirmations(facts)
    assert {name: job["state"] for name, job in jobs.items()} == dict.fromkeys(ways, "done"), facts
    for name, how in ways.items():
        assert {a["sop_instance_uid"] for a in jobs[name]["arrivals"]} == made
        assert {(a["arrived"], a["how"]) for a in jobs[name]["arrivals"]} == {(True, how)}
    assert jobs["pacs"]["reason"] == "arrived: storage commitment"
    assert jobs["queried"]["reason"] == "arrived: found by C-FIND"
    page = httpx.get(f"http://127.0.0.1:{node.web_port}/series/{study.series_uid}").text
    assert "Did it arrive at web?" in page
    assert "found by QIDO-RS" in page
    metrics = httpx.get(f"http://127.0.0.1:{node.web_port}/metrics").text
    line = 'pacs_node_arrivals_total{arrived="yes",destination="pacs",how="storage commitment"}'
    assert f"{line} {float(len(made))}" in metrics
    [send] = [job for job in facts["jobs"] if (job["kind"], job["destination"]) == ("send", "web")]
    assert {receipt["text"] for receipt in send["receipts"]} == {"HTTP 200 stored"}


def test_what_the_pacs_lost_is_not_there(node: NodeProcess, tmp_path: Path) -> None:
    """A PACS that forgets each SR as soon as it has it: Orthanc answers both questions truly."""
    forget = """
    function OnStoredInstance(instanceId, tags, metadata)
      if tags['Modality'] == 'SR' then Delete(instanceId) end
    end
    """
    pacs = LockedOrthanc(tmp_path / "orthanc", lua=forget)
    node = NodeProcess(tmp_path / "node", settings(pacs, confirm_attempts=2))
    study = ultrasound_study(tmp_path / "images", seed=42)
    with pacs, node.start():
        pacs.register("ainode", node)
        storescu(node, study.path)
        facts = wait_for(lambda: node.finished(study.series_uid), 90, f"a verdict\n{node.log()}")
    jobs = confirmations(facts)
    assert {job["state"] for job in facts["jobs"] if job["kind"] != "confirm"} == {"done"}
    assert {name: job["state"] for name, job in jobs.items()} == dict.fromkeys(("pacs", "queried", "web"), "failed")
    [infer] = [job for job in facts["jobs"] if job["kind"] == "infer"]
    for job in jobs.values():
        arrived = {a["sop_instance_uid"]: a["arrived"] for a in job["arrivals"]}
        for result in infer["results"]:
            is_sr = result["sop_class_uid"].startswith("1.2.840.10008.5.1.4.1.1.88")
            assert arrived[result["sop_instance_uid"]] is not is_sr
    assert "storage commitment: 0x0112 No such object instance" in jobs["pacs"]["reason"]


def test_a_pacs_that_never_reports_is_queried_in_the_end(pacs: Orthanc, tmp_path: Path) -> None:
    """Orthanc accepts the request, but does not know where the node is: its report never comes."""
    node = NodeProcess(tmp_path / "node", settings(pacs, await_report_s=1), aet="NOWHERE")
    study = ultrasound_study(tmp_path / "images", seed=43)
    with node.start():
        httpx.put(f"{pacs.url}/modalities/lost", json={"AET": "NOWHERE", "Host": "127.0.0.1", "Port": 9})
        storescu(node, study.path)
        facts = wait_for(lambda: node.finished(study.series_uid), 90, f"arrival\n{node.log()}")
    job = confirmations(facts)["pacs"]
    assert (job["state"], job["reason"]) == ("done", "arrived: found by C-FIND")
    assert any("was asked for storage commitment and will report" in e["text"] for e in facts["timeline"])


def test_orthanc_asks_the_node_for_storage_commitment(node: NodeProcess, pacs: Orthanc, tmp_path: Path) -> None:
    """Orthanc releases once it has asked, and takes the report on a new association."""
    study = ultrasound_study(tmp_path, seed=44)
    storescu(node, study.path)
    lost = "1.2.826.0.1.3680043.10.511.3.44"
    image = pydicom.dcmread(study.path, stop_before_pixels=True)
    objects = [[image.SOPClassUID, image.SOPInstanceUID], [image.SOPClassUID, lost]]
    asked = httpx.post(f"{pacs.url}/modalities/ainode/storage-commitment", json={"DicomInstances": objects}, timeout=30)
    asked.raise_for_status()

    def report() -> dict | None:
        answer = httpx.get(f"{pacs.url}/storage-commitment/{asked.json()['ID']}").json()
        return answer if answer["Status"] != "Pending" else None

    told = wait_for(report, 30, f"the report\n{node.log()}")
    assert told["Status"] == "Failure"
    assert [each["SOPInstanceUID"] for each in told["Success"]] == [image.SOPInstanceUID]
    [failure] = told["Failures"]
    assert (failure["SOPInstanceUID"], failure["Status"]) == (lost, 0x0112)
    facts = wait_for(lambda: node.finished(study.series_uid), 60, "the report job's end")
    [job] = [job for job in facts["jobs"] if job["kind"] == "report"]
    assert (job["state"], job["reason"]) == ("done", "reported: 1 instances kept, 1 not")
