"""The viewer in a browser: what a phantom truly holds is seen at its place, under the strict policy, by keyboard."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicom_sr.findings import ComparedWith, Finding
from models.measure import measure_lesion
from models.phantoms import breast_cine, chest_ct
from models.phantoms.truth import Lesion, Truth
from models.read import read_ct, read_ultrasound
from tests.factories import us_image
from tests.follow_up import AFTER, BEFORE, DATES, DAYS, POSE, SEED, Study, study
from tests.harness import ROOT, missing, need, wait_for
from tests.pictures import READ, shows_the_page_as_it_is, with_words
from tests.results import mass, us_findings
from tests.unit.test_documented import documented_fields
from tests.viewers import Seen, chest

pytestmark = pytest.mark.timeout(600)
BROWSER = Path(__file__).parent / "ohif"
GIVE_UP_AFTER_S = 120  # a browser without a graphics card on a machine that does other things too
RECTANGLE = "(b => [b.x, b.y, b.width, b.height])(document.querySelector('{}').getBoundingClientRect())"
FULL_SCREEN = ".viewer .others button:last-child"
READY = "document.getElementById('viewer').dataset.state"
VIEWER = "document.getElementById('viewer').viewer"
TURNED_TO = f"(at => {{ const {{ nv }} = {VIEWER}; nv.scene.crosshairPos = nv.mm2frac(at, 0, true); nv.drawScene(); }})"
SIZE = f"[{VIEWER}.nv.gl.canvas.width, {VIEWER}.nv.gl.canvas.height]"
# what WebGL has drawn alone, without what is drawn over it: RGBA of a patch of 5 x 5 pixels, or of all
PIXELS = f"""((x, y, wide, tall) => {{
  const {{ nv }} = {VIEWER}, {{ gl }} = nv, pixels = new Uint8Array(wide * tall * 4);
  nv.opts.crosshairWidth = 0;
  nv.drawScene();
  gl.readPixels(x, gl.canvas.height - y - tall, wide, tall, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  return Array.from(pixels);
}})"""


# whether a canvas, by its place among those of the page, has the colour of an axis there, or next to it
YELLOW_AT = """((canvas, x, y) => {
  const { data } = document.querySelectorAll('canvas')[canvas].getContext('2d').getImageData(x - 1, y - 1, 3, 3);
  const colours = Array.from({ length: 9 }, (_, n) => data.slice(4 * n, 4 * n + 3));
  return colours.some(([r, g, b]) => r > 150 && g > 150 && b < 80);
})"""


class Page:
    """Chromium, by what seen.mjs understands."""

    def __init__(self) -> None:
        if not (BROWSER / "node_modules").is_dir():
            missing(f"playwright-core is not installed; run `npm ci --ignore-scripts` in {BROWSER.relative_to(ROOT)}")
        self.process = subprocess.Popen(
            [need("node"), str(BROWSER / "seen.mjs"), need("chromium")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def do(self, name: str, **options: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": name, **options}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["done"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def value(self, code: str) -> Any:
        return self.do("evaluate", code=code)

    def open_viewer(self, seen: Seen, address: str, **options: Any) -> None:
        for made in (seen.facts.findings, seen.facts.volume):
            wait_for(lambda made=made: made(seen.uid, 1.0)["state"] == "ready", GIVE_UP_AFTER_S, "what is looked at")
        small = {"width": 480, "height": 520}  # it is all drawn by the processor
        assert self.do("open", url=f"{address}/series/{seen.uid}/view", **(small | options)) == 200
        wait_for(lambda: self.value(READY) in ("ready", "failed", "refused"), GIVE_UP_AFTER_S, "the viewer")
        assert self.value(READY) == "ready", self.value("document.querySelector('.words').textContent")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


def on_screen(truth: Truth, wide: int, tall: int) -> tuple[Callable[..., np.ndarray], float]:
    """Where a voxel (z, y, x) is on an axial slice, as a radiologist sees it: the patient's left is on the right, the
    front above; as large as fits. And pixels of the screen per mm. Reckoned from the phantom, not by the viewer."""
    volume = read_ct(truth.files)
    ends = [(-0.5, length - 0.5) for length in volume.hu.shape]
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)]) @ volume.affine.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale, middle = min(wide / (high[0] - low[0]), tall / (high[1] - low[1])), (low + high) / 2

    def place(*zyx: float) -> np.ndarray:
        return np.array([wide, tall]) / 2 + ((volume.affine @ [*zyx, 1.0]) - middle)[:2] * scale

    return place, scale


def middle_of(lesion: Lesion) -> tuple[float, float, float]:
    """Of its largest slice: (z, y, x)."""
    z = int(lesion.mask.sum(axis=(1, 2)).argmax())
    inside = np.argwhere(lesion.mask[z])
    y, x = (inside.min(axis=0) + inside.max(axis=0)) / 2
    return lesion.offset_zyx[0] + z, lesion.offset_zyx[1] + y, lesion.offset_zyx[2] + x


class Shown:
    """A served chest, and what it truly holds."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self.truth, self.findings = chest(folder / "images", **how)
        self.seen = Seen(folder, self.truth.files, self.findings)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    shown = Shown(tmp_path_factory.mktemp("chest"))
    yield shown
    shown.seen.close()


def is_seen_where_it_is(page: Page, shown: Shown) -> None:
    seen, truth = shown.seen, shown.truth
    with seen.served() as address:
        page.open_viewer(seen, address)
        wide, tall = page.value(SIZE)
        place, scale = on_screen(truth, wide, tall)
        x, y = place(*middle_of(truth.lesions[0]))
        drawn = page.value(f"{VIEWER}.state.drawn")[0]
        left, top, right, bottom = drawn["outlined"]
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((x, y), abs=2.5)

        def brightness(column: float, row: float) -> float:
            pixels = page.value(f"{PIXELS}({round(column) - 2}, {round(row) - 2}, 5, 5)")
            return float(np.mean(np.array(pixels).reshape(-1, 4)[:, :3]))

        assert brightness(x, y) > 190, "a nodule in a lung window"
        assert brightness(wide - x, y) < 150, "lung, on the other side"
        ras = page.value(f"{VIEWER}.millimetres({VIEWER}.nv.scene.crosshairPos)")
        assert (-ras[0], -ras[1], ras[2]) == pytest.approx(truth.lesions[0].centre_lps_mm, abs=7), "a slice is 6 mm"
        letters = page.value(f"{VIEWER}.nv.screenSlices[0].letters")
        assert letters == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
        box = drawn["box"]
        assert box[0] < left < right < box[2]
        assert box[1] < top < bottom < box[3]
        assert drawn["text"].startswith("Nodule 1 · 87 % · ")
        size = shown.findings.findings[0].measurements[0].value
        assert f" {size:.1f} x " in drawn["text"]
        axes_are_seen_where_they_were_measured(page, shown.findings.findings[0], drawn, place, scale)
        assert page.do("errors") == []


def axes_are_seen_where_they_were_measured(
    page: Page, finding: Finding, drawn: dict[str, Any], place: Callable[..., np.ndarray], scale: float
) -> None:
    """On the nodule, end by end, as long as the number that is written; and gone with the outlines."""
    left, top, right, bottom = drawn["outlined"]
    assert [axis["name"] for axis in drawn["axes"]] == ["Long Axis", "Short Axis"]
    for axis, true, number in zip(
        drawn["axes"], (finding.long_axis, finding.short_axis), finding.measurements, strict=False
    ):
        assert true is not None
        ends = np.array(axis["ends"])
        meant = [place(true.image, row - 0.5, column - 0.5) for column, row in (true.start_xy, true.end_xy)]
        assert ends == pytest.approx(np.array(meant), abs=1.0)
        assert np.linalg.norm(ends[1] - ends[0]) / scale == pytest.approx(number.value, abs=0.2), "mm"
        assert ((ends > [left - 2, top - 2]) & (ends < [right + 2, bottom + 2])).all(), "on the nodule"
        assert page.value(f"{YELLOW_AT}(1, ...{ends.mean(axis=0).round().tolist()})"), "yellow"
    page.value("document.querySelector('.stage canvas').focus()")
    page.do("press", key="ArrowUp")
    assert [each["axes"] for each in page.value(f"{VIEWER}.state.drawn")] in ([], [[]]), "on one slice alone"
    page.do("press", key="ArrowDown")
    assert page.value(f"{VIEWER}.state.drawn[0].axes.length") == 2
    page.do("press", key="o")
    assert page.value(f"{VIEWER}.state.drawn") == [], "with the outlines"
    assert not page.value(f"{YELLOW_AT}(1, ...{ends.mean(axis=0).round().tolist()})")


def test_a_nodule_is_seen_where_it_is(page: Page, shown: Shown) -> None:
    is_seen_where_it_is(page, shown)


def test_a_nodule_of_a_patient_who_lay_otherwise_is_seen_where_it_is(page: Page, tmp_path: Path) -> None:
    """Feet first, on the left side: a viewer that takes left for right, or head for feet, draws it elsewhere."""
    shown = Shown(tmp_path, orientation="FFDL", nodules=1)
    try:
        is_seen_where_it_is(page, shown)
    finally:
        shown.seen.close()


def test_the_viewer_is_used_with_the_keyboard(page: Page, shown: Shown) -> None:
    seen = shown.seen
    slice_ = "Number(document.querySelector('.viewer input[type=range]').value)"
    with seen.served() as address:
        page.open_viewer(seen, address)
        state = "document.getElementById('viewer').dataset"
        page.value("document.querySelector('.stage canvas').focus()")
        start = page.value(slice_)
        assert page.value(f"{state}.finding") == "Nodule 1"
        page.do("press", key="ArrowUp", times=2)
        assert page.value(slice_) == start + 2
        page.do("press", key="ArrowDown")
        assert page.value(slice_) == start + 1
        page.do("press", key="Home")
        assert page.value(slice_) == 23, "towards the head"
        page.do("press", key="n")
        assert page.value(f"{state}.finding") == "Nodule 2"
        assert [each["label"] for each in page.value(f"{VIEWER}.state.drawn")][-1:] == ["Nodule 2"]
        windows = page.value(f"{VIEWER}.state.volume.windows.map(each => each.name)")
        assert windows[:3] == ["Lung", "Mediastinum", "Bone"]
        page.do("press", key="w")
        assert page.value(f"[{VIEWER}.nv.volumes[0].cal_min, {VIEWER}.nv.volumes[0].cal_max]") == [-160, 240]
        views = []
        for _ in range(4):
            page.do("press", key="v")
            views.append(page.value(f"{state}.view"))
        assert views == ["Coronal", "Sagittal", "All", "3-D"]
        deep = np.array(page.value(f"{PIXELS}(0, 0, ...{SIZE})")).reshape(-1, 4).astype(int)
        assert (deep[:, :3].sum(axis=1) > 60).sum() > 2000, "lungs in depth"
        assert (deep[:, 0] - deep[:, 2] > 60).sum() > 10, "and the first nodule, in its colour"
        page.do("press", key="v")
        assert page.value(f"{state}.view") == "Axial"
        whole = "document.fullscreenElement === document.getElementById('viewer')"
        fills = f"{RECTANGLE.format('#viewer')}.slice(0, 3).join() === [0, 0, innerWidth].join()"
        assert not page.value(fills)
        page.do("press", key="f")
        wait_for(lambda: page.value(whole) and page.value(fills), 60, "the viewer alone on the screen")
        page.do("press", key="f")
        wait_for(lambda: page.value("document.fullscreenElement === null"), 60, "the page again")
        page.do("click", selector=FULL_SCREEN)
        wait_for(lambda: page.value(whole), 60, "the viewer alone on the screen, by its button")
        wait_for(lambda: page.value(f"document.querySelector({FULL_SCREEN!r}).ariaPressed") == "true", 60, "it says so")
        page.do("click", selector=FULL_SCREEN)
        wait_for(lambda: page.value("document.fullscreenElement === null"), 60, "the page again")
        page.value("document.querySelector('.stage canvas').focus()")
        x, y, wide, tall = page.value(RECTANGLE.format(".stage"))
        before = page.value(slice_)
        page.do("wheel", x=x + wide / 2, y=y + tall / 2, by=100)
        wait_for(lambda: abs(page.value(slice_) - before) == 1, 20, "the wheel to turn a slice")
        page.do("click", selector="[data-goes-to]", number=0)
        assert page.value(f"{state}.finding") == "Nodule 1"
        assert "HU" in page.value("document.querySelector('.where').textContent")
        assert page.do("wide") == 0
        assert page.do("errors") == []


def test_a_picture_for_the_documents(page: Page, shown: Shown, tmp_path: Path) -> None:
    """The planes with a nodule, and the same on a telephone without JavaScript: nothing is scrolled sideways."""
    seen = shown.seen
    with seen.served() as address:
        page.open_viewer(seen, address, width=900, height=820)
        page.value(f"{VIEWER}.show(3)")
        assert {each["plane"] for each in page.value(f"{VIEWER}.state.drawn")} == {0, 1, 2}
        in_the_documents(page, tmp_path / "viewer.png")
        page.value(f"{VIEWER}.show(4)")
        in_the_documents(page, tmp_path / "depth.png")
        assert page.do("errors") == []
        assert page.do("open", url=f"{address}/series/{seen.uid}", width=900, height=820) == 200
        assert page.value(READY) is None, "nothing is loaded before somebody asks"
        page.do("click", selector=".viewer > button")
        wait_for(lambda: page.value(READY) == "ready", GIVE_UP_AFTER_S, "the viewer on the page of the series")
        assert page.do("errors") == []
        for path in (f"/series/{seen.uid}/view", f"/series/{seen.uid}", "/feedback"):
            assert page.do("open", url=address + path, width=390, height=844, javaScript=False) == 200
            assert page.do("wide") == 0, path


def in_the_documents(page: Page, picture: Path) -> None:
    """What is seen now, as a picture there; it is not black."""
    page.do("picture", path=str(picture.with_suffix(".whole.png")))
    with_words(picture.with_suffix(".whole.png"), page.value(READ), picture)
    x, y, wide, tall = map(round, page.value(RECTANGLE.format(".stage, .film")))
    with Image.open(picture) as drawn:
        stage = np.asarray(drawn.convert("L").crop((x, y, x + wide, y + tall)))
    assert stage.std() > 5
    shows_the_page_as_it_is(picture)


def test_the_earlier_study_is_seen_at_the_same_place(page: Page, tmp_path: Path) -> None:
    """The patient lay otherwise, on another grid: beside a nodule that grew is the smaller one that it was."""
    coarse: dict[str, Any] = {"size": 128, "slices": 60, "spacing_mm": (5.0, 2.8, 2.8), "seed": SEED}
    earlier = study(chest_ct(tmp_path / "before", balls=BEFORE, study_date=DATES[0], **coarse))
    how: dict[str, Any] = {"balls": AFTER, "pose": POSE, "orientation": "FFP", "study_date": DATES[1]}
    present = study(chest_ct(tmp_path / "after", **how, **coarse))
    seen = Seen(tmp_path, earlier.files, earlier.findings)
    [report] = [pydicom.dcmread(each.path) for each in seen.results if each.path.name.endswith("SR.dcm")]
    named = ComparedWith(
        str(report.StudyInstanceUID), str(report.SeriesInstanceUID), str(report.SOPClassUID),
        str(report.SOPInstanceUID), date(2025, 7, 1), DAYS, 1.0,
    )  # fmt: skip
    seen.files = list(present.files)
    seen._receive()
    seen.job = seen._work(replace(present.findings, compared_with=named))
    try:
        with seen.served() as address:
            page.open_viewer(seen, address, width=900, height=700)
            wait_for(lambda: seen.facts.earlier(seen.uid, 1.0)["state"] == "ready", 240, "the earlier study")  # type: ignore[index]
            about = seen.facts.earlier(seen.uid)
            assert about is not None
            fields = {each.partition("[")[0] for each in documented_fields("GET /api/series/{uid}/earlier")}
            assert about.keys() == fields
            page.value("document.querySelector('.stage canvas').focus()")
            page.do("press", key="e")
            state = "document.getElementById('viewer').dataset"
            wait_for(lambda: page.value(f"{state}.earlier") == "shown", GIVE_UP_AFTER_S, "both beside each other")
            beside = f"{VIEWER}.state.earlier"
            known = [(where, was) for where in present.centres_mm if (was := nearest(where, earlier)) is not None]
            assert len(known) >= 4, "all but the new one"
            for where, was in known:
                ras = [-float(where[0]), -float(where[1]), float(where[2])]
                page.value(f"{TURNED_TO}({ras})")
                shown_at = np.array(page.value(f"{VIEWER}.millimetres({beside}.nv.scene.crosshairPos, {beside})"))
                assert np.linalg.norm(shown_at * [-1, -1, 1] - was) < 8
            assert page.value(f"{beside}.nv.screenSlices[0].letters") == {
                "left": "R", "right": "L", "top": "A", "bottom": "P",
            }  # fmt: skip
            page.value(f"{VIEWER}.choose(0)")
            assert page.value(f"{VIEWER}.state.drawn[0].label") == "Nodule 1"
            assert page.value(f"{beside}.drawn.length") >= 1, "what it was is outlined there"
            lies = [page.value(RECTANGLE.format(f".viewer .stage:nth-of-type({n})")) for n in (2, 3)]
            assert lies[0][1] == lies[1][1], "beside each other"
            page.do("press", key="w")
            assert page.value(f"[{beside}.nv.volumes[0].cal_min, {VIEWER}.nv.volumes[0].cal_min]") == [-160, -160]
            page.do("press", key="e")
            assert page.value(f"{state}.earlier") == ""
            assert page.do("errors") == []
    finally:
        seen.close()


def nearest(centre_mm: np.ndarray, earlier: Study) -> np.ndarray | None:
    """The nodule of the earlier study that this one was; None of one that is new. By the phantom's own pose."""
    there = np.linalg.inv(POSE) @ [*centre_mm, 1.0]
    close = [each for each in earlier.centres_mm if np.linalg.norm(each - there[:3]) < 6]
    return close[0] if close else None


def test_a_clip_is_played_with_its_outline_frame_by_frame(page: Page, tmp_path: Path) -> None:
    """The lesion of a phantom moves: on every frame that it is on, the outline lies where the phantom has it."""
    truth = breast_cine(tmp_path / "images", frames=8, shape=(120, 160))
    image = pydicom.dcmread(truth.files[0], stop_before_pixels=True)
    lesion = truth.lesions[0]
    spacing_mm = read_ultrasound(truth.files[0]).regions[0].spacing_mm
    assert spacing_mm is not None
    largest = lesion.offset_zyx[0] + int(lesion.mask.sum(axis=(1, 2)).argmax())
    sizes = measure_lesion(lesion.mask[largest - lesion.offset_zyx[0]], lesion.offset_zyx[1:], largest, spacing_mm)
    measured = {"long_axis": sizes.long_axis, "short_axis": sizes.short_axis, "measurements": sizes.measurements}
    found = replace(mass(1, lesion.offset_zyx, lesion.mask), **measured)
    seen = Seen(tmp_path, truth.files, us_findings([image], found))
    player, frame = "document.getElementById('cine').player", "Number(document.getElementById('cine').dataset.frame)"
    try:
        with seen.served() as address:
            for made in (seen.facts.findings, seen.facts.volume):
                wait_for(
                    lambda made=made: made(seen.uid, 1.0)["state"] == "ready", GIVE_UP_AFTER_S, "what is looked at"
                )
            assert page.do("open", url=f"{address}/series/{seen.uid}/view", width=480, height=700) == 200
            wait_for(
                lambda: page.value("document.getElementById('cine').dataset.state") == "ready", GIVE_UP_AFTER_S, "clip"
            )
            assert page.value(f"{player}.state.plays") is False, "nothing moves before somebody asks"
            wait_for(lambda: page.value(frame) == found.key_image, 20, "the frame where it is largest")
            page.value("document.querySelector('.film canvas').focus()")
            page.do("press", key="Home")
            for index in range(8):
                wait_for(lambda index=index: page.value(frame) == index, 20, f"frame {index}")
                drawn = page.value(f"{player}.state.drawn.map(each => each.polygons.flat())")
                axes = page.value(f"{player}.state.drawn.flatMap(each => each.axes)")
                assert len(axes) == 2 * (index == found.key_image), "on the frame that was measured"
                for axis, size in zip(axes, sizes.measurements, strict=False):
                    ends = np.array(axis["ends_xy"])
                    assert np.linalg.norm((ends[1] - ends[0]) * spacing_mm[::-1]) == pytest.approx(size.value, abs=0.06)
                    assert (ends > np.min(drawn[0], axis=0) - 0.5).all(), "on the lesion"
                    assert (ends < np.max(drawn[0], axis=0) + 0.5).all(), "on the lesion"
                    assert page.value(f"{YELLOW_AT}(0, ...{ends.mean(axis=0).round().tolist()})")
                plane = index - lesion.offset_zyx[0]
                there = 0 <= plane < len(lesion.mask) and lesion.mask[plane].any()
                assert bool(drawn) == there
                if there:
                    rows, columns = np.nonzero(lesion.mask[plane])
                    low = np.array([columns.min(), rows.min()]) + lesion.offset_zyx[:0:-1]
                    assert np.min(drawn[0], axis=0) == pytest.approx(low, abs=1.01)
                page.do("press", key="ArrowRight")
            wait_for(lambda: page.value(frame) == 0, 20, "the first one again")
            page.do("press", key="Space")
            assert page.value(f"{player}.state.plays") is True
            wait_for(lambda: page.value(frame) > 1, 60, "the clip to run")
            page.do("press", key="Space")
            assert page.value(f"{player}.state.plays") is False
            page.do("press", key="n")
            wait_for(lambda: page.value(frame) == found.key_image, 20, "the frame that was measured")
            wait_for(lambda: page.value(f"{player}.state.drawn.length") == 1, 20, "its outline")
            in_the_documents(page, tmp_path / "cine.png")
            page.do("press", key="o")
            wait_for(lambda: page.value(f"{player}.state.drawn.length") == 0, 20, "no outlines")
            assert page.do("wide") == 0
            assert page.do("errors") == []
    finally:
        seen.close()


def test_an_ultrasound_image_with_its_outline(page: Page, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = us_image(tmp_path / "images", shape=(300, 400))
    seen = Seen(tmp_path, sorted((tmp_path / "images").iterdir()), us_findings([image], mass(1, (0, 112, 120))))
    try:
        with seen.served() as address:
            wait_for(lambda: seen.facts.findings(seen.uid, 1.0)["state"] == "ready", 120, "findings")  # type: ignore[index]
            assert page.do("open", url=f"{address}/series/{seen.uid}/view", width=390, height=844) == 200
            x, y, wide, _ = page.value(RECTANGLE.format(".picture image"))
            left, top, across, _ = page.value(RECTANGLE.format(".picture .outline"))
            on_image = [(left - x) / wide * 400, (top - y) / wide * 400, across / wide * 400]
            assert on_image == pytest.approx([120, 112, 14], abs=1)
            lines = [page.value(RECTANGLE.format(f".picture .axis:nth-of-type({n})")) for n in (1, 2)]
            lies = [
                [(a - x) / wide * 400, (b - y) / wide * 400, *(each / wide * 400 for each in of)] for a, b, *of in lines
            ]
            assert lies == [pytest.approx(line, abs=1) for line in ([127, 112, 0, 10], [120, 117, 14, 0])]
            assert page.do("wide") == 0
            assert page.do("errors") == []
    finally:
        seen.close()
