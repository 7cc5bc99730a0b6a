"""What senders and destinations do wrong: nothing is lost, the node goes on, and says what happened."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import SecondaryCaptureImageStorage

from tests.factories import ct_series
from tests.fault.test_kill import arrived_once, impatient
from tests.harness import NodeProcess, Receiver, need, storescu, wait_for
from tests.ultrasounds import ultrasound_study


@pytest.fixture(scope="module")
def pacs() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, pacs: Receiver) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path_factory.mktemp("node"), impatient(pacs))
    with node.start():
        yield node
        assert node.terminate() == 0  # SIGTERM drains and exits 0, whatever the tests did


def test_a_destination_that_is_down_gets_everything_when_it_is_up(
    node: NodeProcess, pacs: Receiver, tmp_path: Path
) -> None:
    pacs.stop()
    study = ultrasound_study(tmp_path, seed=31)
    storescu(node, study.path)

    def waiting() -> bool:
        facts = node.series(study.series_uid) or {"jobs": []}
        return any(job["kind"] == "send" and job["attempts"] > 2 for job in facts["jobs"])

    wait_for(waiting, 60, f"a third attempt\n{node.log()}")
    pacs.start()
    facts = wait_for(lambda: node.finished(study.series_uid), 60, f"delivery\n{node.log()}")
    assert {job["state"] for job in facts["jobs"]} == {"done"}
    arrived_once(pacs, facts)
    assert any(event["event"] == "retry" for event in facts["timeline"])


def test_the_pages_answer_to_the_machines_own_name_and_to_no_strangers(node: NodeProcess) -> None:
    for name, status in ((socket.gethostname(), 200), ("localhost", 200), ("evil.example", 421)):
        answer = httpx.get(f"http://127.0.0.1:{node.web_port}/health", headers={"host": f"{name}:{node.web_port}"})
        assert answer.status_code == status, name


def test_the_same_image_again_starts_nothing(node: NodeProcess, pacs: Receiver, tmp_path: Path) -> None:
    study = ultrasound_study(tmp_path, seed=32)
    storescu(node, study.path)
    before = wait_for(lambda: node.finished(study.series_uid), 60, f"results\n{node.log()}")
    storescu(node, study.path)
    storescu(node, study.path)
    assert node.series(study.series_uid) == before


def test_a_late_image_makes_a_revision(node: NodeProcess, pacs: Receiver, tmp_path: Path) -> None:
    study = ultrasound_study(tmp_path, seed=33)
    storescu(node, study.path)
    wait_for(lambda: node.finished(study.series_uid), 60, f"results\n{node.log()}")
    late = pydicom.dcmread(study.path)
    late.SOPInstanceUID = late.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    late.InstanceNumber = 2
    late.save_as(tmp_path / "late.dcm", enforce_file_format=True)
    storescu(node, tmp_path / "late.dcm")

    def second() -> dict | None:
        facts = node.finished(study.series_uid)
        return facts if facts and facts["revision"] == 2 else None

    facts = wait_for(second, 60, f"a second revision\n{node.log()}")
    assert facts["instances"] == 2
    assert sorted(job["revision"] for job in facts["jobs"] if job["kind"] == "infer") == [1, 2]
    first, second = {d.SOPInstanceUID: d for d in pacs.of("SR", study.study_uid)}.values()
    [replaced] = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert replaced.SeriesInstanceUID == first.SeriesInstanceUID
    assert replaced.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_run_again_sends_the_same_objects(node: NodeProcess, pacs: Receiver, tmp_path: Path) -> None:
    study = ultrasound_study(tmp_path, seed=36)
    storescu(node, study.path)
    wait_for(lambda: node.finished(study.series_uid), 60, f"results\n{node.log()}")
    answer = httpx.post(f"http://127.0.0.1:{node.web_port}/api/series/{study.series_uid}/rerun", timeout=20)
    assert answer.json() == {"rerun": True}

    def again() -> dict | None:
        facts = node.finished(study.series_uid)
        return facts if facts and len(facts["jobs"]) == 6 else None

    facts = wait_for(again, 60, f"a second run\n{node.log()}")
    assert {job["state"] for job in facts["jobs"]} == {"done"}
    assert len(pacs.of("SR", study.study_uid)) == 2
    arrived_once(pacs, facts)


def test_two_senders_interleave_one_series(node: NodeProcess, tmp_path: Path) -> None:
    slices = ct_series(tmp_path / "ct", shape=(24, 64, 64), spacing_mm=(2.5, 5.0, 5.0))
    files = sorted((tmp_path / "ct").rglob("*.dcm"))
    halves = [tmp_path / "odd", tmp_path / "even"]
    for half in halves:
        half.mkdir()
    for number, file in enumerate(files):
        shutil.move(file, halves[number % 2] / file.name)
    senders = [threading.Thread(target=storescu, args=(node, half)) for half in halves]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    facts = wait_for(lambda: node.finished(slices[0].SeriesInstanceUID), 90, f"one series\n{node.log()}")
    assert (facts["instances"], facts["revision"], facts["verdict"]["fit"]) == (24, 1, True)
    [job] = [job for job in facts["jobs"] if job["kind"] == "infer"]
    assert job["state"] in ("done", "refused")  # a block of numbers has no lungs; the model says so in words
    assert job["reason"]


def test_an_unfit_series_is_refused_in_words(node: NodeProcess, tmp_path: Path) -> None:
    slices = ct_series(tmp_path / "ct", shape=(24, 64, 64), spacing_mm=(2.5, 5.0, 5.0), name="unfit")
    for gone in sorted((tmp_path / "ct").rglob("*.dcm"))[10:13]:
        gone.unlink()
    storescu(node, tmp_path / "ct")
    facts = wait_for(lambda: node.finished(slices[0].SeriesInstanceUID), 60, f"a verdict\n{node.log()}")
    assert not facts["verdict"]["fit"]
    [job] = facts["jobs"]
    assert job["state"] == "refused"
    assert "missing" in job["reason"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_what_is_not_dicom_is_answered_and_forgotten(node: NodeProcess, tmp_path: Path, damage: str) -> None:
    """Sent without looking inside, as a broken modality would; the next good image is served."""
    study = ultrasound_study(tmp_path, seed=34)
    whole = study.path.read_bytes()
    start = whole.index(b"\x08\x00\x05\x00") if b"\x08\x00\x05\x00" in whole else 400
    content = {"truncated": whole[start : start + 60], "empty": b"", "text": b"I am not DICOM. " * 40}[damage]
    status = send_raw(node, content)
    assert status is None or status >= 0xA000  # a failure, or no answer at all; never success
    storescu(node, study.path)
    assert wait_for(lambda: node.finished(study.series_uid), 60, f"the next image\n{node.log()}")


def test_a_stranger_is_turned_away(node: NodeProcess, tmp_path: Path) -> None:
    study = ultrasound_study(tmp_path, seed=35)
    done = subprocess.run(
        [need("storescu"), "-aet", "STRANGER", "-aec", node.aet, "127.0.0.1", str(node.dicom_port), str(study.path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Calling AE Title Not Recognized" in done.stdout + done.stderr
    wait_for(lambda: "STRANGER" in node.log(), 5, "an audit line")


def test_a_second_worker_on_the_same_folder_is_refused(node: NodeProcess) -> None:
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", "worker", "--config", str(node.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "in use by another worker" in done.stderr


def send_raw(node: NodeProcess, content: bytes) -> int | None:
    """C-STORE these bytes as a data set; the status, None when the connection broke."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    ae = AE("SENDER")
    ae.add_requested_context(SecondaryCaptureImageStorage, "1.2.840.10008.1.2.1")
    association = ae.associate("127.0.0.1", node.dicom_port, ae_title=node.aet)
    assert association.is_established
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = SecondaryCaptureImageStorage
    request.AffectedSOPInstanceUID = generate_uid()
    request.Priority = 2
    request.DataSet = BytesIO(content)
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association.abort()
    return None if answer is None else answer.Status
