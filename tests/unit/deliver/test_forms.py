"""What is sent to a PACS that accepts only some SOP classes: each step of each chain, over a real association.

The package is what the node made of a CT series and of an ultrasound image; the PACS is pynetdicom's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filewriter import write_file_meta_info

from dicom_sr import read
from dicom_sr.findings import Findings
from dicom_sr.forms import Profile
from pacs_node.deliver.destination import Deferred, Undeliverable
from pacs_node.deliver.dimse import DimseDestination
from pacs_node.deliver.folder import FolderDestination
from pacs_node.encode import ResultForms, encode_results
from pacs_node.errors import TryAgain
from pacs_node.receive.accept import STORAGE_SOP_CLASSES
from pacs_node.records import Answer, Package, Receipt, Stored
from pacs_node.route import not_ours
from tests.factories import ct_series, us_image
from tests.results import WHEN, ct_findings, mass, nodule, us_findings
from tests.unit.deliver.conftest import EXPLICIT_LE, IMPLICIT_LE, NOON, Pacs, now

SEG, LABELMAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
RTSTRUCT, GSPS = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.11.1"
CAPTURE, KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.59"
COMPREHENSIVE, ENHANCED = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.22"
THREE_D = "1.2.840.10008.5.1.4.1.1.88.34"
BASIC_TEXT = "1.2.840.10008.5.1.4.1.1.88.11"
EVERY = (SEG, LABELMAP, RTSTRUCT, GSPS, CAPTURE, KEY_OBJECTS, THREE_D, COMPREHENSIVE, ENHANCED, BASIC_TEXT)
UNSUPPORTED = "the SOP class is not supported"
SECOND_BEST = f"; Comprehensive SR in place of Comprehensive 3D SR: {UNSUPPORTED}"

DEFAULT = Profile(key_images="clips")  # captures beside a CT have a test of their own
Start = Callable[..., Pacs]


class Remembered:
    """What a destination said, kept as long as the test lasts."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answer] = {}

    def refusals(self, now: datetime) -> Mapping[tuple[str, str], str]:
        recent = {key: a for key, a in self.answers.items() if now < a.at + timedelta(hours=24)}
        return {key: answer.refused for key, answer in recent.items() if answer.refused is not None}

    def remember(self, answers: Sequence[Answer]) -> None:
        self.answers |= {(answer.sop_class_uid, answer.transfer_syntax_uid): answer for answer in answers}


def package(folder: Path, findings: Findings, images: Sequence[Dataset]) -> Package:
    files = [Path(image.filename) for image in images]
    results = encode_results(findings, images, folder / "results" / "job" / "1", when=WHEN, revision=1)
    sources = {str(image.SOPInstanceUID): Stored(file) for image, file in zip(images, files, strict=True)}
    return Package("job", tuple(result.path for result in results), sources)


def ct_package(folder: Path) -> Package:
    """Two nodules on a CT series."""
    images = ct_series(folder / "ct")
    return package(folder, ct_findings(images, nodule(1, (2, 5, 8)), nodule(2, (7, 20, 25))), images)


@pytest.fixture
def ct(tmp_path: Path) -> Package:
    return ct_package(tmp_path)


def accepting(start: Start, *classes: str, syntaxes: Sequence[str] = (EXPLICIT_LE, IMPLICIT_LE), **how: object) -> Pacs:
    return start(accepts={uid: list(syntaxes) for uid in classes}, **how)


def deliver(
    pacs: Pacs, package: Package, profile: Profile = DEFAULT, memory: Remembered | None = None
) -> list[Receipt]:
    return DimseDestination(pacs.peer, ResultForms(profile), memory).deliver(package, now)


def received(pacs: Pacs) -> list[Dataset]:
    """What came, decoded in the syntax it was accepted in: told from the first element."""
    return [pydicom.dcmread(BytesIO(part10(data)), force=True) for data in pacs.received.values()]


def part10(data: bytes) -> bytes:
    explicit = data[4:6].isalpha()
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SEG, "1.2.3"
    meta.TransferSyntaxUID = EXPLICIT_LE if explicit else IMPLICIT_LE
    head = BytesIO()
    head.write(bytes(128) + b"DICM")
    write_file_meta_info(head, meta)
    return head.getvalue() + data


def classes(pacs: Pacs) -> list[str]:
    return [str(dataset.SOPClassUID) for dataset in received(pacs)]


def test_a_pacs_that_takes_everything_gets_the_results_as_they_are(pacs: Start, ct: Package) -> None:
    there = accepting(pacs, *EVERY)
    receipts = deliver(there, ct)
    assert [receipt.text for receipt in receipts] == ["0x0000 Success"] * 2
    assert [receipt.sop_class_uid for receipt in receipts] == [SEG, THREE_D]
    assert classes(there) == [SEG, THREE_D]
    assert len(there.proposed) == 1


SEG_STEPS = [
    (RTSTRUCT, 1, "RT Structure Set in place of Segmentation: " + UNSUPPORTED),
    (GSPS, 1, "Grayscale Softcopy Presentation State in place of Segmentation: " + UNSUPPORTED
     + "; RT Structure Set: " + UNSUPPORTED),
    (CAPTURE, 2, "Secondary Capture in place of Segmentation: " + UNSUPPORTED
     + "; RT Structure Set: " + UNSUPPORTED + "; Grayscale Softcopy Presentation State: " + UNSUPPORTED),
]  # fmt: skip
SR_STEPS = [
    (ENHANCED, "Enhanced SR in place of Comprehensive 3D SR: " + UNSUPPORTED + "; Comprehensive SR: " + UNSUPPORTED),
    (BASIC_TEXT, "Basic Text SR in place of Comprehensive 3D SR: " + UNSUPPORTED + "; Comprehensive SR: " + UNSUPPORTED
     + "; Enhanced SR: " + UNSUPPORTED),
    (CAPTURE, "Secondary Capture in place of Comprehensive 3D SR: " + UNSUPPORTED + "; Comprehensive SR: " + UNSUPPORTED
     + "; Enhanced SR: " + UNSUPPORTED + "; Basic Text SR: " + UNSUPPORTED),
]  # fmt: skip


@pytest.mark.parametrize(("best", "objects", "words"), SEG_STEPS)
def test_in_place_of_a_segmentation(pacs: Start, ct: Package, best: str, objects: int, words: str) -> None:
    later = [uid for uid, _, _ in SEG_STEPS[[uid for uid, _, _ in SEG_STEPS].index(best) :]]
    there = accepting(pacs, *later, COMPREHENSIVE)
    *receipts, report = deliver(there, ct)
    assert [receipt.text for receipt in receipts] == [f"0x0000 Success; {words}"] * objects
    assert report.text == "0x0000 Success" + SECOND_BEST
    assert classes(there) == [best] * objects + [COMPREHENSIVE]
    assert [r.sop_instance_uid for r in (*receipts, report)] == list(there.received)
    assert [r.sop_class_uid for r in receipts] == [best] * objects
    assert len(there.proposed) == 1, "one association"


@pytest.mark.parametrize(("best", "words"), SR_STEPS)
def test_in_place_of_the_report(pacs: Start, ct: Package, best: str, words: str) -> None:
    later = [uid for uid, _ in SR_STEPS[[uid for uid, _ in SR_STEPS].index(best) :]]
    there = accepting(pacs, SEG, *later)
    segmentation, report = deliver(there, ct)
    assert (segmentation.text, report.text) == ("0x0000 Success", f"0x0000 Success; {words}")
    assert classes(there) == [SEG, best]


def test_ultrasound_has_no_structure_set_and_the_receipt_says_why(pacs: Start, tmp_path: Path) -> None:
    image = us_image(tmp_path / "us")
    there = accepting(pacs, RTSTRUCT, GSPS, CAPTURE, ENHANCED)
    mark, report = deliver(there, package(tmp_path, us_findings([image], mass(1, (0, 12, 20))), [image]))
    assert mark.text == (
        f"0x0000 Success; Grayscale Softcopy Presentation State in place of Segmentation: {UNSUPPORTED}; "
        "RT Structure Set: the images have no place in the patient"
    )
    assert report.text.startswith("0x0000 Success; Enhanced SR in place of")
    assert classes(there) == [GSPS, ENHANCED]


def test_a_pacs_of_the_default_transfer_syntax_only_gets_the_best_object_in_it(pacs: Start, ct: Package) -> None:
    """PS3.5 10.1: everyone takes Implicit VR Little Endian. The encoding is no reason for a lesser object."""
    there = accepting(pacs, *EVERY, syntaxes=[IMPLICIT_LE])
    receipts = deliver(there, ct)
    assert [r.text for r in receipts] == [
        "0x0000 Success; in Implicit VR Little Endian: the transfer syntax is not supported",
        "0x0000 Success; in Implicit VR Little Endian: the transfer syntax is not supported",
    ]
    own = [pydicom.dcmread(path) for path in ct.paths]
    for came, meant in zip(received(there), own, strict=True):
        assert came.get("PixelData") == meant.get("PixelData")
        for dataset in (came, meant):
            dataset.pop("PixelData", None)  # its VR is the encoding's: OW in Implicit VR, PS3.5 A.1
        assert came.to_json_dict() == meant.to_json_dict()


def test_the_label_map_profile(pacs: Start, ct: Package) -> None:
    there = accepting(pacs, *EVERY)
    profile = Profile(label_map=True, key_objects=True, key_images="none")
    receipts = deliver(there, ct, profile)
    assert [receipt.text for receipt in receipts] == [
        "0x0000 Success; in Explicit VR Little Endian: the transfer syntax is not supported",
        "0x0000 Success",
        "0x0000 Success",
    ]
    segmentation, report, selection = received(there)
    assert [d.SOPClassUID for d in (segmentation, report, selection)] == [LABELMAP, THREE_D, KEY_OBJECTS]
    own = pydicom.dcmread(ct.paths[0])
    assert str(own.SOPInstanceUID) not in str(report)
    assert str(segmentation.SOPInstanceUID) in str(report)
    binary = accepting(pacs, *(uid for uid in EVERY if uid != LABELMAP))
    *_, text = [r.text for r in deliver(binary, ct, Profile(label_map=True, key_images="none"))][:1]
    assert text == f"0x0000 Success; Segmentation in place of Label Map Segmentation: {UNSUPPORTED}"
    assert [str(d.SOPInstanceUID) for d in received(binary)] == [
        str(pydicom.dcmread(path).SOPInstanceUID) for path in ct.paths
    ]


def test_overlapping_findings_go_as_binary(pacs: Start, tmp_path: Path) -> None:
    images = ct_series(tmp_path / "ct")
    overlapping = package(tmp_path, ct_findings(images, nodule(1, (2, 5, 8)), nodule(2, (3, 7, 10))), images)
    there = accepting(pacs, *EVERY)
    segmentation, report = deliver(there, overlapping, Profile(label_map=True, key_images="none"))
    assert segmentation.text == (
        "0x0000 Success; Segmentation in place of Label Map Segmentation: "
        "findings overlap, and a pixel of a label map has one label"
    )
    assert report.text == "0x0000 Success"
    assert classes(there) == [SEG, THREE_D]
    receipts = FolderDestination("out", tmp_path / "out", ResultForms(Profile(label_map=True))).deliver(
        overlapping, now
    )
    assert "; Segmentation in place of Label Map Segmentation: findings overlap" in receipts[0].text


def test_a_folder_takes_everything_in_its_profile(tmp_path: Path, ct: Package) -> None:
    profile = Profile(omit_empty_frames=False, key_objects=True, key_images="none")
    receipts = FolderDestination("out", tmp_path / "out", ResultForms(profile)).deliver(ct, now)
    files = [pydicom.dcmread(receipt.text.removeprefix("written to ")) for receipt in receipts]
    assert [file.SOPClassUID for file in files] == [SEG, THREE_D, KEY_OBJECTS]
    assert files[0].NumberOfFrames == 2 * 12


def test_key_objects_are_only_for_findings_and_never_in_the_way(pacs: Start, tmp_path: Path, ct: Package) -> None:
    there = accepting(pacs, SEG, COMPREHENSIVE)
    *_, left_out = deliver(there, ct, Profile(key_objects=True, key_images="none"))
    assert (left_out.stored, left_out.text) == (
        False,
        f"Key Object Selection not accepted: {UNSUPPORTED}; it is left out, it is not needed",
    )
    images = ct_series(tmp_path / "nothing", name="nothing")
    nothing = package(tmp_path / "n", ct_findings(images), images)
    [report] = deliver(accepting(pacs, *EVERY), nothing, Profile(key_objects=True))
    assert report.sop_class_uid == THREE_D


def test_a_form_that_cannot_be_made_leads_to_the_next(pacs: Start, tmp_path: Path) -> None:
    """Slices that do not agree whether they name a Rescale Type: no presentation state can be made for them all."""
    images = ct_series(tmp_path / "ct")
    for image, kind in zip(images, (None, "HU", *[None] * len(images)), strict=False):
        image.pop("RescaleType", None)
        if kind:
            image.RescaleType = kind
        image.save_as(image.filename, enforce_file_format=True)
    mixed = package(tmp_path, ct_findings(images, nodule(1, (0, 5, 8))), images)
    there = accepting(pacs, GSPS, CAPTURE, COMPREHENSIVE)
    mark, report = deliver(there, mixed)
    assert (mark.sop_class_uid, report.sop_class_uid) == (CAPTURE, COMPREHENSIVE)
    assert "Grayscale Softcopy Presentation State" in mark.text


@pytest.fixture
def clip(tmp_path: Path) -> Package:
    """A mass on the second of three frames."""
    image = us_image(tmp_path / "us", frames=3, shape=(32, 40))
    return package(tmp_path, us_findings([image], mass(1, (1, 5, 6))), [image])


def test_a_finding_on_a_clip_comes_with_a_capture_of_its_frame(pacs: Start, clip: Package) -> None:
    there = accepting(pacs, *EVERY)
    assert [receipt.text for receipt in deliver(there, clip)] == ["0x0000 Success"] * 3
    assert classes(there) == [SEG, THREE_D, CAPTURE]
    (source,) = received(there)[-1].SourceImageSequence
    assert source.ReferencedFrameNumber == 2
    none = accepting(pacs, *EVERY)
    deliver(none, clip, Profile(key_images="none"))
    assert classes(none) == [SEG, THREE_D]


def test_the_foremost_findings_of_a_ct_come_with_captures_and_all_on_request(pacs: Start, tmp_path: Path) -> None:
    images = ct_series(tmp_path / "ct")
    found = [nodule(n, (n, 5 * n, 7 * n)) for n in range(1, 5)]
    four = package(tmp_path, ct_findings(images, *found), images)
    for key_images, captures in (("largest", 3), ("all", 4), ("clips", 0), ("none", 0)):
        there = accepting(pacs, *EVERY)
        deliver(there, four, Profile(key_images=key_images))
        assert classes(there) == [SEG, THREE_D, *[CAPTURE] * captures], key_images
    assert Profile().key_images == "largest"


def test_a_still_ultrasound_image_has_captures_only_on_request(pacs: Start, tmp_path: Path) -> None:
    image = us_image(tmp_path / "us")
    still = package(tmp_path, us_findings([image], mass(1, (0, 12, 20))), [image])
    for key_images, captures in (("largest", 0), ("all", 1)):
        there = accepting(pacs, *EVERY)
        deliver(there, still, Profile(key_images=key_images))
        assert classes(there) == [SEG, THREE_D, *[CAPTURE] * captures]


def test_captures_in_place_of_a_segmentation_are_all_and_none_comes_twice(pacs: Start, tmp_path: Path) -> None:
    images = ct_series(tmp_path / "ct")
    four = package(tmp_path, ct_findings(images, *(nodule(n, (n, 5 * n, 7 * n)) for n in range(1, 5))), images)
    there = accepting(pacs, CAPTURE, COMPREHENSIVE)
    deliver(there, four, Profile())
    assert classes(there) == [CAPTURE] * 4 + [COMPREHENSIVE]


def test_the_report_for_ohif_is_sent_to_the_peer_that_wants_it(pacs: Start, ct: Package) -> None:
    """The same results to two peers: each gets its own form, under UIDs of its own."""
    plain, ohif = accepting(pacs, *EVERY), accepting(pacs, *EVERY)
    deliver(plain, ct)
    deliver(ohif, ct, Profile(viewer="ohif", key_images="none"))
    one, other = received(plain)[1], received(ohif)[1]
    assert one.SOPClassUID == other.SOPClassUID == THREE_D
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert (len(read.groups(one)), len(read.groups(other))) == (2, 6)
    both = accepting(pacs, *EVERY)
    deliver(both, ct, Profile(viewer="ohif", label_map=True, key_images="none"))
    segmentation, report = received(both)
    assert str(segmentation.SOPInstanceUID) in {group.segment[0] for group in read.groups(report) if group.segment}


RLE = "1.2.840.10008.1.2.5"


def test_a_label_map_goes_in_rle_where_that_is_taken_and_a_binary_one_never(pacs: Start, ct: Package) -> None:
    """RLE is for whole bytes, PS3.5 A.4.2; what it holds is the label map that goes without."""
    profile = Profile(label_map=True, key_images="none")
    small, plain = accepting(pacs, *EVERY, syntaxes=[RLE, EXPLICIT_LE]), accepting(pacs, *EVERY)
    assert [r.text for r in deliver(small, ct, profile)] == ["0x0000 Success"] * 2
    deliver(plain, ct, profile)
    offer = next(ResultForms(profile).offers(ct))
    files = {
        form.transfer_syntax_uid: pydicom.dcmread(ResultForms(profile).prepare(ct, offer, form, {}).paths[0])
        for form in offer.forms
        if form.sop_class_uid == LABELMAP
    }
    assert set(files) == {RLE, EXPLICIT_LE, IMPLICIT_LE}
    meant = [(s.number, {ref: m.tolist() for ref, m in s.masks.items()}) for s in read.segments(files[EXPLICIT_LE])]
    assert meant
    for file in files.values():
        assert [(s.number, {r: m.tolist() for r, m in s.masks.items()}) for s in read.segments(file)] == meant
        assert file.SOPInstanceUID == files[RLE].SOPInstanceUID
    assert {form.transfer_syntax_uid for form in offer.forms if form.sop_class_uid == SEG} == {EXPLICIT_LE, IMPLICIT_LE}


def test_a_capture_that_went_in_place_of_the_segmentation_is_not_sent_twice(pacs: Start, clip: Package) -> None:
    there = accepting(pacs, CAPTURE, COMPREHENSIVE)
    receipts = deliver(there, clip)
    assert [receipt.sop_class_uid for receipt in receipts] == [CAPTURE, COMPREHENSIVE]


def test_what_is_not_needed_does_not_fail_the_rest(pacs: Start, clip: Package) -> None:
    refused = accepting(pacs, *EVERY, answer=lambda number: 0xC000 if number == 3 else 0x0000)
    segmentation, report, capture = deliver(refused, clip)
    assert (segmentation.stored, report.stored, capture.stored) == (True, True, False)


def test_nothing_that_a_result_can_be_is_taken(pacs: Start, ct: Package) -> None:
    there = accepting(pacs, SEG)
    with pytest.raises(Undeliverable, match="Comprehensive SR not accepted: the SOP class is not supported; Enhanced"):
        deliver(there, ct)
    assert classes(there) == [SEG], "the other result has gone out"
    with pytest.raises(Undeliverable, match="accepts none of what is to be sent"):
        deliver(accepting(pacs, "1.2.840.10008.5.1.4.1.1.2"), ct)


def test_a_class_accepted_and_then_refused_by_status(pacs: Start, ct: Package) -> None:
    """0x0122 is remembered; 0xA900 is of this object alone. Either way the next form is tried on the same line."""
    memory = Remembered()
    there = accepting(pacs, *EVERY, answer=lambda number: 0x0122 if number == 1 else 0x0000)
    refused, structure_set, report = deliver(there, ct, memory=memory)
    assert (refused.stored, refused.status) == (False, 0x0122)
    assert structure_set.text.startswith("0x0000 Success; RT Structure Set in place of Segmentation: 0x0122")
    assert report.text == "0x0000 Success"
    assert memory.answers[SEG, EXPLICIT_LE].refused
    memory = Remembered()
    there = accepting(pacs, *EVERY, answer=lambda number: 0xA900 if number == 1 else 0x0000)
    assert [r.stored for r in deliver(there, ct, memory=memory)] == [False, True, True]
    assert memory.answers[SEG, EXPLICIT_LE].refused is None
    there = accepting(pacs, *EVERY, answer=lambda number: 0x0124)
    with pytest.raises(Undeliverable, match="Not authorized"):
        deliver(there, ct)
    assert len(there.received) == 2, "another form would be no more welcome"
    with pytest.raises(Deferred, match="Out of Resources"):
        deliver(accepting(pacs, *EVERY, answer=lambda number: 0xA700), ct)


def test_what_was_refused_is_not_proposed_again_until_it_is(pacs: Start, ct: Package) -> None:
    memory = Remembered()
    there = accepting(pacs, RTSTRUCT, ENHANCED)
    first = deliver(there, ct, memory=memory)
    again = deliver(there, ct, memory=memory)
    assert [r.sop_instance_uid for r in first] == [r.sop_instance_uid for r in again]
    asked_first, asked_again = ({uid for uid, _ in proposal} for proposal in there.proposed)
    assert asked_first == {SEG, RTSTRUCT, GSPS, CAPTURE, THREE_D, COMPREHENSIVE, ENHANCED, BASIC_TEXT}
    assert asked_again == {RTSTRUCT, ENHANCED}
    assert "RT Structure Set in place of Segmentation: the SOP class is not supported" in again[0].text

    upgraded = accepting(pacs, *EVERY)
    assert [r.sop_class_uid for r in deliver(upgraded, ct, memory=memory)] == [RTSTRUCT, ENHANCED]
    for key, answer in memory.answers.items():
        memory.answers[key] = Answer(*key, answer.refused, NOON - timedelta(hours=25))
    assert [r.sop_class_uid for r in deliver(upgraded, ct, memory=memory)] == [SEG, THREE_D]


def test_what_was_refused_is_asked_again_when_nothing_else_goes(pacs: Start, ct: Package) -> None:
    """A PACS that has changed: it takes now what it refused, and no more what it took."""
    memory = Remembered()
    deliver(accepting(pacs, RTSTRUCT, ENHANCED), ct, memory=memory)
    there = accepting(pacs, SEG, COMPREHENSIVE)
    texts = [r.text for r in deliver(there, ct, memory=memory)]
    assert texts == ["0x0000 Success", "0x0000 Success" + SECOND_BEST]
    assert len(there.received) == 2


def test_nothing_of_what_we_send_starts_a_pipeline_when_it_comes_back(ct: Package) -> None:
    """A PACS may forward everything: each form is received, and known as ours."""
    forms = ResultForms(Profile(label_map=True, omit_empty_frames=False, key_objects=True))
    seen = set()
    for offer in forms.offers(ct):
        for form in offer.forms:
            for path in forms.prepare(ct, offer, form, {}).paths:
                header = pydicom.dcmread(path, stop_before_pixels=True)
                assert header.file_meta.TransferSyntaxUID == form.transfer_syntax_uid
                assert header.SOPClassUID == form.sop_class_uid
                assert form.sop_class_uid in STORAGE_SOP_CLASSES
                assert not_ours(header)
                seen.add(form.sop_class_uid)
    assert seen == set(EVERY)


def test_a_form_is_made_once(pacs: Start, ct: Package) -> None:
    there = accepting(pacs, CAPTURE)
    deliver(there, ct)
    made = {path: path.stat().st_mtime_ns for path in (ct.paths[0].parent / "forms").rglob("*.dcm")}
    assert made
    deliver(there, ct)
    assert {p: p.stat().st_mtime_ns for p in (ct.paths[0].parent / "forms").rglob("*.dcm")} == made


def test_a_form_that_was_half_written_is_written_anew(ct: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ResultForms(Profile())
    offer = next(forms.offers(ct))
    form = next(each for each in offer.forms if each.name == "RT Structure Set")

    def full(dataset: Dataset, file: BinaryIO, **how: object) -> None:
        file.write(bytes(1000))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "save_as", full)
    with pytest.raises(TryAgain, match=r"RT Structure Set cannot be written .*No space left on device"):
        forms.prepare(ct, offer, form, {})
    monkeypatch.undo()
    [path] = forms.prepare(ct, offer, form, {}).paths
    assert pydicom.dcmread(path).ROIContourSequence
