"""OHIF as a reader uses it, and what is to be seen in it.

What a picture shows is judged by its pixels alone: where the image lies follows from its size and the viewport's,
which image it is from how well the grey values agree, and where a segment lies from the pixels of its colour.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from scipy import ndimage

from tests.harness import DICOMWEB, ROOT, Orthanc, missing, need

HERE = Path(__file__).parent
OUT = ROOT / "tests" / "interop" / "out"
THUMBNAIL = '[data-cy^="study-browser-thumbnail"]'
YES = '[data-cy="yes-hydrate-btn"]'
MEASUREMENTS = '[data-cy="trackedMeasurements-btn"]'
ROW = '[data-cy^="measurement-table-row"] [data-cy="data-row"]'


@dataclass(frozen=True, eq=False)
class Sight:
    """What the page shows at one moment."""

    pixels: np.ndarray  # uint8 (rows, columns, 3), the viewport alone
    written: list[str]  # on the image
    rows: list[str]  # of the measurement panel


class Viewer:
    """OHIF over the DICOMweb of an Orthanc, in a headless browser. Its pictures are kept in tests/interop/out."""

    def __init__(self, pacs: Orthanc) -> None:
        if not DICOMWEB.exists():
            missing(f"{DICOMWEB} is not there; see .ci/run for the Debian packages")
        if not (HERE / "node_modules").is_dir():
            missing(f"OHIF is not installed; run `npm ci --ignore-scripts` in {HERE.relative_to(ROOT)}")
        self.command = [need("node"), str(HERE / "viewer.mjs"), need("chromium"), pacs.url]

    def __enter__(self) -> Self:
        OUT.mkdir(exist_ok=True)
        with (OUT / "viewer.log").open("w") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        """Closing its input ends it, and the browser with it."""
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def open(self, study_uid: str) -> None:
        self._do("open", study=study_uid)

    def load(self, series: str, *, hydrate: bool = True) -> None:
        """Open a SEG or SR by the name of its series; say yes when asked."""
        self._do("click", selector=THUMBNAIL, text=series, times=2)
        if hydrate:
            self._do("click", selector=YES)

    def turn(self, images: int) -> None:
        """Down the stack, or up if negative."""
        self._do("press", key="ArrowDown" if images > 0 else "ArrowUp", times=abs(images))

    def show_measurements(self) -> None:
        self._do("click", selector=MEASUREMENTS)

    def jump_to_measurement(self, row: int) -> None:
        self._do("click", selector=ROW, number=row)

    def look(self, name: str) -> Sight:
        """Fails if the page has had an error."""
        path = OUT / f"{name}.png"
        seen = self._do("look", path=str(path))
        assert seen["errors"] == []
        box = seen["box"]
        left, top = round(box["x"]), round(box["y"])
        with Image.open(path) as page:
            viewport = page.convert("RGB").crop((left, top, left + int(box["width"]), top + int(box["height"])))
        return Sight(np.asarray(viewport), seen["written"], seen["rows"])

    def _do(self, action: str, **options: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": action, **options}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the viewer ended: {(OUT / 'viewer.log').read_text()}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["done"]


def as_shown(
    picture: np.ndarray, viewport: tuple[int, ...], spacing_mm: tuple[float, float], every: int = 1
) -> np.ndarray:
    """An image (rows, columns) as large as the viewport allows, upright, in its middle; NaN beside it.

    viewport     (rows, columns) of the screen
    spacing_mm   (between rows, between columns)
    every        2 leaves out every other row and column of the screen, and so on
    """
    mm_per_pixel = float(np.max(np.multiply(picture.shape, spacing_mm) / viewport))
    places = [
        (np.arange(0, pixels, every) + 0.5 - pixels / 2) * mm_per_pixel / spacing + count / 2 - 0.5
        for pixels, spacing, count in zip(viewport, spacing_mm, picture.shape, strict=True)
    ]
    order = 0 if picture.dtype == bool else 1
    return ndimage.map_coordinates(
        picture.astype(np.float32), np.meshgrid(*places, indexing="ij"), order=order, mode="constant", cval=np.nan
    )


def which_image(sight: Sight, images: Sequence[np.ndarray], spacing_mm: tuple[float, float]) -> tuple[int, float]:
    """The image that agrees best with the viewport's grey values, and its correlation with them."""
    every = 3  # a ninth of the pixels tells as much
    pixels = sight.pixels[::every, ::every].astype(np.float32)
    grey, coloured = pixels.mean(axis=-1), np.ptp(pixels, axis=-1) > 30
    agreement = []
    for image in images:
        expected = as_shown(image, sight.pixels.shape[:2], spacing_mm, every)
        told = ~np.isnan(expected) & ~coloured
        agreement.append(float(np.corrcoef(grey[told], expected[told])[0, 1]))
    best = int(np.argmax(agreement))
    return best, agreement[best]


def tinted(sight: Sight, rgb: Sequence[int]) -> np.ndarray:
    """bool (rows, columns): pixels with the hue of a colour, laid over any grey."""
    hue = np.subtract(rgb, np.mean(rgb))
    chroma = sight.pixels - sight.pixels.mean(axis=-1, keepdims=True, dtype=np.float32)
    strength = np.linalg.norm(chroma, axis=-1)
    return (strength > 30) & (chroma @ hue > 0.95 * strength * np.linalg.norm(hue))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0
