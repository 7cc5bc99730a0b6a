"""Comparison with an earlier study that a real Orthanc holds: found by C-FIND, fetched by C-GET, registered, said."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import RLELossless, generate_uid
from pynetdicom import AE, evt
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    register_uid,
)

from config.schema import Config
from dicom_sr import codes, encode, read
from dicom_sr.findings import Evaluation, Findings
from dicom_sr.labelmap import LABEL_MAP_SEGMENTATION_STORAGE, label_map, retarget
from models.pipeline import Prior
from pacs_node import priors
from pacs_node.ledger import Ledger
from pacs_node.records import Job
from pacs_node.stages import WiredStages
from tests.follow_up import BEFORE, DAYS, GROWN, Study, after, before, same
from tests.harness import Orthanc, free_port, need, storescu

NOW = datetime(2026, 1, 1, 13, tzinfo=UTC)
ALLOWED = {"DicomAlwaysAllowGet": True}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return before(tmp_path_factory.mktemp("before") / "ct")


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return after(tmp_path_factory.mktemp("after") / "ct")


@pytest.fixture(scope="module")
def pacs(earlier: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive: the earlier study's CT, our results in two revisions, a report of somebody else, an older study."""
    folder = tmp_path_factory.mktemp("pacs")
    first = earlier.results(1, replace(earlier.findings, findings=earlier.findings.findings[:1]))
    second = earlier.results(2)
    foreign = copy.deepcopy(second[-1])
    foreign.Manufacturer, foreign.InstanceNumber = "Somebody", 9
    foreign.SOPInstanceUID = foreign.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    foreign.SeriesInstanceUID = generate_uid()
    older = copy.deepcopy(first[-1])
    older.StudyDate, older.StudyInstanceUID, older.SeriesInstanceUID = "20250101", generate_uid(), generate_uid()
    older.SOPInstanceUID = older.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dose = copy.deepcopy(foreign)  # every CT study has one; its class is none that we ask for
    dose.SOPClassUID = dose.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    dose.SOPInstanceUID = dose.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dose.SeriesInstanceUID = generate_uid()
    (folder / "in").mkdir()
    for number, dataset in enumerate([*first, *second, foreign, older, dose]):
        dataset.save_as(folder / "in" / f"{number}.dcm", enforce_file_format=True)
    with Orthanc(folder / "orthanc", settings=ALLOWED) as orthanc:
        storescu(orthanc, earlier.files[0].parent, folder / "in")
        yield orthanc


def stages(folder: Path, port: int, timeout_s: float = 240) -> WiredStages:
    settings: dict[str, Any] = {
        "node": {"data_dir": folder},
        "priors": {"timeout_s": float(timeout_s)},
        "infer": {"device": "cpu"},
        "peer": [{"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": port}],
    }
    ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)  # opened by deliveries only
    return WiredStages(Config.model_validate(settings), ledger, lambda: NOW)


def job(**changes: Any) -> Job:
    about = {"id": "j", "kind": "infer", "series_uid": "1", "study_uid": "1", "revision": 1, "pipeline": "lung-nodule"}
    return Job(**{**about, "route": "chest", "priority": 5, "created_at": NOW, "priors": "pacs", **changes})


def test_before_it_is_needed_an_archive_says_whether_it_would_send_them(pacs: Orthanc, tmp_path: Path) -> None:
    joined = stages(tmp_path, pacs.dicom_port, timeout_s=10)
    try:
        assert priors.not_sent(joined.dicom_peers["pacs"]) == []
    finally:
        joined.inference.stop()


def test_the_whole_comparison(pacs: Orthanc, earlier: Study, present: Study, tmp_path: Path) -> None:
    joined = stages(tmp_path, pacs.dicom_port)
    try:
        told = joined.compare(job(), present.findings, present.files)
    finally:
        joined.inference.stop()
    assert told.compared_with is not None, told.warnings
    assert told.compared_with.days == DAYS
    assert told.compared_with.sop_instance_uid == earlier.results(2)[-1].SOPInstanceUID, "the latest revision of ours"
    assert told.compared_with.no_longer_found == 1
    grown, new = (same(told, present.findings.findings[k]) for k in (GROWN, -1))
    assert Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.INCREASE_IN_SIZE) in grown.evaluations
    assert Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.NEW_FINDING) in new.evaluations
    matched = [finding for finding in told.findings if finding.predecessor_uid]
    assert len(matched) == len(BEFORE) - 1

    kept = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "inference"]
    assert len(kept) == 1, "of the archive's images nothing is left, and beside them only how the node infers"
    assert kept[0].startswith("comparison-")
    deaf = stages(tmp_path, free_port())  # the archive is gone; the job runs again
    again = deaf.compare(job(generation=2), present.findings, present.files)
    assert bytes_of(again, present) == bytes_of(told, present)

    report = encode(told, present.headers, when=NOW)[-1]
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    storescu(pacs, tmp_path / "report.dcm")
    [stored] = [d for d in pacs.instances("SR") if d.SOPInstanceUID == report.SOPInstanceUID]
    assert read.compared_with(stored) == told.compared_with
    httpx.delete(f"{pacs.url}/studies/{study_id(pacs, present)}").raise_for_status()


class LabelMapArchive:
    """A PACS of pynetdicom that serves C-FIND and C-GET, Label Map Segmentations too, each in the syntax it lies in.

    Orthanc 1.10 stores that class and cannot send it by C-GET.
    """

    KEYS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality")

    def __init__(self, objects: Sequence[Dataset]) -> None:
        self.objects, self.port = objects, free_port()
        ae = AE("ARCHIVE")
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
        register_uid(LABEL_MAP_SEGMENTATION_STORAGE, "LabelMapSegmentationStorage", StorageServiceClass)
        for sop_class in {str(each.SOPClassUID) for each in objects}:
            syntaxes = {str(each.file_meta.TransferSyntaxUID) for each in objects if each.SOPClassUID == sop_class}
            ae.add_supported_context(sop_class, sorted(syntaxes), scu_role=True, scp_role=True)
        self._server: Any = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get)],
        )

    def _meant(self, query: Dataset) -> list[Dataset]:
        wanted = {key: str(query.get(key) or "") for key in self.KEYS}
        return [each for each in self.objects if all(not v or str(each.get(k)) == v for k, v in wanted.items())]

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID"}[event.identifier.QueryRetrieveLevel]
        for uid, one in {str(each[level].value): each for each in self._meant(event.identifier)}.items():
            answer = Dataset()
            for element in event.identifier:
                setattr(answer, element.keyword, one.get(element.keyword, ""))
            answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
            setattr(answer, level, uid)
            yield 0xFF00, answer

    def _get(self, event: evt.Event) -> Iterator[Any]:
        meant = self._meant(event.identifier)
        yield len(meant)
        for each in meant:
            yield 0xFF00, each

    def stop(self) -> None:
        self._server.shutdown()


def test_label_maps_are_fetched_in_rle_as_they_lie(earlier: Study, present: Study, tmp_path: Path) -> None:
    """An archive that was sent Label Map Segmentations, compressed: they say the same as the BINARY ones."""
    *segmentations, report = earlier.results(1)
    maps = {str(each.SOPInstanceUID): label_map(each) for each in segmentations}
    turned = retarget(report, maps)
    for dataset in maps.values():
        dataset.compress(RLELossless, generate_instance_uid=False)
    images = [pydicom.dcmread(path) for path in earlier.files]
    pacs = LabelMapArchive([*images, *maps.values(), turned])
    try:
        archive = priors.Peer("pacs", "ARCHIVE", "127.0.0.1", pacs.port, "PACSNODE")
        found = priors.fetch(archive, present.headers[0], "lung-nodule", tmp_path, max_age_days=5000, timeout_s=120)
    finally:
        pacs.stop()
    fetched = [pydicom.dcmread(path) for path in found.segmentations]
    assert [each.file_meta.TransferSyntaxUID for each in fetched] == [RLELossless] * len(maps)
    drawn = [segment for each in fetched for segment in read.segments(each)]
    known = [segment for each in segmentations for segment in read.segments(each)]
    assert [segment.tracking_uid for segment in drawn] == [segment.tracking_uid for segment in known]
    for one, other in zip(drawn, known, strict=True):
        assert {ref: mask.tolist() for ref, mask in one.masks.items()} == {
            ref: mask.tolist() for ref, mask in other.masks.items()
        }


def bytes_of(findings: Findings, study: Study) -> list[bytes]:
    from io import BytesIO

    written = []
    for dataset in encode(findings, study.headers, when=NOW):
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        written.append(buffer.getvalue())
    return written


def study_id(pacs: Orthanc, study: Study) -> str:
    query = {"Level": "Study", "Query": {"StudyInstanceUID": str(study.headers[0].StudyInstanceUID)}}
    [one] = httpx.post(f"{pacs.url}/tools/find", json=query, timeout=30).json()
    return str(one)


def fetched(pacs: Orthanc, present: Study, folder: Path, timeout_s: float = 100, **changes: Any) -> Prior:
    header = present.headers[0]
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    archive = priors.Peer("pacs", pacs.aet, "127.0.0.1", pacs.dicom_port, "NODE")
    return priors.fetch(archive, header, "lung-nodule", folder, max_age_days=1826, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PatientSex": "M"}, "another sex"),  # the phantom's is O
        ({"IssuerOfPatientID": "ANOTHER HOSPITAL"}, "issuer of the Patient ID"),
        ({"PatientID": "PHANTOM-CT-*"}, "no report of lung-nodule"),  # a wildcard for C-FIND
        ({"PatientID": "PHANTOM-CT-2"}, "no report of lung-nodule"),
        ({"StudyDate": "20250101"}, "no report of lung-nodule"),  # nothing is earlier than that
        ({"StudyDate": "20350101"}, "no report of lung-nodule"),  # more than five years later
    ],
)
def test_no_prior_of_another_patient_or_time(
    pacs: Orthanc, present: Study, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    with pytest.raises(priors.NoComparison, match=words):
        fetched(pacs, present, tmp_path, **changes)


def test_a_report_of_another_pipeline_is_no_prior(pacs: Orthanc, present: Study, tmp_path: Path) -> None:
    archive = priors.Peer("pacs", pacs.aet, "127.0.0.1", pacs.dicom_port, "NODE")
    with pytest.raises(priors.NoComparison, match="no report of breast-us"):
        priors.fetch(archive, present.headers[0], "breast-us", tmp_path, max_age_days=1826, timeout_s=100)


def test_a_peer_that_takes_too_long_is_a_reason(pacs: Orthanc, present: Study, tmp_path: Path) -> None:
    with pytest.raises(priors.NoComparison, match=r"too long|in time|cannot be reached"):
        fetched(pacs, present, tmp_path, timeout_s=0.05)


def test_a_peer_that_does_not_let_us_get_is_a_reason(earlier: Study, present: Study, tmp_path: Path) -> None:
    """Orthanc's default: C-GET is refused to strangers. The result goes out all the same, with a warning."""
    for result in earlier.results():
        result.save_as(tmp_path / f"{result.Modality}.dcm", enforce_file_format=True)
    with Orthanc(tmp_path / "orthanc") as strict:
        storescu(strict, tmp_path / "SR.dcm")
        told = stages(tmp_path / "data", strict.dicom_port).compare(job(), present.findings, present.files)
    assert told.findings == present.findings.findings
    assert told.compared_with is None
    [warning] = told.warnings
    assert warning.startswith("no comparison: pacs ")
    assert "C-GET" in warning or "refuses" in warning


def test_the_earlier_ct_must_be_there(earlier: Study, present: Study, tmp_path: Path) -> None:
    for result in earlier.results():
        result.save_as(tmp_path / f"{result.Modality}.dcm", enforce_file_format=True)
    with Orthanc(tmp_path / "orthanc", settings=ALLOWED) as pacs:
        storescu(pacs, tmp_path / "SR.dcm", tmp_path / "SEG.dcm")
        (tmp_path / "fetched").mkdir()
        with pytest.raises(priors.NoComparison, match="does not have the CT of the earlier report"):
            fetched(pacs, present, tmp_path / "fetched")


def test_a_compared_report_passes_dciodvfy(present: Study, earlier: Study, tmp_path: Path) -> None:
    from models.lung_nodule.compare import compare

    program = need("dciodvfy", beside_python=True)
    comparison = compare(present.findings, present.files, earlier.as_prior(tmp_path / "prior"))
    told = priors.Outcome(comparison).told(present.findings)
    report = encode(told, present.headers, when=NOW)[-1]
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    done = subprocess.run([program, str(tmp_path / "report.dcm")], capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []
    assert isinstance(pydicom.dcmread(tmp_path / "report.dcm"), Dataset)
