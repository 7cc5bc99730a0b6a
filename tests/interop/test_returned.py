"""What readers made of our results comes back through DCMTK, is recognised by UID alone, and starts no pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from prometheus_client import CollectorRegistry
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import KeyObjectSelectionDocumentStorage, generate_uid
from starlette.testclient import TestClient

from config import load
from dicom_sr.edits import dice, edits
from dicom_sr.findings import Findings
from models import catalogue
from pacs_node.accounts import ADMIN, READER, VIEWER, Accounts, User
from pacs_node.facts import NodeFacts
from pacs_node.node import Node, utc_now
from pacs_node.web.app import create_app
from tests.harness import free_port, storescu, wait_for
from tests.standins import NoInference
from tests.unit.test_documented import documented_fields, told_of
from tests.unit.test_web import visible
from tests.viewers import chest

TOML = """
[node]
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {port}
[assemble]
quiet_s = 0.2
quiet_unreleased_s = 0.2
[receive]
keep_free_gb = 0.1
[infer]
tune = false
[[peer]]
name = "pacs"
ae_title = "PACS"
may_send = true
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "any image at all"
match = {{}}
pipeline = "lung-nodule"
send_to = ["results"]
"""
WHO = "Leserin^Ina"


class Inference(NoInference):
    """Finds what the phantom truly holds."""

    def __init__(self, findings: Findings) -> None:
        self.findings, self.asked = findings, 0

    def run(self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Any) -> Findings:
        self.asked += 1
        return self.findings


class Hospital:
    """A node with a CT that has results, and the PACS that sends back what readers made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, port = folder, free_port()
        self.truth, findings = chest(folder / "images", size=64, spacing_mm=(6.0, 5.6, 5.6))
        (folder / "node.toml").write_text(TOML.format(port=port))
        self.node = Node(load(folder / "node.toml", catalogue()))
        self.inference = Inference(findings)
        self.node.stages.inference = self.inference  # type: ignore[assignment]
        self.node.returned.loop._every_s = 0.1
        self.node.start(web=False)
        self.facts = NodeFacts(self.node)
        self.door = SimpleNamespace(aet=self.node.config.node.ae_title, dicom_port=port)
        self.send(*self.truth.files)
        self.uid = str(pydicom.dcmread(self.truth.files[0]).SeriesInstanceUID)
        self.job = wait_for(self._done, 60, "results")["id"]
        paths = [each.path for each in self.node.ledger.results(self.job)]
        results = [pydicom.dcmread(path) for path in paths]
        [self.seg] = [each for each in results if each.Modality == "SEG"]
        [self.report] = [each for each in results if each.Modality == "SR"]

    def _done(self) -> dict[str, Any] | None:
        series = self.node.ledger.series(self.uid)
        jobs = series["jobs"] if series else []
        return next((job for job in jobs if job["kind"] == "infer" and job["state"] == "done"), None)

    def send(self, *paths: Path) -> None:
        storescu(self.door, *paths, calling="PACS")  # type: ignore[arg-type]

    def comes_back(self, made: Dataset) -> list[dict[str, Any]]:
        """Sent by DCMTK; what is noted of it once it was looked at."""
        path = self.folder / f"{made.SOPInstanceUID}.dcm"
        made.save_as(path, enforce_file_format=True)
        self.send(path)
        uid = str(made.SeriesInstanceUID)

        def looked_at() -> bool:
            ledger = self.node.ledger
            if ledger.instance(str(made.SOPInstanceUID)) is None:  # the series may be closed since another one
                return False
            series = ledger.series(uid)
            return bool(series and series["state"] == "closed" and not ledger.returned_waiting(9))

        wait_for(looked_at, 60, f"a look at it: {self.node.trouble()}")
        series = self.node.ledger.series(uid)
        assert series is not None
        assert series["jobs"] == [], "what came back is no image to work on"
        return [each for each in self.facts.feedback() if each["object"] == made.SOPInstanceUID]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path_factory.mktemp("hospital"))
    yield hospital
    assert hospital.inference.asked == 1, "no edited segmentation and no note starts a pipeline"
    hospital.node.stop()


def masks_of(segmentation: Dataset) -> np.ndarray:
    return np.asarray(segmentation.pixel_array).astype(bool)


def segment_of_frames(segmentation: Dataset) -> list[int]:
    groups = segmentation.PerFrameFunctionalGroupsSequence
    return [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for group in groups]


def edited(ours: Dataset, change: Callable[[np.ndarray, list[int]], None]) -> Dataset:
    """A reader's copy, as a workstation writes it that changes pixels alone: UIDs and names of its own."""
    theirs = copy.deepcopy(ours)
    masks = masks_of(ours)
    change(masks, segment_of_frames(ours))
    theirs.PixelData = np.packbits(masks.ravel(), bitorder="little").tobytes().ljust(len(ours.PixelData), b"\0")
    theirs.SOPInstanceUID = theirs.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    theirs.SeriesInstanceUID = generate_uid()
    theirs.Manufacturer, theirs.ContentCreatorName = "WORKSTATION", WHO
    theirs.ContentDate, theirs.ContentTime = "20260302", "0915"
    return theirs


def erode_first(masks: np.ndarray, segments: list[int]) -> None:
    first = segments.index(1)
    rows = np.flatnonzero(masks[first].any(axis=1))
    masks[first][rows[0]] = False


def true_dice(ours: Dataset, theirs: Dataset, number: int) -> float:
    """By hand, of all frames of a segment at once."""
    frames = [n == number for n in segment_of_frames(ours)]
    one, other = masks_of(ours)[frames], masks_of(theirs)[frames]
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_an_edited_outline_is_counted_with_its_dice(hospital: Hospital) -> None:
    theirs = edited(hospital.seg, erode_first)
    first, second = hospital.comes_back(theirs)
    assert (first["kind"], first["finding"], first["label"]) == ("edited", 1, "Nodule 1")
    assert first["dice"] == pytest.approx(true_dice(hospital.seg, theirs, 1))
    assert 0 < first["dice"] < 1
    assert (second["kind"], second["finding"], second["dice"]) == ("kept", 2, 1.0)
    assert {(each["reader"], each["sender"], each["made"]) for each in (first, second)} == {
        (WHO, "PACS", "2026-03-02 09:15")
    }
    assert {each["series_uid"] for each in (first, second)} == {hospital.uid}


def test_a_finding_that_a_reader_has_wiped_out_is_left_out(hospital: Hospital) -> None:
    def wipe(masks: np.ndarray, segments: list[int]) -> None:
        masks[[number == 2 for number in segments]] = False

    first, second = hospital.comes_back(edited(hospital.seg, wipe))
    assert (first["kind"], second["kind"], second["dice"]) == ("kept", "left-out", None)


def test_segments_of_another_makers_library_are_followed_by_their_tracking_uid(hospital: Hospital) -> None:
    """highdicom writes it anew: other order, other frames, planes named by the images, and one more segment."""
    images = [pydicom.dcmread(path) for path in hospital.truth.files]
    images.sort(key=lambda each: float(each.ImagePositionPatient[2]))
    place = {str(each.SOPInstanceUID): z for z, each in enumerate(images)}
    pixels = np.zeros((len(images), *images[0].pixel_array.shape, 2), np.uint8)
    frames = zip(hospital.seg.PerFrameFunctionalGroupsSequence, masks_of(hospital.seg), strict=True)
    for group, mask in frames:
        if int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) == 2:
            source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            pixels[place[str(source)], ..., 0] |= mask
    pixels[3, 4:8, 4:8, 1] = 1
    tracked = hospital.seg.SegmentSequence[1].TrackingUID
    theirs = hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                number, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Nodule,
                hd.seg.SegmentAlgorithmTypeValues.MANUAL, tracking_uid=uid, tracking_id=label,
            )
            for number, label, uid in ((1, "one", tracked), (2, "Wachtel^Zora", generate_uid()))
        ],
        series_instance_uid=generate_uid(), series_number=900, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer="highdicom", manufacturer_model_name="editor", software_versions="1", device_serial_number="1",
        content_creator_name=WHO,
    )  # fmt: skip
    said = {each["kind"]: each for each in hospital.comes_back(theirs)}
    assert {kind: each["finding"] for kind, each in said.items()} == {"left-out": 1, "kept": 2, "added": None}
    assert said["added"]["label"] == "", "another's words may name the patient"


def test_what_names_nothing_of_ours_is_nothing(hospital: Hospital) -> None:
    """Another's segmentation of the same images, and our own as it was sent."""
    other = edited(hospital.seg, erode_first)
    for segment in other.SegmentSequence:
        segment.TrackingUID = generate_uid()
    assert hospital.comes_back(other) == []
    before = list(hospital.facts.feedback())
    again = copy.deepcopy(hospital.seg)
    hospital.comes_back(again)
    assert list(hospital.facts.feedback()) == before


def test_a_grid_of_its_own_is_said_and_not_guessed_at(hospital: Hospital) -> None:
    theirs = edited(hospital.seg, erode_first)
    masks = masks_of(theirs).repeat(2, axis=1).repeat(2, axis=2)
    theirs.PixelData = np.packbits(masks.ravel(), bitorder="little").tobytes()
    theirs.Rows, theirs.Columns = masks.shape[1:]
    first, _ = hospital.comes_back(theirs)
    assert (first["kind"], first["dice"]) == ("edited", None)
    assert first["reason"] == "drawn on 128 x 128 pixels, the result on 64 x 64"


def note(hospital: Hospital, title: str, *, manufacturer: str = "WORKSTATION", names: Dataset | None = None) -> Dataset:
    """A rejection note, IHE RAD IOCM."""
    named = hospital.seg if names is None else names
    ko = Dataset()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"):  # fmt: skip
        ko.add(copy.deepcopy(hospital.seg[keyword]))
    ko.SOPClassUID, ko.SOPInstanceUID, ko.SeriesInstanceUID = (
        KeyObjectSelectionDocumentStorage, generate_uid(), generate_uid(),
    )  # fmt: skip
    ko.Modality, ko.Manufacturer, ko.SeriesNumber, ko.InstanceNumber = "KO", manufacturer, 1, 1
    ko.ContentDate, ko.ContentTime, ko.OperatorsName = "20260302", "101500", WHO
    ko.ValueType, ko.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ko.ConceptNameCodeSequence = [code(title, "Quod^Dixit")]
    reference, instance, series, study = (Dataset() for _ in range(4))
    reference.ReferencedSOPClassUID = instance.ReferencedSOPClassUID = named.SOPClassUID
    reference.ReferencedSOPInstanceUID = instance.ReferencedSOPInstanceUID = named.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = named.SeriesInstanceUID, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = named.StudyInstanceUID, [series]
    ko.CurrentRequestedProcedureEvidenceSequence = [study]
    why, item = Dataset(), Dataset()
    why.RelationshipType, why.ValueType = "HAS CONCEPT MOD", "CODE"
    why.ConceptNameCodeSequence = [code("113011", "Document Title Modifier")]
    why.ConceptCodeSequence = [code("111219", "Wachtel^Zora")]
    item.RelationshipType, item.ValueType, item.ReferencedSOPSequence = "CONTAINS", "IMAGE", [reference]
    ko.ContentSequence = [why, item]
    ko.file_meta = copy.deepcopy(hospital.report.file_meta)
    ko.file_meta.MediaStorageSOPClassUID, ko.file_meta.MediaStorageSOPInstanceUID = ko.SOPClassUID, ko.SOPInstanceUID
    return ko


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


@pytest.mark.parametrize("title", ["113001", "113037", "113038"])
def test_a_rejection_of_a_result_is_counted_with_its_reason(hospital: Hospital, title: str) -> None:
    names = hospital.report if title == "113037" else hospital.seg
    [said] = hospital.comes_back(note(hospital, title, names=names))
    assert (said["kind"], said["job"], said["finding"]) == ("rejected", hospital.job, None)
    assert said["reason"].endswith(": Inappropriate image processing"), "the Standard's words, not the sender's"
    assert said["reader"] == WHO


@pytest.mark.parametrize("title", ["113000", "113039"], ids=["of interest", "retention expired"])
def test_other_key_objects_reject_nothing(hospital: Hospital, title: str) -> None:
    assert hospital.comes_back(note(hospital, title)) == []


def test_our_own_note_of_what_we_replaced_is_no_readers(hospital: Hospital) -> None:
    assert hospital.comes_back(note(hospital, "113001", manufacturer="pacs-node")) == []


def test_a_rejection_of_images_is_none_of_ours(hospital: Hospital) -> None:
    image = pydicom.dcmread(hospital.truth.files[0])
    assert hospital.comes_back(note(hospital, "113001", names=image)) == []


def test_sent_once_more_it_is_counted_once(hospital: Hospital) -> None:
    theirs = edited(hospital.seg, erode_first)
    hospital.comes_back(theirs)
    second = edited(hospital.seg, erode_first)  # opens the series again
    second.SeriesInstanceUID = theirs.SeriesInstanceUID
    assert len(hospital.comes_back(second)) == 2
    assert len([each for each in hospital.facts.feedback() if each["object"] == theirs.SOPInstanceUID]) == 2


def test_the_pages_tell_it_and_who_it_was_to_readers_alone(hospital: Hospital) -> None:
    hospital.comes_back(edited(hospital.seg, erode_first))
    wait_for(lambda: hospital.facts.findings(hospital.uid, 1.0)["state"] == "ready", 120, "the findings")
    accounts = Accounts(hospital.node.ledger, utc_now)
    accounts.kept.add_user(User("nobody", ADMIN, "x", utc_now()))
    app = create_app(hospital.facts, CollectorRegistry(), ("testserver",), accounts)
    shown = {}
    for role in (VIEWER, READER):
        web = TestClient(app, headers={"authorization": f"Bearer {accounts.add_token(role, role, 1)}"})
        page = web.get(f"/series/{hospital.uid}").text
        assert "outline edited, Dice 0." in visible(page)
        shown[role] = WHO in page
        counted = web.get("/feedback").text
        assert "Mean Dice of the edited" in visible(counted)
        assert WHO not in counted
    assert shown == {VIEWER: False, READER: True}
    said = web.get("/api/feedback").json()
    assert told_of(said) - {"place"} <= documented_fields("GET /api/feedback")
    assert f'"{WHO}"'[1:-1] in web.get("/api/feedback?form=csv").text


def test_dice_is_that_of_two_sets() -> None:
    one = {("a", 0): np.array([[True, True], [False, False]])}
    other = {("a", 0): np.array([[True, False], [True, False]]), ("b", 0): np.array([[False, False], [False, True]])}
    assert dice(one, other) == pytest.approx(2 * 1 / (2 + 3))
    assert dice(one, one) == 1.0
    assert dice(one, {("b", 0): one["a", 0]}) == 0.0


def test_a_frame_that_names_our_own_frame_lies_where_that_one_does(hospital: Hospital) -> None:
    """An editor may name the segmentation that it edits as the source, in place of the images."""
    theirs = edited(hospital.seg, lambda masks, segments: None)
    for frame, group in enumerate(theirs.PerFrameFunctionalGroupsSequence, start=1):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID, source.ReferencedSOPClassUID = (
            hospital.seg.SOPInstanceUID,
            hospital.seg.SOPClassUID,
        )
        source.ReferencedFrameNumber = frame
        del group.PlanePositionSequence  # an ultrasound image has none
    assert [each.kind for each in edits(hospital.seg, theirs)] == ["kept", "kept"]


def test_without_sources_planes_are_told_by_position(hospital: Hospital) -> None:
    theirs = edited(hospital.seg, erode_first)
    for group in theirs.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    assert [each.dice for each in edits(hospital.seg, theirs)] == pytest.approx(
        [true_dice(hospital.seg, theirs, 1), 1.0]
    )
    moved = copy.deepcopy(theirs)
    for group in moved.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 3
    assert [each.dice for each in edits(hospital.seg, moved)] == [0.0, 0.0]
