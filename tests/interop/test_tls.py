"""DICOM over TLS with other makers' programs: DCMTK's as senders and as a PACS, Orthanc as both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from config import load
from models import catalogue
from pacs_node.association import Peer
from pacs_node.deliver.destination import Deferred
from pacs_node.deliver.dimse import DimseDestination, echo
from pacs_node.doctor import examine
from pacs_node.records import Package
from pacs_node.tls import Called, Files
from tests.certificates import Authority, Identity
from tests.factories import ct_series
from tests.harness import NodeProcess, Orthanc, free_port, need, wait_for
from tests.ultrasounds import ultrasound_study

QUICK = {**os.environ, "TCP_NODELAY": "1"}

TOML = """
[receive]
keep_free_gb = 0.1
[assemble]
quiet_s = 0.5
[jobs]
send_backoff_s = 0.5
send_backoff_max_s = 2
await_report_s = 30
[infer]
tune = false
[tls]
dicom_tls_port = {tls_port}
only_tls = true
own_certificate = "{folder}/node.crt"
own_key = "{folder}/node.key"
trusted = "{folder}/hospital-ca.pem"
[[peer]]
name = "sender"
ae_title = "SENDER"
may_send = true
tls = true
tls_name = "scanner.example"
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs_port}
may_send = true
tls = true
tls_fingerprints = ["{pacs}"]
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["pacs"]
"""


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, Authority(folder)
        self.ca = self.authority.certificate
        self.node = self.authority.issue("node", names=["127.0.0.1", "localhost"])
        self.pacs = self.authority.issue("pacs")
        self.scanner = self.authority.issue("scanner", names=["scanner.example"])
        self.other = self.authority.issue("other")
        self.expired = self.authority.issue("expired", names=["scanner.example"], days=(-9, -1))
        self.stranger = Authority(folder, "elsewhere").issue("stranger", names=["scanner.example"])

    def files(self) -> Files:
        return Files(self.node.certificate, self.node.key, self.ca)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Iterator[Orthanc]:
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(site.pacs.certificate),
        "DicomTlsPrivateKey": str(site.pacs.key),
        "DicomTlsTrustedCertificates": str(site.ca),
        "DicomTlsRemoteCertificateRequired": True,
        "DicomWeb": {"Enable": False},
    }
    with Orthanc(tmp_path_factory.mktemp("orthanc"), settings=settings) as orthanc:
        yield orthanc


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, site: Site, orthanc: Orthanc, tls_port: int
) -> Iterator[NodeProcess]:
    toml = TOML.format(folder=site.folder, tls_port=tls_port, pacs_port=orthanc.dicom_port, pacs=site.pacs.fingerprint)
    node = NodeProcess(tmp_path_factory.mktemp("node"), toml)
    with node.start():
        modality = {"AET": node.aet, "Host": "127.0.0.1", "Port": tls_port, "UseDicomTls": True}
        httpx.put(f"{orthanc.url}/modalities/ainode", json=modality).raise_for_status()
        yield node


def dcmtk(
    program: str, port: int, who: Identity | None, trusted: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """storescu or echoscu; who: None: without TLS."""
    tls = [] if who is None else ["+tls", str(who.key), str(who.certificate), "+cf", str(trusted)]
    command = [need(program), *tls, "-aet", "SENDER", "-aec", "PACSNODE", "127.0.0.1", str(port), *words]
    return subprocess.run(command, env=QUICK, capture_output=True, text=True, timeout=60, check=False)


SENDERS = {  # who sends by DCMTK -> whether it is let in
    "scanner": True,
    "other": False,  # trusted, but the title is the scanner's
    "expired": False,
    "stranger": False,
    "": False,
}


@pytest.mark.parametrize("who", SENDERS)
def test_dcmtk_sends_with_the_right_certificate_alone(
    node: NodeProcess, site: Site, tls_port: int, who: str, tmp_path: Path
) -> None:
    image = str(ct_series(tmp_path, shape=(1, 32, 32), name=who)[0].filename)
    identity = getattr(site, who) if who else None
    for program, words in (("echoscu", ()), ("storescu", (image,))):
        done = dcmtk(program, tls_port, identity, site.ca, *words)
        assert (done.returncode == 0) is SENDERS[who], done.stderr + node.log()


def test_dcmtk_does_not_believe_a_node_whose_authority_it_does_not_know(
    node: NodeProcess, site: Site, tls_port: int
) -> None:
    done = dcmtk("echoscu", tls_port, site.scanner, site.folder / "elsewhere-ca.pem")
    assert done.returncode != 0
    assert "certificate" in done.stderr


def test_a_result_goes_to_orthanc_and_is_proven_there(
    node: NodeProcess, orthanc: Orthanc, site: Site, tls_port: int, tmp_path: Path
) -> None:
    """C-STORE and storage commitment to a PACS that takes TLS alone, and its report to a node that does."""
    study = ultrasound_study(tmp_path, seed=41)
    assert dcmtk("storescu", tls_port, site.scanner, site.ca, "-R", "+sd", "+r", str(study.path)).returncode == 0
    facts = wait_for(lambda: node.finished(study.series_uid), 120, f"arrival\n{node.log()}")
    jobs = {job["kind"]: job for job in facts["jobs"]}
    assert jobs["send"]["state"] == "done", facts
    assert jobs["confirm"]["reason"] == "arrived: storage commitment", jobs["confirm"]
    made = {result["sop_instance_uid"] for job in facts["jobs"] for result in job["results"]}
    assert made <= {d.SOPInstanceUID for modality in ("SEG", "SR") for d in orthanc.instances(modality)}


def test_orthanc_sends_asks_and_hears_over_tls(node: NodeProcess, orthanc: Orthanc, tmp_path: Path) -> None:
    """Its images, its storage commitment, and our report on it."""
    images = ct_series(tmp_path, shape=(2, 32, 32), name="from orthanc")
    stored = [
        httpx.post(f"{orthanc.url}/instances", content=Path(image.filename).read_bytes()).json()["ID"]
        for image in images
    ]
    sent = httpx.post(f"{orthanc.url}/modalities/ainode/store", json=stored, timeout=60)
    assert sent.status_code == 200, sent.text + node.log()
    objects = [[str(image.SOPClassUID), str(image.SOPInstanceUID)] for image in images]
    asked = httpx.post(
        f"{orthanc.url}/modalities/ainode/storage-commitment", json={"DicomInstances": objects}, timeout=30
    )
    asked.raise_for_status()

    def report() -> dict[str, Any] | None:
        answer = httpx.get(f"{orthanc.url}/storage-commitment/{asked.json()['ID']}").json()
        return answer if answer["Status"] != "Pending" else None

    assert wait_for(report, 60, f"the report\n{node.log()}")["Status"] == "Success"


def test_the_doctor_finds_nothing_bad_with_orthanc(node: NodeProcess) -> None:
    found = list(examine(load(node.config, catalogue()), lambda: datetime.now(UTC), "pacs"))
    steps = {each.step for each in found}
    assert steps == {"connection", "TLS", "C-ECHO", "results", "C-FIND", "storage commitment", "clock"}
    assert {each.state for each in found if each.step not in ("results", "clock")} == {"good"}, found
    assert not [each for each in found if each.state == "bad"], found


def test_dcmtk_is_a_pacs_with_tls(site: Site, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "pacs"
    folder.mkdir()
    command = [
        *(need("storescp"), "+tls", str(site.pacs.key), str(site.pacs.certificate), "+cf", str(site.ca)),
        *("-od", str(folder), str(port)),
    ]
    process = subprocess.Popen(command, env=QUICK, stderr=subprocess.DEVNULL)
    try:
        peer = Peer("pacs", "PACS", "127.0.0.1", port, "NODE", 10, Called(site.files(), "127.0.0.1"))

        def answers() -> bool:
            try:
                return bool(echo(peer))
            except Deferred:
                return False

        wait_for(answers, 20, "storescp")
        paths = tuple(Path(image.filename) for image in ct_series(tmp_path / "ct", shape=(3, 64, 64)))
        receipts = DimseDestination(peer).deliver(Package("job", paths), lambda: datetime.now(UTC))
        assert all(receipt.stored for receipt in receipts)
        assert len(list(folder.iterdir())) == 3
        without = Peer("pacs", "PACS", "127.0.0.1", port, "NODE", 3)
        with pytest.raises(Deferred, match="cannot be reached"):
            echo(without)
    finally:
        process.terminate()
        process.wait()


def test_the_documents_settings_of_orthanc_are_those_that_were_tried(orthanc: Orthanc) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "tls.md").read_text()
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    tried = orthanc.configuration | {"DicomModalities": shown["DicomModalities"]}
    assert shown.keys() <= tried.keys()
    assert all(type(shown[name]) is type(tried[name]) for name in shown)
    assert shown["DicomModalities"]["ainode"].keys() == {"AET", "Host", "Port", "UseDicomTls"}
