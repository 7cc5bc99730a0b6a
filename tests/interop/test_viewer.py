"""The viewer in a browser: what a phantom truly holds is seen at its place, under the strict policy, by keyboard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.phantoms.truth import Truth
from models.read import read_ct
from tests.factories import us_image
from tests.harness import ROOT, missing, need, wait_for
from tests.results import mass, us_findings
from tests.viewers import Seen, chest

pytestmark = pytest.mark.timeout(600)
BROWSER = Path(__file__).parent / "ohif"
GIVE_UP_AFTER_S = 120  # a browser without a graphics card on a machine that does other things too
RECTANGLE = "(b => [b.x, b.y, b.width, b.height])(document.querySelector('{}').getBoundingClientRect())"
READY = "document.getElementById('viewer').dataset.state"
VIEWER = "document.getElementById('viewer').viewer"
# of what WebGL has drawn alone: number and middle of the pixels in the colour of a finding, and how many are not black
TINTED = f"""(() => {{
  const {{ nv }} = {VIEWER}, gl = nv.gl, wide = gl.canvas.width, tall = gl.canvas.height;
  nv.opts.crosshairWidth = 0;
  nv.drawScene();
  const pixels = new Uint8Array(wide * tall * 4);
  gl.readPixels(0, 0, wide, tall, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  let count = 0, x = 0, y = 0, bright = 0, x0 = 1e9, x1 = -1;
  for (let at = 0; at < pixels.length; at += 4) {{
    const [r, g, b] = [pixels[at], pixels[at + 1], pixels[at + 2]];
    if (r + g + b > 60) bright++;
    if (r - b > 45 && r - g > 10) {{
      const column = (at / 4) % wide, row = tall - 1 - Math.floor(at / 4 / wide);
      count++; x += column; y += row; x0 = Math.min(x0, column); x1 = Math.max(x1, column);
    }}
  }}
  return {{ count, x: x / count, y: y / count, x0, x1, bright, wide, tall }};
}})()"""


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

    def open_viewer(self, address: str, **options: Any) -> None:
        assert self.do("open", url=address, **options) == 200
        wait_for(lambda: self.value(READY) in ("ready", "failed", "refused"), GIVE_UP_AFTER_S, "the viewer")
        assert self.value(READY) == "ready", self.value("document.querySelector('.words').textContent")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


def expected_place(truth: Truth, view: dict[str, Any]) -> tuple[float, float]:
    """Where the middle of the first lesion is on an axial slice, as a radiologist sees it: the patient's left is on the
    right, the front above; as large as fits. Reckoned from the phantom, not by the viewer."""
    volume = read_ct(truth.files)
    corners = np.array([[z, y, x, 1] for z in (-0.5, volume.hu.shape[0] - 0.5) for y in (-0.5, volume.hu.shape[1] - 0.5)
                        for x in (-0.5, volume.hu.shape[2] - 0.5)]) @ volume.affine.T  # fmt: skip
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = min(view["wide"] / (high[0] - low[0]), view["tall"] / (high[1] - low[1]))
    lesion = truth.lesions[0]
    z = int(lesion.mask.sum(axis=(1, 2)).argmax())
    y, x = np.argwhere(lesion.mask[z]).mean(axis=0)
    place = volume.affine @ [lesion.offset_zyx[0] + z, lesion.offset_zyx[1] + y, lesion.offset_zyx[2] + x, 1.0]
    middle = (low + high) / 2
    return (
        view["wide"] / 2 + (place[0] - middle[0]) * scale,
        view["tall"] / 2 + (place[1] - middle[1]) * scale,
    )


@pytest.mark.parametrize("orientation", ["HFS", "FFS", "HFP", "FFDL"])
def test_a_nodule_is_seen_where_it_is(orientation: str, page: Page, tmp_path: Path) -> None:
    """Whichever way the patient lay: a viewer that takes left for right, or head for feet, draws it elsewhere."""
    truth, findings = chest(tmp_path / "images", orientation=orientation, nodules=1)
    seen = Seen(tmp_path, truth.files, findings)
    try:
        with seen.served() as address:
            page.open_viewer(f"{address}/series/{seen.uid}/view")
            view = page.value(TINTED)
            assert view["count"] > 12
            assert (view["x"], view["y"]) == pytest.approx(expected_place(truth, view), abs=4)
            ras = page.value(f"{VIEWER}.millimetres({VIEWER}.nv.scene.crosshairPos)")
            lps = [-ras[0], -ras[1], ras[2]]
            centre = truth.lesions[0].centre_lps_mm
            assert centre is not None
            assert lps == pytest.approx(centre, abs=7), "a slice is 6 mm, a pixel 1.8 mm"
            letters = page.value(f"{VIEWER}.nv.screenSlices[0].letters")
            assert letters == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
            [drawn] = page.value(f"{VIEWER}.state.drawn")
            left, top, right, bottom = drawn["box"]
            assert left < view["x0"] <= view["x1"] < right
            assert top < view["y"] < bottom
            assert drawn["text"].startswith("Nodule 1 · 87 % · ")
            size = findings.findings[0].measurements[0].value
            assert f" {size:.1f} x " in drawn["text"]
            assert page.do("errors") == []
    finally:
        seen.close()


def test_the_viewer_is_used_with_the_keyboard(page: Page, tmp_path: Path) -> None:
    truth, findings = chest(tmp_path / "images", nodules=2)
    seen = Seen(tmp_path, truth.files, findings)
    slice_ = "Number(document.querySelector('.viewer input[type=range]').value)"
    try:
        with seen.served() as address:
            page.open_viewer(f"{address}/series/{seen.uid}/view")
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
            assert [each["label"] for each in page.value(f"{VIEWER}.state.drawn")] == ["Nodule 2"]
            windows = page.value(f"{VIEWER}.state.volume.windows.map(each => each.name)")
            assert windows[:3] == ["Lung", "Mediastinum", "Bone"]
            page.do("press", key="w")
            assert page.value(f"[{VIEWER}.nv.volumes[0].cal_min, {VIEWER}.nv.volumes[0].cal_max]") == [-160, 240]
            views = []
            for _ in range(4):
                page.do("press", key="v")
                views.append(page.value(f"{state}.view"))
            assert views == ["Coronal", "Sagittal", "All", "3-D"]
            deep = page.value(TINTED)
            assert deep["bright"] > 2000, "lungs in depth"
            page.do("press", key="v")
            assert page.value(f"{state}.view") == "Axial"
            x, y, wide, tall = page.value(RECTANGLE.format(".stage"))
            before = page.value(slice_)
            page.do("wheel", x=x + wide / 2, y=y + tall / 2, by=100)
            wait_for(lambda: abs(page.value(slice_) - before) == 1, 20, "the wheel to turn a slice")
            page.do("click", selector="[data-goes-to]", number=0)
            assert page.value(f"{state}.finding") == "Nodule 1"
            assert "HU" in page.value("document.querySelector('.where').textContent")
            assert page.do("wide") == 0
            assert page.do("errors") == []
    finally:
        seen.close()


def test_a_picture_for_the_documents(page: Page, tmp_path: Path) -> None:
    """The planes with a nodule, and the same on a telephone without JavaScript: nothing is scrolled sideways."""
    truth, findings = chest(tmp_path / "images", nodules=2)
    seen = Seen(tmp_path, truth.files, findings)
    try:
        with seen.served() as address:
            page.open_viewer(f"{address}/series/{seen.uid}/view", width=1180, height=1000)
            page.value(f"{VIEWER}.show(3)")
            view = page.value(TINTED)
            assert view["count"] > 30, "on three planes"
            picture = tmp_path / "viewer.png"
            page.do("picture", path=str(picture))
            assert picture.stat().st_size > 20_000
            if "VIEWER_PICTURE" in os.environ:
                shutil.copy(picture, ROOT / os.environ["VIEWER_PICTURE"])
            assert page.do("errors") == []
            for path in (f"/series/{seen.uid}/view", f"/series/{seen.uid}", "/feedback"):
                assert page.do("open", url=address + path, width=390, height=844, javaScript=False) == 200
                assert page.do("wide") == 0, path
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
            assert page.do("wide") == 0
            assert page.do("errors") == []
    finally:
        seen.close()
