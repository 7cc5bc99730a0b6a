"""Arrival proven with a real Orthanc: storage commitment in both directions, C-FIND, STOW-RS and QIDO-RS."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pydicom
import pytest

from pacs_node.commitment import judge_request
from pacs_node.deliver.arrival import DimseArrivalCheck
from pacs_node.deliver.destination import Undeliverable
from pacs_node.deliver.dimse import Peer
from pacs_node.deliver.stow import QidoArrivalCheck, StowDestination, WebPeer
from pacs_node.errors import NotOffered
from pacs_node.receive.commitment import CommitmentService
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import Spool
from pacs_node.records import CommitmentReport, Package, Sent
from tests.factories import ct_series
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
await_report_s = 30
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
    node = NodeProcess(
        tmp_path_factory.mktemp("node"), TOML.format(dicom_port=pacs.dicom_port, http_port=pacs.http_port)
    )
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


def test_orthanc_answers_for_what_it_has_and_no_more(pacs: Orthanc, tmp_path: Path) -> None:
    """It reports on a new association, to our listener; its C-FIND and QIDO-RS say the same."""
    told: queue.Queue[tuple[CommitmentReport, str]] = queue.Queue()

    def tell(report: CommitmentReport, calling_ae: str, address: str) -> bool:
        told.put((report, calling_ae))
        return True

    service = CommitmentService(
        on_request=lambda request: None,
        judge=lambda request: judge_request(request.transaction_uid, request.wanted, {}),
        on_reported=lambda request: None,
        on_report=tell,
        audit=lambda event, facts: None,
    )
    listener = Listener(
        ListenerSettings(
            "WITNESS",
            "127.0.0.1",
            0,
            frozenset(),
            frozenset({"ORTHANC"}),
            max_associations=20,
            max_pdu=1 << 20,
            network_timeout_s=60,
            acse_timeout_s=30,
            dimse_timeout_s=30,
        ),
        Spool(tmp_path / "spool", 0),
        on_stored=lambda instance: None,
        on_association_end=lambda end: None,
        audit=lambda event, facts: None,
        now=lambda: datetime.now(UTC),
        commitment=service,
    )
    listener.start()
    httpx.put(f"{pacs.url}/modalities/witness", json=["WITNESS", "127.0.0.1", listener.port]).raise_for_status()
    images = ct_series(tmp_path / "ct", shape=(2, 32, 32))
    storescu(pacs, Path(images[0].filename), calling="WITNESS")
    here, lost = (
        Sent(str(image.SOPClassUID), str(image.SOPInstanceUID), image.StudyInstanceUID, image.SeriesInstanceUID)
        for image in images
    )
    elsewhere = replace(lost, series_uid="1.2.3.4")
    dimse = DimseArrivalCheck(Peer("pacs", "ORTHANC", "127.0.0.1", pacs.dicom_port, "WITNESS", timeout_s=5))
    assert dimse.ask_commitment("1.2.3.5", [here, lost]) is None
    report, calling_ae = told.get(timeout=30)
    assert calling_ae == "ORTHANC"
    assert report.transaction_uid == "1.2.3.5"
    assert report.committed == ((here.sop_class_uid, here.sop_instance_uid),)
    assert report.failed == ((lost.sop_class_uid, lost.sop_instance_uid, 0x0112),)
    web = WebPeer("web", f"http://127.0.0.1:{pacs.http_port}/dicom-web", user="node", password="hush-hush")
    for arrival_check in (dimse, QidoArrivalCheck(web)):
        assert arrival_check.find([here, lost, elsewhere]) == {here.sop_instance_uid}
    with pytest.raises(NotOffered, match="HTTP 401"):
        QidoArrivalCheck(replace(web, user=None)).find([here])
    with pytest.raises(NotOffered, match="HTTP 404"):
        QidoArrivalCheck(replace(web, url=web.url + "/nowhere")).find([here])
    listener.stop(0)


def test_orthanc_takes_by_stow_what_is_whole(pacs: Orthanc, tmp_path: Path) -> None:
    """One whole object and a damaged one in one request: each has its own receipt."""
    whole = Path(ct_series(tmp_path / "ct", shape=(1, 32, 32), name="stow")[0].filename)
    damaged = tmp_path / "damaged.dcm"
    broken = pydicom.dcmread(ct_series(tmp_path / "other", shape=(1, 32, 32), name="damaged")[0].filename)
    del broken.PatientID, broken.StudyInstanceUID, broken.SeriesInstanceUID, broken.SOPInstanceUID
    broken.save_as(damaged)
    web = StowDestination(WebPeer("web", f"http://127.0.0.1:{pacs.http_port}/dicom-web", 30, None, "node", "hush-hush"))
    assert web.deliver(Package("j", (whole,)), lambda: datetime.now(UTC))[0].text == "HTTP 200 stored"
    assert web.deliver(Package("j", (whole,)), lambda: datetime.now(UTC))[0].stored  # again does no harm
    with pytest.raises(Undeliverable) as caught:
        web.deliver(Package("j", (whole, damaged)), lambda: datetime.now(UTC))
    assert [receipt.stored for receipt in caught.value.receipts] == [True, False]
    assert [str(d.SOPInstanceUID) for d in pacs.instances("CT")].count(str(pydicom.dcmread(whole).SOPInstanceUID)) == 1


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
    assert (failure["SOPInstanceUID"], failure["FailureReason"]) == (lost, 0x0112)
    facts = wait_for(lambda: node.finished(study.series_uid), 60, "the report job's end")
    [job] = [job for job in facts["jobs"] if job["kind"] == "report"]
    assert (job["state"], job["reason"]) == ("done", "reported: 1 instances kept, 1 not")
