"""`pacs-node run`: what other programs rely on. Exit codes, lines of JSON, files, and that nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicom_sr.findings import Findings
from models.phantoms import breast_ultrasound, chest_ct
from pacs_node.errors import GiveUp, Refused, TryAgain
from pacs_node.run import NothingToDo, Outcome, exit_code, find_series, run
from tests.factories import ct_series, point_lps_mm, us_image
from tests.harness import ROOT
from tests.results import ct_findings, mass, nodule, us_findings

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
TAKES = {"CT": "lung-nodule", "US": "breast-us"}
KEYS = {"series_uid", "state", "reason", "verdict", "warnings", "findings", "files"}


class Scripted:
    """An inference process whose answer a test writes down: what it marks, or what it raises."""

    def __init__(self, answer: Callable[[list[pydicom.Dataset]], Findings], modality: str = "CT") -> None:
        self.answer, self.modality = answer, modality
        self.asked: list[tuple[str, Mapping[str, Any], int]] = []

    def run(
        self, pipeline: str, options: Mapping[str, Any], files: Sequence[Path], progress: Callable[[float, str], None]
    ) -> Findings:
        self.asked.append((pipeline, options, len(files)))
        progress(0.5, "half")
        return self.answer([pydicom.dcmread(file, stop_before_pixels=True) for file in files])


def raising(error: Exception) -> Callable[..., Findings]:
    def answer(headers: list[pydicom.Dataset]) -> Findings:
        raise error

    return answer


def ct(folder: Path, name: str = "ct", slices: int = 24) -> list[pydicom.Dataset]:
    return ct_series(folder, shape=(slices, 64, 64), spacing_mm=(2.5, 1.5, 1.5), name=name)


def two_nodules(headers: list[pydicom.Dataset]) -> Findings:
    return ct_findings(headers, nodule(1, (4, 20, 30)), nodule(2, (12, 40, 11)))


def outcomes(paths: list[Path], out: Path, inference: Scripted, **options: Any) -> list[Outcome]:
    told = list(run(find_series(paths, out), TAKES[inference.modality], options, out, inference, now=lambda: NOON))
    for outcome in told:
        assert json.loads(outcome.to_json()).keys() == KEYS
    return told


def test_results_captures_and_pictures_of_one_series(tmp_path: Path) -> None:
    ct(tmp_path / "in")
    (tmp_path / "in" / "readme.txt").write_text("not DICOM")
    inference = Scripted(two_nodules)
    found = find_series([tmp_path / "in"])
    assert (found.passed_over, len(found.series)) == (1, 1)
    [outcome] = outcomes([tmp_path / "in"], tmp_path / "out", inference, views=1)
    assert (outcome.state, outcome.reason, exit_code([outcome])) == ("done", "2 findings", 0)
    assert outcome.verdict is not None
    assert outcome.verdict.fit
    assert inference.asked == [("lung-nodule", {"views": 1}, 24)]
    names = ["01-SEG.dcm", "02-SR.dcm", *(f"key-image-0{n}.{kind}" for n in (1, 2) for kind in ("dcm", "png"))]
    assert [path.name for path in outcome.files] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for path in outcome.files:
        if path.suffix == ".dcm":
            assert pydicom.dcmread(path).StudyInstanceUID == next(iter(found.series.values()))[0].StudyInstanceUID
    for number in (1, 2):
        capture = pydicom.dcmread(tmp_path / "out" / f"key-image-0{number}.dcm").pixel_array
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"key-image-0{number}.png")), capture)


def test_where_and_how_large_as_the_headers_have_it(tmp_path: Path) -> None:
    images = ct(tmp_path / "in")
    mask = np.zeros((2, 3, 5), bool)
    mask[0, 1, 1], mask[1, 1, 3] = True, True
    one = nodule(1, (4, 20, 30), mask)
    [outcome] = outcomes([tmp_path / "in"], tmp_path / "out", Scripted(lambda h: ct_findings(h, one)))
    [told] = outcome.findings
    order = sorted(images, key=lambda image: float(image.ImagePositionPatient[2]))
    centre = (point_lps_mm(order[4], 21, 31) + point_lps_mm(order[5], 21, 33)) / 2
    assert np.allclose(told["centre_lps_mm"], centre, atol=1e-3)
    assert told["label"] == one.label
    assert told["certainty"] == round(one.certainty, 3)
    sizes = {m.name.meaning: m.value for m in one.measurements}
    assert (told["long_axis_mm"], told["short_axis_mm"]) == (sizes["Long Axis"], sizes["Short Axis"])
    assert "frame" not in told


def test_an_ultrasound_finding_is_told_by_frame_and_pixel(tmp_path: Path) -> None:
    us_image(tmp_path / "in")
    inference = Scripted(lambda headers: us_findings(headers, mass(1, (0, 10, 20))), "US")
    [outcome] = outcomes([tmp_path / "in"], tmp_path / "out", inference)
    [told] = outcome.findings
    rows, columns = np.nonzero(mass(1, (0, 10, 20)).mask[0])
    assert told["frame"] == 1
    assert told["pixel"] == [round(20 + float(columns.mean()), 3), round(10 + float(rows.mean()), 3)]
    assert told["image"] == str(us_image().SOPInstanceUID)


def test_nothing_found_is_a_result(tmp_path: Path) -> None:
    ct(tmp_path / "in")
    [outcome] = outcomes([tmp_path / "in"], tmp_path / "out", Scripted(lambda headers: ct_findings(headers)))
    assert (outcome.state, outcome.reason, outcome.findings) == ("done", "nothing found", ())
    assert [path.name for path in outcome.files] == ["01-SR.dcm"]
    assert exit_code([outcome]) == 0


def test_several_series_have_folders_of_their_own_and_stop_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        ct(tmp_path / "in" / name, name=name)
    ct(tmp_path / "in" / "few", name="few", slices=3)
    us_image(tmp_path / "in" / "us")
    answers = iter([two_nodules, raising(KeyError("DOE^JANE")), raising(Refused("no lungs are visible"))])
    told = outcomes([tmp_path / "in"], tmp_path / "out", Scripted(lambda headers: next(answers)(headers)))
    by_state = {state: [each for each in told if each.state == state] for state in ("done", "failed", "refused")}
    assert {state: len(each) for state, each in by_state.items()} == {"done": 1, "failed": 1, "refused": 3}
    assert exit_code(told) == 1
    assert by_state["failed"][0].reason.startswith("KeyError: ")
    assert "DOE" not in by_state["failed"][0].reason
    reasons = " | ".join(each.reason for each in by_state["refused"])
    assert "no lungs are visible" in reasons
    assert "Modality is US; lung-nodule takes CT only" in reasons
    [folder] = (tmp_path / "out").iterdir()
    assert folder.name.startswith("CT-")
    assert all(path.parent == folder for path in by_state["done"][0].files)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["done"], 0),
        (["done", "refused"], 0),
        (["refused", "refused"], 3),
        (["refused", "failed"], 1),
        (["done", "failed"], 1),
        ([], 1),
    ],
)
def test_the_exit_code(states: list[str], code: int) -> None:
    assert exit_code([Outcome("1.2", state, "") for state in states]) == code


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Refused("gantry tilt"), "refused"),
        (GiveUp("the weights are spoilt"), "failed"),
        (TryAgain("the inference process ended while running lung-nodule (signal SIGKILL; out of memory?)"), "failed"),
        (RuntimeError("the engine is cold"), "failed"),
        (OSError(28, "No space left on device"), "failed"),
    ],
)
def test_an_error_of_each_kind_is_a_state_with_a_reason(tmp_path: Path, error: Exception, state: str) -> None:
    ct(tmp_path / "in")
    [outcome] = outcomes([tmp_path / "in"], tmp_path / "out", Scripted(raising(error)))
    assert outcome.state == state
    assert (error.args[-1] if isinstance(error, OSError) else str(error)) in outcome.reason
    assert not outcome.files
    assert not list((tmp_path / "out").glob("**/*")) if (tmp_path / "out").exists() else True


def test_results_that_fail_their_checks_are_withheld(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is the node's: `encode_results`."""
    ct(tmp_path / "in")

    def fails(*arguments: Any, **named: Any) -> None:
        raise GiveUp("own checks")

    monkeypatch.setattr("pacs_node.run.encode_results", fails)
    [outcome] = outcomes([tmp_path / "in"], tmp_path / "out", Scripted(two_nodules))
    assert (outcome.state, outcome.reason) == ("failed", "own checks")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    ct(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    inference = Scripted(two_nodules)
    [first] = outcomes([tmp_path / "in"], tmp_path / "out", inference)
    assert first.state == "done"
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(NothingToDo, match=r"holds 01-SEG.dcm and 5 more already; nothing is overwritten"):
        outcomes([tmp_path / "in"], tmp_path / "out", inference)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert len(inference.asked) == 1  # said before anything is run
    with pytest.raises(NothingToDo, match="is a file"):
        outcomes([tmp_path / "in"], tmp_path / "out" / "notes.txt", inference)


def test_earlier_results_below_the_input_are_no_input(tmp_path: Path) -> None:
    ct(tmp_path)
    [first] = outcomes([tmp_path], tmp_path / "out", Scripted(two_nodules))
    assert first.state == "done"
    assert len(find_series([tmp_path], tmp_path / "out").series) == 1
    assert len(find_series([tmp_path], tmp_path / "other").series) > 1


def test_files_folders_copies_and_what_is_no_image(tmp_path: Path) -> None:
    images = ct(tmp_path / "in")
    one = Path(str(images[0].filename))
    (tmp_path / "copy.dcm").write_bytes(one.read_bytes())
    (tmp_path / "cut.dcm").write_bytes(one.read_bytes()[:200])
    (tmp_path / "empty").touch()
    found = find_series([tmp_path / "in", one, tmp_path / "copy.dcm", tmp_path / "cut.dcm", tmp_path / "empty"])
    assert [len(headers) for headers in found.series.values()] == [24]
    assert (found.passed_over, found.again) == (2, 1)
    with pytest.raises(NothingToDo, match=r"no DICOM image among the files \(1 passed over\)"):
        outcomes([tmp_path / "empty"], tmp_path / "out", Scripted(two_nodules))


# ------------------------------------------------------------------------------------------- as other programs call it


def command(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pacs_node.cli", "run", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=600, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def test_lung_nodule_on_a_phantom(tmp_path: Path) -> None:
    truth = chest_ct(
        tmp_path / "in", seed=3, slices=60, size=256, spacing_mm=(4.0, 1.4, 1.4), nodules=3
    )  # fmt: skip
    code, output, _ = command(
        tmp_path / "in", "--pipeline", "lung-nodule", "--out", tmp_path / "out", "--option", "views=1", "--json"
    )
    assert code == 0
    [told] = [json.loads(line) for line in output.splitlines()]
    assert told.keys() == KEYS
    assert (told["state"], told["verdict"]["fit"]) == ("done", True)
    assert told["series_uid"] == str(pydicom.dcmread(truth.files[0]).SeriesInstanceUID)
    for lesion in truth.lesions:
        nearest = min(
            told["findings"], key=lambda f: np.linalg.norm(np.subtract(f["centre_lps_mm"], lesion.centre_lps_mm))
        )
        assert np.linalg.norm(np.subtract(nearest["centre_lps_mm"], lesion.centre_lps_mm)) < 3
        assert abs(nearest["long_axis_mm"] - lesion.long_axis_mm) < 4  # pixels of 1.4 mm, slices 4 mm apart
        assert 0 < nearest["certainty"] <= 1
    assert all(Path(file).is_file() for file in told["files"])
    assert {Path(file).suffix for file in told["files"]} == {".dcm", ".png"}


def test_breast_us_on_a_phantom_and_a_series_it_does_not_take(tmp_path: Path) -> None:
    breast_ultrasound(tmp_path / "in" / "us", seed=7)
    ct(tmp_path / "in" / "ct")
    code, output, _ = command(tmp_path / "in", "--pipeline", "breast-us", "--out", tmp_path / "out", "--json")
    assert code == 0
    lines = [json.loads(line) for line in output.splitlines()[-2:]]
    assert {told["state"]: told["reason"] for told in lines} == {
        "done": "1 finding",
        "refused": "Modality is CT; breast-us takes US only",
    }
    [done] = [told for told in lines if told["state"] == "done"]
    assert done["findings"][0].keys() >= {"label", "frame", "pixel", "long_axis_mm", "short_axis_mm", "certainty"}


def test_every_series_refused(tmp_path: Path) -> None:
    ct(tmp_path / "in", slices=4)
    code, output, _ = command(tmp_path / "in", "--pipeline", "lung-nodule", "--out", tmp_path / "out", "--json")
    told = json.loads(output.splitlines()[-1])
    assert (code, told["state"], told["verdict"]["fit"], told["files"]) == (3, "refused", False, [])
    assert told["reason"] == told["verdict"]["reason"] != ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pipeline", "lung-nodul"], "no pipeline 'lung-nodul'; did you mean 'lung-nodule'?"),
        (["--pipeline", "lung-nodule", "--option", "view=1"], "does not exist; did you mean 'views'?"),
        (["--pipeline", "lung-nodule", "--option", "views=9"], "'views' of lung-nodule must be 4 or less, not 9"),
        (["--pipeline", "lung-nodule", "--option", "views=1.5"], "'views' of lung-nodule must be a whole number"),
        (["--pipeline", "lung-nodule", "--option", "purpose=holiday"], "option 'purpose' of lung-nodule must be"),
        (["--pipeline", "lung-nodule", "--option", "views"], "'views' is not key=value"),
        (["--pipeline", "lung-nodule", "--option", "views=1\nrefine=false"], "option 'views' of lung-nodule must be"),
        (["--pipeline", "lung-nodule"], "no DICOM image among the files (1 passed over)"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_is_said_and_exits_1(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    code, output, complaints = command(tmp_path / "readme.txt", *arguments, "--out", tmp_path / "out", "--json")
    assert code == 1
    assert words in complaints
    assert output == ""
    code, _, complaints = command(tmp_path / "nowhere", *arguments[:2], "--out", tmp_path / "out")
    assert code == 1
    assert "nowhere does not exist" in complaints or "no pipeline" in complaints
