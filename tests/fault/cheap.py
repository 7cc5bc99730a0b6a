"""A pipeline that costs nothing and tells what it saw: its one figure is made of the pixels of all its images."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset

from dicom_sr import codes
from dicom_sr.findings import Algorithm, Findings, Measurement
from models.options import PipelineOptions
from models.pipeline import Card, Declaration
from tests.factories import us_image
from tests.results import us_findings

ENTRY_POINT = "[pacs_node.pipelines]\ncheap = tests.fault.cheap:PIPELINE\n"


class Options(PipelineOptions):
    takes_s: float = 0.0


class Pipeline:
    card = Card("cheap", frozenset({"US"}), Algorithm("cheap", "1"), "Research use only, not for diagnostic use.")

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.takes_s = Options.read(options).takes_s

    def warm(self) -> None:
        pass

    def run(self, files: Sequence[Path], progress: Callable[[float, str], None]) -> Findings:
        progress(0.5, "looking")
        time.sleep(self.takes_s)
        images = [pydicom.dcmread(file) for file in files]
        figure = Measurement(codes.MAX_3D_DIAMETER, figure_of(image.PixelData for image in images), codes.MM)
        return us_findings(images, pipeline="cheap", algorithm=self.card.algorithm, measurements=(figure,))


PIPELINE = Declaration(Pipeline.card, "tests.fault.cheap:Pipeline", Options)


def figure_of(pixels: Iterable[bytes]) -> float:
    """A number that another byte in any image would change."""
    return sum(zlib.crc32(each) for each in pixels) % 100_000


def figure_in(report: Dataset) -> float:
    """The number that a report says."""
    [figure] = (
        float(item.MeasuredValueSequence[0].NumericValue)
        for item in _items(report)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == codes.MAX_3D_DIAMETER.value
    )
    return figure


def images_of(report: Dataset) -> frozenset[str]:
    """SOP Instance UIDs of the images that a report is about."""
    return frozenset(
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for item in _items(report)
        if item.ValueType == "IMAGE"
    )


def _items(item: Dataset) -> Iterable[Dataset]:
    for each in item.get("ContentSequence", ()):
        yield each
        yield from _items(each)


def installed(folder: Path) -> Path:
    """A folder in which it is installed, as pip would: for `NodeProcess(installed=...)`."""
    about = folder / "cheap-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cheap\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINT)
    return folder


def image(name: str, number: int, *, size: int = 64) -> Dataset:
    """An image of a series, with pixels of its own."""
    import numpy as np

    seed = zlib.crc32(f"{name} {number}".encode())
    voxels = np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)
    return us_image(name=name, number=number, voxels=voxels)
