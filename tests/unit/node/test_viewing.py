"""What is looked at: at its place in the patient whichever way a series lies, naming nobody, and within bounds."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from dicom_sr import encode
from dicom_sr.capture import CALIPER
from dicom_sr.findings import Findings
from models.read import read_ct
from pacs_node import viewing_process
from pacs_node.records import Stored
from pacs_node.viewing import FOLDER, Asked, Made, Viewing, folder_name
from pacs_node.viewing_process import MOST_SHOWN, Images, NotShown, images_of, must_have_room
from tests.factories import ORIENTATIONS, ct_series, point_lps_mm, us_image
from tests.harness import ROOT, wait_for
from tests.results import WHEN, ct_findings, mass, nodule, us_findings
from tests.viewers import chest

SHAPE = (10, 24, 32)
# no middle and no edge, other on every axis: an image that is turned round or exchanged shows it elsewhere
MARK = (slice(2, 4), slice(5, 8), slice(20, 25))
BRIGHT = 900
SECRET = {"PatientName": "Wachtel^Zora", "PatientID": "SECRET-4711", "PatientBirthDate": "19330707"}


def marked() -> np.ndarray:
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[MARK] = BRIGHT
    return voxels


def finding_of_mark(images: Sequence[Dataset], files: Sequence[Path]) -> Findings:
    """The mark as a mask on the grid on which results count images: ascending along the normal."""
    volume = read_ct(files)
    where = np.argwhere(volume.hu == BRIGHT)
    first, last = where.min(axis=0), where.max(axis=0)
    found = nodule(1, tuple(int(n) for n in first), np.ones(last - first + 1, bool), laterality=None)
    return replace(ct_findings(images, found), images=volume.images)


def written(folder: Path, findings: Findings, images: Sequence[Dataset]) -> list[Path]:
    folder.mkdir()
    paths = []
    for each in encode(findings, list(images), when=WHEN):
        paths.append(folder / f"{each.Modality}.dcm")
        each.save_as(paths[-1], enforce_file_format=True)
    return paths


@contextmanager
def as_they_are(name: str, images: Sequence[Stored]) -> Iterator[list[Path]]:
    yield [each.path for each in images]


@contextmanager
def here(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    yield paths


@pytest.fixture
def viewing(tmp_path: Path) -> Iterator[Viewing]:
    viewing = Viewing(tmp_path / "data", 10**9, as_they_are, here)
    yield viewing
    viewing.close()


def asked_of(files: Sequence[Path], results: Sequence[Path], uid: str = "1.2.3") -> Asked:
    return Asked(uid, tuple(Stored(path, 0, path.stat().st_size) for path in files), {"job": tuple(results)})


KINDS = {  # how a series may lie
    **{name: {"orientation": name} for name in ORIENTATIONS},
    "towards the feet": {"descending": True},
    "any order": {"shuffled_instance_numbers": True, "descending": True},
    "tilted": {"gantry_tilt_degrees": 17.0},
    "oblique, towards the feet": {"orientation": "oblique", "descending": True},
}


@pytest.mark.parametrize("how", KINDS)
def test_what_is_shown_lies_where_the_headers_say(how: str, tmp_path: Path) -> None:
    """Left and right, head and feet: the mark's corners by the equation of the Standard, and by NIfTI's affine."""
    source = tmp_path / "images"
    source.mkdir()
    images = ct_series(source, voxels=marked(), **KINDS[how])  # type: ignore[arg-type]
    files = sorted(source.iterdir(), key=lambda path: hash(path.name) % 7)
    results = written(tmp_path / "results", finding_of_mark(images, files), images)
    out = tmp_path / "out"
    out.mkdir()
    known = images_of(files)
    told = viewing_process.findings_of(known, {"job": results})
    viewing_process.write_volume(known, files, told, out)

    of_header = np.array(
        [
            point_lps_mm(images[z], row, column)
            for z in range(SHAPE[0])[MARK[0]]
            for row in range(SHAPE[1])[MARK[1]]
            for column in range(SHAPE[2])[MARK[2]]
        ]
    )
    for name, true in (("volume.nii.gz", lambda v: v == BRIGHT), ("masks.nii.gz", lambda v: v == 1)):
        image = nibabel.load(out / name)
        voxels = np.argwhere(true(np.asanyarray(image.dataobj)))
        ras = nibabel.affines.apply_affine(image.affine, voxels)
        away = np.linalg.norm(ras[:, None] * [-1, -1, 1] - of_header[None], axis=2)
        assert len(ras) == len(of_header)
        assert away.min(axis=1).max() < 0.01, (how, name)
    [found] = viewing_process.as_plain(known, told)["results"][0]["findings"]
    assert found["place_lps_mm"] == pytest.approx(of_header.mean(axis=0), abs=0.06)
    centre = np.mean(found["corners_ras_mm"], axis=0) * [-1, -1, 1]
    assert centre == pytest.approx(of_header.mean(axis=0), abs=1e-3)
    ends_lie_where_the_headers_say(found, known, images)
    about = json.loads((out / "volume.json").read_text())
    there = np.array(about["affine_ras_mm"]) @ [*about["size_xyz"], 1.0]
    back = np.array(about["voxel_of_ras_mm"]) @ there
    assert back[:3] == pytest.approx(about["size_xyz"], abs=1e-6)


def ends_lie_where_the_headers_say(found: dict[str, Any], known: Images, images: Sequence[Dataset]) -> None:
    """Both axes through the middle of the mark, from edge to edge of it, by the equation of the Standard."""
    headers = {str(each.SOPInstanceUID): each for each in images}
    assert [axis["name"] for axis in found["axes"]] == ["Long Axis", "Short Axis"]
    _, y0, x0 = (part.start for part in MARK)
    _, y1, x1 = (part.stop for part in MARK)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    for axis, xy in zip(found["axes"], ([(x, y0), (x, y1)], [(x0, y), (x1, y)]), strict=True):
        header = headers[known.refs[axis["image"]].sop_instance_uid]
        assert axis["image"] == found["key_image"]
        assert np.array(axis["ends_xy"]) == pytest.approx(np.array(xy), abs=1e-4)
        # of the middle of a pixel, where rows and columns of the image count from its outer corner
        lps = [point_lps_mm(header, row - 0.5, column - 0.5) for column, row in xy]
        assert np.array(axis["ends_ras_mm"]) * [-1, -1, 1] == pytest.approx(np.array(lps), abs=1e-3)


def test_the_axes_are_as_long_as_the_report_says(tmp_path: Path) -> None:
    """Measured as pipelines measure, written, read again: not one end of its own."""
    truth, findings = chest(tmp_path / "images")
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in truth.files]
    known = images_of(truth.files)
    told = viewing_process.findings_of(known, {"job": written(tmp_path / "results", findings, images)})
    found = viewing_process.as_plain(known, told)["results"][0]["findings"]
    assert len(found) == 2
    for each in found:
        numbers = {number["name"]: number["value"] for number in each["measurements"]}
        for axis in each["axes"]:
            start, end = np.array(axis["ends_ras_mm"])
            assert np.linalg.norm(end - start) == pytest.approx(numbers[axis["name"]], abs=0.051), "tenths"
            inside = np.array(axis["ends_xy"]) - each["first_zyx"][:0:-1]
            size = np.array(each["last_zyx"])[:0:-1] - each["first_zyx"][:0:-1] + 1
            assert (inside > -0.5).all(), "on the nodule"
            assert (inside < size + 0.5).all(), "on the nodule"


def test_a_mirrored_volume_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the turn from LPS to RAS the test above fails."""
    monkeypatch.setattr(viewing_process, "ras_affine", lambda affine: affine[:, [2, 1, 0, 3]])
    with pytest.raises(AssertionError):
        test_what_is_shown_lies_where_the_headers_say("HFS", tmp_path)


def made(viewing: Viewing, asked: Asked, part: str) -> Made:
    done = viewing.wait(asked, part, 90)
    assert done.state != "preparing"
    return done


def test_findings_and_pictures_of_a_ct_name_nobody(viewing: Viewing, tmp_path: Path) -> None:
    """By the program itself, which is confined: nothing but its own folder is written, nothing of the patient told."""
    source = tmp_path / "images"
    source.mkdir()
    images = ct_series(source, voxels=marked(), **SECRET)
    files = sorted(source.iterdir())
    results = written(tmp_path / "results", finding_of_mark(images, files), images)
    asked = asked_of(files, results)
    done = made(viewing, asked, "findings")
    assert done.state == "ready", done.why
    told = done.told("findings")
    assert (told["kind"], told["identity_in_pixels"], told["number_of_images"]) == ("volume", False, SHAPE[0])
    [found] = told["results"][0]["findings"]
    assert (found["label"], found["certainty_percent"], found["size"]) == ("Nodule 1", 87, "4.5 x 3.8 mm")
    assert found["outline"] == [[[20.0, 5.0], [25.0, 5.0], [25.0, 8.0], [20.0, 8.0], [20.0, 5.0]]]
    assert made(viewing, asked, "volume").state == "ready"
    assert done.folder is not None
    with Image.open(done.folder / "finding-1-1.png") as picture:
        yellow = (np.asarray(picture.convert("RGB")) == CALIPER).all(axis=2)
    side = picture.width / max(SHAPE)  # the image is smaller than LEAST_SIDE
    rows, columns = (np.flatnonzero(yellow.any(axis=axis)) for axis in (1, 0))
    assert (len(rows), len(columns)) == pytest.approx((3 * side, 5 * side), abs=2), "both axes, as long as they are"
    assert np.mean(np.argwhere(yellow), axis=0) == pytest.approx(picture.width / 2, abs=side), "round the mark"
    there = sorted(path.name for path in done.folder.iterdir())
    assert there == [
        *("finding-1-1.png", "findings.json", f"image-{found['key_image']}.png"),
        *("masks.nii.gz", "volume.json", "volume.nii.gz"),
    ]
    for path in done.folder.iterdir():
        content = path.read_bytes()
        content += gzip.decompress(content) if path.suffix == ".gz" else b""
        assert not any(secret.encode() in content for secret in (*SECRET.values(), "Wachtel", "Zora")), path.name
        assert path.stat().st_mode & 0o077 == 0 or os.umask(0o022) != 0o077
    assert [path.name for path in viewing.root.iterdir()] == [done.folder.parent.name], "nothing unfinished is left"


def test_an_ultrasound_image_is_shown_and_may_name_the_patient(viewing: Viewing, tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    image = us_image(source, shape=(60, 80), BurnedInAnnotation=None)
    files = sorted(source.iterdir())
    asked = asked_of(files, written(tmp_path / "results", us_findings([image], mass(1, (0, 12, 20))), [image]))
    told = made(viewing, asked, "findings").told("findings")
    assert (told["kind"], told["identity_in_pixels"]) == ("images", True)
    assert told["results"][0]["measurements"][0]["text"] == "13 %"
    assert told["results"][0]["findings"][0]["outline"]
    refused = made(viewing, asked, "volume")
    assert (refused.state, refused.why) == ("refused", "these images are no stack of slices; they are shown one by one")
    clean = us_image(tmp_path / "results", number=2, BurnedInAnnotation="NO")
    assert not viewing_process.may_name_the_patient(images_of([Path(str(clean.filename))]))


def test_what_cannot_be_read_is_refused_in_words_and_not_tried_at_once_again(tmp_path: Path) -> None:
    now = [0.0]
    viewing = Viewing(tmp_path / "data", 10**9, as_they_are, here, monotonic=lambda: now[0])
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"x" * 400)
    asked = Asked("1.2.3", (Stored(broken),))
    wait_for(lambda: viewing.of(asked, "volume").state == "refused", 90, "a refusal")
    refused = viewing.of(asked, "volume")
    assert "cannot be read as DICOM" in refused.why
    now[0] += 61
    assert viewing.of(asked, "volume").state == "preparing"
    viewing.close()
    assert viewing.of(asked, "volume").why == "the node stops"


@pytest.mark.parametrize(
    ("slices", "free", "words"),
    [
        (512, 1 << 40, None),
        (513, 1 << 40, "513 slices of 512 x 512 pixels are 134 million voxels, and a browser is given at most 134"),
        (512, 10**9, "need 1.1 GB of memory, and 1.0 GB are free"),
    ],
)
def test_a_huge_series_is_refused_before_it_is_decoded(slices: int, free: int, words: str | None) -> None:
    assert MOST_SHOWN == 512**3
    if words is None:
        must_have_room(slices, (512, 512), free)
        return
    with pytest.raises(NotShown) as refused:
        must_have_room(slices, (512, 512), free)
    assert words in str(refused.value)


def stood_in(viewing: Viewing, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None]) -> None:
    """In the place of the program."""

    def run(told: str, folder: Path) -> str:
        act(folder)
        (folder / "findings.json").write_text("{}")
        return ""

    monkeypatch.setattr(viewing, "_run", run)


def test_what_was_looked_at_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewing = Viewing(tmp_path, 2500, as_they_are, here)
    stood_in(viewing, monkeypatch, lambda folder: (folder / "image-0.png").write_bytes(b"x" * 1000))
    folders = []
    for number in range(3):
        asked = Asked(f"1.2.{number}", (Stored(tmp_path, 0, number),))
        folders.append(made(viewing, asked, "findings").folder)
        os.utime(str(folders[-1]), (number, number))
        if number == 1:
            viewing.of(Asked("1.2.0", (Stored(tmp_path, 0, 0),)), "findings")  # looked at again
    assert [folder is not None and folder.exists() for folder in folders] == [True, False, True]
    viewing.close()


def test_what_is_deleted_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: set[str] = set()
    viewing = Viewing(tmp_path, 10**6, as_they_are, here, gone=gone.__contains__)
    stood_in(viewing, monkeypatch, lambda folder: gone.add("1.2.3"))
    refused = made(viewing, Asked("1.2.3", (Stored(tmp_path),)), "findings")
    assert (refused.state, refused.why) == ("refused", "its images were deleted here")
    assert list((tmp_path / FOLDER).rglob("*.json")) == []
    assert not (tmp_path / folder_name("1.2.3")).exists()
    viewing.close()


def test_a_program_that_dies_is_told_and_harms_nobody(
    viewing: Viewing, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pacs_node.viewing.PROGRAM", tmp_path / "dies.py")
    (tmp_path / "dies.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    refused = made(viewing, Asked("1.2.3", (Stored(tmp_path),)), "findings")
    assert refused.why == "it cannot be prepared: its process was ended"
    assert list(viewing.root.iterdir()) == []


def test_nothing_that_looks_loads_torch() -> None:
    loaded = "pacs_node.viewing_process, models.read, dicom_sr.read, dicom_sr.outline, nibabel"
    code = f"import sys, {loaded}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
