"""command: a program that is not ours reads DICOM files and writes masks or numbers; nothing is believed unchecked."""

from __future__ import annotations

import json
import os
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from dicom_sr import codes, encode
from dicom_sr.findings import Findings
from dicom_sr.read import segments, summary
from dicom_sr.validate import problems
from models.command import pipeline as command_pipeline
from models.command.pipeline import Command, digest, hand_over, names_of
from models.command.sandbox import KNOWN, NO_SANDBOX, why_not
from models.options import BadOptions
from models.pipeline import BadOutput
from models.read import read_ct
from pacs_node.errors import GiveUp, Interrupted
from pacs_node.infer import Inference
from tests.factories import ct_series, us_image

WHEN = datetime(2026, 3, 1, 12, 0)
SPACING_MM = (2.5, 0.8, 0.7)
LABELS = {"1": {"name": "Bright", "type": ["78961009", "SCT", "Spleen"], "measure": ["volume", "intensity"]}}

# What the programs below have in common: they know nothing of this project, and read the files as any program would.
READING = """
import json, os, sys, time
from pathlib import Path
import numpy as np, nibabel, pydicom

source, target = Path(sys.argv[1]), Path(sys.argv[2])
images = [pydicom.dcmread(path) for path in sorted(source.glob("*.dcm"))]
row, column = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
normal = np.cross(row, column)
images.sort(key=lambda image: float(np.dot(image.ImagePositionPatient, normal)))
hu = np.stack([i.pixel_array * float(i.RescaleSlope) + float(i.RescaleIntercept) for i in images])
down, across = map(float, images[0].PixelSpacing)
first, last = (np.array(images[k].ImagePositionPatient, float) for k in (0, -1))
lps = np.eye(4)  # (x, y, z) -> mm
lps[:3, 0], lps[:3, 1], lps[:3, 2] = row * across, column * down, (last - first) / (len(images) - 1)
lps[:3, 3] = first
ras = np.diag([-1, -1, 1, 1]) @ lps
mask = (hu > 100).astype(np.uint8).transpose(2, 1, 0)
"""
# as dcm2niix writes: rows from the back to the front, and the affine says so
FLIPPED = """
flip = np.eye(4)
flip[1, 1], flip[1, 3] = -1, mask.shape[1] - 1
nibabel.save(nibabel.Nifti1Image(mask[:, ::-1], ras @ flip), target / "case.nii.gz")
"""
PLAIN = 'nibabel.save(nibabel.Nifti1Image(mask, ras), target / "case.nii.gz")'
SEG = """
import highdicom as hd
from pydicom.sr.codedict import codes
described = hd.seg.SegmentDescription(
    segment_number=1, segment_label="Their liver", segmented_property_category=codes.cid7150.AnatomicalStructure,
    segmented_property_type=codes.SCT.Liver, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
    algorithm_identification=hd.AlgorithmIdentificationSequence("theirs", codes.cid7162.ArtificialIntelligence, "9"),
)
kind = os.environ.get("KIND", "BINARY")
pixels = (hu > 100) if kind == "BINARY" else (hu > 100).astype(float) * 0.7
seg = hd.seg.Segmentation(
    images, pixels, kind, [described], hd.UID(), 1, hd.UID(), 1, "Theirs", "M", "1", "1",
)
seg.save_as(target / "theirs.dcm")
"""


def bright_block() -> np.ndarray:
    hu = np.full((20, 48, 40), -1000, np.int16)
    hu[2:18, 6:42, 5:35] = 40
    hu[5:11, 10:22, 20:31] = 200
    return hu


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    """A program of these lines, and the words that start it."""

    def written(*parts: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text("\n".join(textwrap.dedent(part) for part in parts))
        return [sys.executable, str(path), "{input}", "{output}"]

    return written


@pytest.fixture
def series(tmp_path: Path) -> list[Dataset]:
    (tmp_path / "ct").mkdir()
    return ct_series(tmp_path / "ct", voxels=bright_block(), spacing_mm=SPACING_MM)


def options(command: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"command": list(command), "name": "Threshold", "version": "2.1", "labels": LABELS, **more}


def run(command: Sequence[str], series: Sequence[Dataset], **more: Any) -> Findings:
    files = [Path(str(image.filename)) for image in series]
    return Command("cpu", options(command, **more)).run(files, lambda *_: None)


def whole(findings: Findings, shape: Sequence[int]) -> np.ndarray:
    [finding] = findings.findings
    mask = np.zeros(shape, bool)
    mask[tuple(slice(o, o + n) for o, n in zip(finding.offset_zyx, finding.mask.shape, strict=True))] = finding.mask
    return mask


# ------------------------------------------------------------------------------------------- masks, where they lie


@pytest.mark.parametrize("writer", [PLAIN, FLIPPED, SEG], ids=["nifti", "nifti-flipped", "seg"])
@pytest.mark.parametrize("orientation", ["HFS", "FFS", "sagittal", "oblique"])
def test_a_mask_comes_back_voxel_by_voxel(
    program: Callable[..., list[str]], tmp_path: Path, orientation: str, writer: str
) -> None:
    (tmp_path / "ct").mkdir()
    series = ct_series(
        tmp_path / "ct",
        voxels=bright_block(),
        spacing_mm=SPACING_MM,
        orientation=orientation,
        descending=True,
        shuffled_instance_numbers=True,
    )
    findings = run(program(READING, writer), series)
    volume = read_ct([Path(str(image.filename)) for image in series])
    assert np.array_equal(whole(findings, volume.hu.shape), volume.hu == 200)
    assert findings.images == volume.images
    assert findings.warnings == ()


@pytest.mark.parametrize("writer", [FLIPPED, SEG], ids=["nifti", "seg"])
def test_results_are_valid_and_our_own(program: Callable[..., list[str]], series: list[Dataset], writer: str) -> None:
    findings = run(program(READING, writer), series)
    objects = encode(findings, series, when=WHEN)
    segmentation, report = objects
    for each in objects:
        assert problems(each, series, findings=findings, segmentations=[segmentation]) == []
    [segment] = segments(segmentation)
    assert (segment.label, segment.type.value) == ("Bright", "78961009")  # the route's table, not their words
    assert segmentation.Manufacturer == "pacs-node"
    assert segmentation.SegmentSequence[0].SegmentAlgorithmName == "Threshold"
    assert findings.algorithm.version.startswith("2.1+")
    assert "Certainty" not in str(report)


def test_a_segmentation_has_names_of_its_own_where_the_route_gives_none(
    program: Callable[..., list[str]], series: list[Dataset]
) -> None:
    findings = run(program(READING, SEG), series, labels={})
    [finding] = findings.findings
    assert (finding.label, finding.type.value, finding.site.value) == ("Their liver", "10200004", "10200004")
    [volume] = finding.measurements
    assert (volume.name, volume.value) == (codes.VOXEL_VOLUME, round(6 * 12 * 11 * 2.5 * 0.8 * 0.7))


def test_a_fractional_segmentation_is_cut_at_half_and_that_is_said(
    program: Callable[..., list[str]], series: list[Dataset]
) -> None:
    findings = run(program(READING, SEG), series, environment={"KIND": "FRACTIONAL"})
    assert findings.findings[0].mask.sum() == 6 * 12 * 11
    assert findings.warnings == ("theirs.dcm is fractional: what is at least half counts as marked",)


def test_the_same_command_says_the_same(program: Callable[..., list[str]], series: list[Dataset]) -> None:
    command = program(READING, FLIPPED)
    made = [encode(replace(run(command, series), facts={}), series, when=WHEN) for _ in range(2)]
    assert made[0] == made[1]
    before = digest(command)
    Path(command[1]).write_text(Path(command[1]).read_text() + "\n# changed")
    assert digest(command) != before


def test_it_reads_copies_named_by_their_instance_number(tmp_path: Path, series: list[Dataset]) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    originals = [Path(str(image.filename)) for image in series]
    hand_over(originals, names_of(series), folder)
    assert [path.name for path in sorted(folder.iterdir())] == [f"{n:05d}.dcm" for n in range(1, len(series) + 1)]
    for image, original in zip(series, originals, strict=True):
        copied = folder / f"{image.InstanceNumber:05d}.dcm"
        assert copied.read_bytes() == original.read_bytes()
        assert copied.stat().st_mode & 0o222 == 0
        assert copied.stat().st_ino != original.stat().st_ino
    folder.chmod(0o700)


def test_it_cannot_change_the_nodes_images(
    program: Callable[..., list[str]], series: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = {Path(str(image.filename)): Path(str(image.filename)).read_bytes() for image in series}
    spoil = """
    import os, sys
    for name in os.listdir(sys.argv[1]):
        path = os.path.join(sys.argv[1], name)
        os.chmod(path, 0o600)
        open(path, "w").close()
    open(sys.argv[2] + "/results.json", "w").write("{}")
    """
    monkeypatch.setattr(command_pipeline, "sandbox", lambda: None)
    run(program(spoil), series)
    assert {path: path.read_bytes() for path in originals} == originals
    if not (why := why_not(KNOWN[0])):
        monkeypatch.setattr(command_pipeline, "sandbox", lambda: KNOWN[0])
        with pytest.raises(BadOutput, match="Read-only file system"):
            run(program(spoil), series)
    else:
        assert "bwrap" in why


# ------------------------------------------------------------------------------------------------- numbers and words


def test_results_json_adds_numbers_codes_and_words(program: Callable[..., list[str]], series: list[Dataset]) -> None:
    said = {
        "labels": {"1": {"name": "Theirs", "type": ["10200004", "SCT", "Liver"]}},
        "findings": [
            {
                "label": 1,
                "certainty": 0.87,
                "measurements": [
                    {"name": ["112181", "DCM", "Mean Attenuation"], "value": 199.5, "unit": ["[hnsf'U]", "UCUM", "HU"]}
                ],
                "evaluations": [
                    {"name": ["121071", "DCM", "Finding"], "value": ["52101004", "SCT", "Present"]},
                ],
            }
        ],
        "warnings": ["the window was narrow"],
    }
    write = f"(target / 'results.json').write_text({json.dumps(said)!r})"
    findings = run(program(READING, PLAIN, write), series, labels={})
    [finding] = findings.findings
    assert (finding.label, finding.type.value, finding.certainty) == ("Theirs", "10200004", 0.87)
    assert [m.value for m in finding.measurements][-1] == 199.5
    assert findings.warnings == ("the window was narrow",)
    objects = encode(findings, series, when=WHEN)
    for each in objects:
        assert problems(each, series, findings=findings, segmentations=objects[:1]) == []
    assert "Certainty of Finding" in str(objects[1])
    findings = run(program(READING, PLAIN, write), series)
    assert findings.findings[0].label == "Bright"  # the route's name counts


def test_an_empty_answer_is_nothing_found(program: Callable[..., list[str]], series: list[Dataset]) -> None:
    findings = run(program("import sys; open(sys.argv[2] + '/results.json', 'w').write('{}')"), series)
    assert findings.findings == ()
    [report] = encode(findings, series, when=WHEN)
    assert problems(report, series, findings=findings) == []
    assert summary(report) == "No spleen found."


def test_an_empty_answer_of_a_command_without_a_table_is_nothing_found_too(
    program: Callable[..., list[str]], series: list[Dataset]
) -> None:
    findings = run(program("import sys; open(sys.argv[2] + '/results.json', 'w').write('{}')"), series, labels={})
    [report] = encode(findings, series, when=WHEN)
    assert problems(report, series, findings=findings) == []
    assert summary(report) == "No lesion found."


def test_a_certainty_may_be_said_of_a_segment_by_its_number(
    program: Callable[..., list[str]], series: list[Dataset]
) -> None:
    """Of one that is named by its own codes; and of a label that marks nothing in this patient."""
    write = '(target / \'results.json\').write_text(\'{"findings": [{"label": 1, "certainty": 0.7}]}\')'
    [found] = run(program(READING, SEG, write), series, labels={}).findings
    assert (found.label, found.certainty) == ("Their liver", 0.7)
    assert run(program(READING, "mask[:] = 0", PLAIN, write), series).findings == ()


LESION = {
    "name": "Nodule",
    "type": ["27925004", "SCT", "Nodule"],
    "category": ["49755003", "SCT", "Morphologically Abnormal Structure"],
    "site": ["39607008", "SCT", "Lung"],
}


def test_a_detector_answers_in_boxes(program: Callable[..., list[str]], series: list[Dataset]) -> None:
    said = {
        "findings": [
            {"label": 1, "file": "00006.dcm", "last_file": "00011.dcm", "rows": [10, 21], "columns": [20, 30],
             "certainty": 0.91},
            {"label": 1, "file": "00002.dcm", "certainty": 0.4},
        ]
    }  # fmt: skip
    findings = run(
        program(f"import sys; open(sys.argv[2] + '/results.json', 'w').write({json.dumps(said)!r})"),
        series,
        labels={"1": LESION},
    )
    box, image = findings.findings
    assert (box.label, box.extent, box.offset_zyx, box.mask.shape) == ("Nodule 1", "box", (5, 10, 20), (6, 12, 11))
    assert (image.label, image.extent, image.key_image, image.certainty) == ("Nodule 2", "none", 1, 0.4)
    objects = encode(findings, series, when=WHEN)
    assert [each.Modality for each in objects] == ["SR"]
    for each in objects:
        assert problems(each, series, findings=findings) == []


def test_a_classifier_answers_in_numbers_and_codes(program: Callable[..., list[str]], series: list[Dataset]) -> None:
    """Nothing was sought, so nothing is absent."""
    said = {
        "measurements": [
            {"name": ["111047", "DCM", "Probability of cancer"], "value": 12.0, "unit": ["%", "UCUM", "%"]}
        ],
        "evaluations": [{"name": ["121071", "DCM", "Finding"], "value": ["52101004", "SCT", "Present"]}],
    }
    write = f"import sys; open(sys.argv[2] + '/results.json', 'w').write({json.dumps(said)!r})"
    findings = run(program(write), series, labels={})
    [report] = encode(findings, series, when=WHEN)
    assert problems(report, series, findings=findings) == []
    assert "Absent" not in str(report)
    assert summary(report) == "Finding: present. Probability of cancer: 12 %."


def test_images_that_are_no_volume_have_boxes_and_numbers_too(
    program: Callable[..., list[str]], tmp_path: Path
) -> None:
    image = us_image(tmp_path / "us")
    said = {"findings": [{"label": 1, "file": f"{image.InstanceNumber:05d}.dcm", "rows": [3, 9], "columns": [4, 20]}]}
    write = f"import sys; open(sys.argv[2] + '/results.json', 'w').write({json.dumps(said)!r})"
    findings = run(program(write), [image], labels={"1": LESION}, modality=["US"], volume=False)
    assert (findings.geometry, findings.findings[0].mask.shape) == ("image", (1, 7, 17))
    objects = encode(findings, [image], when=WHEN)
    for each in objects:
        assert problems(each, [image], findings=findings) == []
    with pytest.raises(BadOutput, match="is a mask; masks need volume = true"):
        run(program("import sys; open(sys.argv[2] + '/a.nii', 'w')"), [image], modality=["US"], volume=False)


# ------------------------------------------------------------------------------------------------------- bad output


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("pass", r"ended well and wrote no result: no DICOM file, no NIfTI file, no results\.json"),
        ("ras[0, 3] += 0.5; " + PLAIN, r"case\.nii\.gz lies 0\.50 mm beside the images, at most 0\.1 mm is allowed"),
        ("ras[:, 1] *= 2; " + PLAIN, r"case\.nii\.gz lies on another grid than the images"),
        (
            "mask = mask[1:]; " + PLAIN,
            r"case\.nii\.gz has 20 x 48 x 39 voxels, the images 20 x 48 x 40 \(slices, rows, columns\)",
        ),
        ("mask = mask * 9; " + PLAIN, r"case\.nii\.gz holds label 9; the table of the route names 1\."),
        ("mask = mask * 0.5; " + PLAIN, r"case\.nii\.gz holds 0 to 0\.5, which are no whole numbers"),
        ("(target / 'case.nii').write_bytes(b'nothing')", r"case\.nii cannot be read as NIfTI: ImageFileError"),
        (
            "image = nibabel.Nifti1Image(mask, None)\n"
            "image.header.set_sform(None, 0); image.header.set_qform(None, 0)\n"
            "nibabel.save(image, target / 'case.nii')",
            "does not say where it lies in the patient",
        ),
        ("for i in images: i.FrameOfReferenceUID = '1.2.3'\n" + SEG, r"theirs\.dcm has another frame of reference"),
        (
            "for i in images: i.ImagePositionPatient[0] += 3\n" + SEG,
            r"frame 1 of theirs\.dcm lies 3\.00 mm beside the nearest image",
        ),
        (
            "for i in images: i.ImagePositionPatient[2] += 500\n" + SEG,
            r"frame 1 of theirs\.dcm lies beyond the images",
        ),
        (SEG + "\nseg = pydicom.dcmread(target / 'theirs.dcm'); del seg.SegmentSequence\n"
         "seg.save_as(target / 'theirs.dcm')", r"theirs\.dcm is no Segmentation that can be read: AttributeError"),
        ("(target / 'results.json').write_text('{')", r"results\.json of the command cannot be used: no JSON"),
        (
            "(target / 'results.json').write_text('{\"measurement\": []}')",
            r"'measurement': Extra inputs are not permitted",
        ),
        (
            "(target / 'results.json').write_text('{\"findings\": [{\"label\": 7}]}')",
            r"speaks of label 7, which nothing marks or names",
        ),
        (
            "(target / 'results.json').write_text('{\"findings\": [{\"label\": 1, \"file\": \"7.dcm\"}]}')",
            r"names '7\.dcm', which is no file that it was given",
        ),
        (
            "(target / 'results.json').write_text('{\"findings\": [{\"label\": 1, \"file\": \"00007.dcm\", "
            "\"rows\": [1, 2], \"columns\": [3, 400]}]}')",
            r"has a box to column 400 of 00007\.dcm, whose last is 39",
        ),
        (
            "(target / 'results.json').write_text('{\"measurements\": [{\"name\": [\"1\", \"X\", \"n\"], "
            "\"value\": NaN, \"unit\": [\"mm\", \"UCUM\", \"mm\"]}]}')",
            r"'measurements\.0\.value': Input should be a finite number",
        ),
    ],
)  # fmt: skip
def test_bad_output_is_a_reason_in_words(
    program: Callable[..., list[str]], series: list[Dataset], lines: str, said: str
) -> None:
    with pytest.raises(BadOutput, match=said):
        run(program(READING, lines), series)


def test_a_link_in_the_output_is_not_followed(
    program: Callable[..., list[str]], series: list[Dataset], tmp_path: Path
) -> None:
    (tmp_path / "secret.json").write_text("{}")
    link = f"import os, sys; os.symlink({str(tmp_path / 'secret.json')!r}, sys.argv[2] + '/results.json')"
    with pytest.raises(BadOutput, match="wrote no result"):
        run(program(link), series)


# ------------------------------------------------------------------------------------- how it ends, and what is left


def test_a_failure_ends_with_its_last_words_without_the_patient(
    program: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "ct").mkdir()
    series = ct_series(tmp_path / "ct", voxels=bright_block(), PatientName="DOE^JANE", PatientID="ID-4711")
    lines = "\n".join(f"print('line {k}', file=sys.stderr)" for k in range(10))
    with pytest.raises(BadOutput) as told:
        run(
            program(READING, lines, "sys.exit(f'{images[0].PatientName} {images[0].PatientID} is bad'.lower())"), series
        )
    assert str(told.value) == "the command ended with exit code 1: line 8 / line 9 / ... ... is bad"


def test_a_signal_is_named(program: Callable[..., list[str]], series: list[Dataset]) -> None:
    with pytest.raises(BadOutput, match=r"the command ended with (signal|exit code) (11|139)"):
        run(program("import os; os.kill(os.getpid(), 11)"), series)


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == b"Z"


def soon(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


LINGERING = """
import os, subprocess, sys, time
code = "import time; time.sleep(600)"
for detached in (False, True):
    subprocess.Popen([sys.executable, "-c", code, MARK], start_new_session=detached)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", code, MARK])
    os._exit(0)
open(STARTED, "w").close()
"""


def marked(word: str) -> list[int]:
    """Processes with this word on their command line, in whatever namespace they live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0") and not gone(int(path.parent.name)):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture(params=["as it is here", "no sandbox"])
def around(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With what this machine has, and as on one that has nothing: all must end there, too."""
    if request.param == "no sandbox":
        monkeypatch.setattr(command_pipeline, "sandbox", lambda: None)
    return str(request.param)


def test_a_timeout_ends_it_with_all_that_it_started(
    program: Callable[..., list[str]], series: list[Dataset], tmp_path: Path, around: str
) -> None:
    mark, started = f"mark-{os.getpid()}-{time.monotonic_ns()}", tmp_path / "started"
    names = f"MARK, STARTED = {mark!r}, {str(started)!r}"
    begun = time.monotonic()
    with pytest.raises(BadOutput, match=r"was ended after 2 s \(timeout_s\), with all that it started"):
        run(program(names, LINGERING, "time.sleep(600)"), series, timeout_s=2.0)
    assert time.monotonic() - begun < 20
    assert started.exists()
    assert soon(lambda: not marked(mark)), marked(mark)


def test_what_it_leaves_running_ends_with_it(
    program: Callable[..., list[str]], series: list[Dataset], tmp_path: Path, around: str
) -> None:
    mark, started = f"mark-{os.getpid()}-{time.monotonic_ns()}", tmp_path / "started"
    names = f"MARK, STARTED = {mark!r}, {str(started)!r}"
    run(program(names, LINGERING, "open(sys.argv[2] + '/results.json', 'w').write('{}')"), series)
    assert started.exists()
    assert soon(lambda: not marked(mark)), marked(mark)


def test_too_much_memory_ends_it(program: Callable[..., list[str]], series: list[Dataset], around: str) -> None:
    eats = "import time; held = bytearray(400_000_000); held[::4096] = b'x' * len(held[::4096]); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(BadOutput, match=r"was ended: it took more than 0\.2 GB \(memory_gb\)"):
        run(program(eats), series, memory_gb=0.2)
    assert time.monotonic() - begun < 30


def test_it_has_no_network_where_the_machine_can_take_it(
    program: Callable[..., list[str]], series: list[Dataset]
) -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        calls = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
        answer = "import sys; open(sys.argv[2] + '/results.json', 'w').write('{}')"
        own = run(program(calls, answer), series, network="own")
        assert own.warnings == ()
        door.accept()[0].close()
        if all(why_not(each) for each in KNOWN):
            assert NO_SANDBOX in run(program(calls, answer), series).warnings
        else:
            with pytest.raises(BadOutput, match=r"Connection refused|Network is unreachable|Errno"):
                run(program(calls, answer), series)


@pytest.mark.parametrize("kind", KNOWN, ids=lambda each: " ".join(each.prefix(Path("/i"), False)[:2]))
def test_each_kind_of_sandbox_keeps_the_network_out(
    program: Callable[..., list[str]], series: list[Dataset], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    if why := why_not(kind):
        pytest.skip(f"{kind.name}: {why}")
    monkeypatch.setattr(command_pipeline, "sandbox", lambda: kind)
    counts = "names = [l.split(':')[0].strip() for l in open('/proc/net/dev') if ':' in l]"
    findings = run(program(READING, counts, "assert names == ['lo'], names", PLAIN), series)
    assert len(findings.findings) == 1


def test_without_a_sandbox_the_job_says_so(
    program: Callable[..., list[str]], series: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_pipeline, "sandbox", lambda: None)
    assert run(program(READING, PLAIN), series).warnings == (NO_SANDBOX,)


def test_the_nodes_environment_is_not_handed_on(
    program: Callable[..., list[str]], series: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    asks = """
    import json, os, sys
    assert "DATABASE_PASSWORD" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["WEIGHTS"] == "/opt/weights"
    open(os.environ["TMPDIR"] + "/scratch", "w").close()
    open(sys.argv[2] + "/results.json", "w").write("{}")
    """
    run(program(asks), series, environment={"WEIGHTS": "/opt/weights"})


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": [sys.executable, "{input}"]}, "no word of it holds {output}, the folder that it writes"),
        ({"command": ["/no/such", "{input}", "{output}"]}, "there is no program '/no/such' on this machine"),
        ({"command": []}, "'command'"),
        ({"timeout_s": 0.0}, "'timeout_s'"),
        ({"modality": ["US"]}, "modality 'US' is none of CT, MR, PT; volume = false for images that are no slices"),
        ({"modality": ["XX"], "volume": False}, "modality 'XX' is none of"),
        ({"shell": True}, "'shell'"),
    ],
)
def test_options_are_refused_in_words(changes: Mapping[str, Any], said: str) -> None:
    with pytest.raises(BadOptions, match=said):
        Command("cpu", {**options([sys.executable, "{input}", "{output}"]), **changes})


# --------------------------------------------------------------------------------------- through the inference process


@pytest.fixture
def inference() -> Iterator[Inference]:
    inference = Inference("cpu", 60)
    yield inference
    inference.stop()


def test_the_inference_process_runs_it_and_tells_its_reasons(
    inference: Inference, program: Callable[..., list[str]], series: list[Dataset]
) -> None:
    files = [Path(str(image.filename)) for image in series]
    findings = inference.run("command", options(program(READING, FLIPPED)), files, lambda *_: None)
    assert [finding.label for finding in findings.findings] == ["Bright"]
    with pytest.raises(GiveUp, match=r"the command ended with exit code 3: no licence"):
        inference.run(
            "command", options(program("import sys; print('no licence', file=sys.stderr); sys.exit(3)")), files,
            lambda *_: None,
        )  # fmt: skip


@pytest.mark.parametrize("how", ["timeout of the job", "stop of the node"])
def test_it_ends_when_the_inference_process_is_killed(
    program: Callable[..., list[str]],
    series: list[Dataset],
    tmp_path: Path,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kill -9 of the process that asked: nothing there can tidy up any more."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    inference = Inference("cpu", 60)
    mark, started = f"mark-{os.getpid()}-{time.monotonic_ns()}", tmp_path / "started"
    names = f"MARK, STARTED = {mark!r}, {str(started)!r}"
    command = options(program(names, LINGERING, "time.sleep(600)"))
    assert inference.card("command", command).name == "command"
    if how == "timeout of the job":
        inference.timeout_s = 3
    else:
        threading.Thread(target=lambda: soon(started.exists) and inference.close(), daemon=True).start()
    with pytest.raises((GiveUp, Interrupted), match=r"no answer within 3 s|stopped with the node"):
        inference.run("command", command, [Path(str(i.filename)) for i in series], lambda *_: None)
    assert started.exists()
    assert soon(lambda: not marked(mark)), marked(mark)
    assert soon(lambda: list(scratch.iterdir()) == [])  # the patient's images are gone, too


def test_mr_is_read_in_its_own_values(program: Callable[..., list[str]], tmp_path: Path) -> None:
    series = mr_series(tmp_path)
    findings = run(
        program(READING.replace("* float(i.RescaleSlope) + float(i.RescaleIntercept)", ""), FLIPPED),
        series,
        modality=["MR"],
    )
    [finding] = findings.findings
    signal = {(m.name, m.derivation): m.value for m in finding.measurements}
    assert signal[codes.MR_SIGNAL, codes.MEAN] == 40000.0
    assert whole(findings, (12, 32, 40)).sum() == 5 * 6 * 7
    objects = encode(findings, series, when=WHEN)
    for each in objects:
        assert problems(each, series, findings=findings, segmentations=objects[:1]) == []


def mr_series(tmp_path: Path) -> list[Dataset]:
    """An MR as scanners write it: unsigned, no rescaling, signal beyond 32767."""
    (tmp_path / "mr").mkdir()
    signal = np.full((12, 32, 40), 50)
    signal[3:8, 10:16, 20:27] = 40000
    images = ct_series(
        tmp_path / "mr",
        voxels=np.zeros((12, 32, 40), np.int16),
        name="mr",
        Modality="MR",
        SOPClassUID=pydicom.uid.MRImageStorage,
        RescaleSlope=None,
        RescaleIntercept=None,
        RescaleType=None,
        KVP=None,
        GantryDetectorTilt=None,
        PixelRepresentation=0,
        BitsStored=16,
        ImageType=["ORIGINAL", "PRIMARY", "M"],
    )
    for image, plane in zip(images, signal, strict=True):
        image.PixelData = plane.astype("<u2").tobytes()
        image.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        image.save_as(str(image.filename), enforce_file_format=True)
    return images
