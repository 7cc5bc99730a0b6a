"""The samples in docs/samples.md are what is made today of the same phantoms: each sentence, each picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicom_sr.capture import key_images
from dicom_sr.derived import Results
from dicom_sr.findings import ImageRef
from dicom_sr.plain_sr import sentences
from models.read import display
from tests.harness import ROOT
from tests.interop.test_ohif import Study, clip_study, ct_study

SAMPLES = ROOT / "docs" / "samples"
STUDIES = {"ct": ct_study, "clip": clip_study}
NOTABLE = 40  # grey values; a phantom differs by less from processor to processor, a line or a letter by more
MOST_PIXELS = 20  # of those


@pytest.mark.parametrize("name", STUDIES)
def test_a_sample_is_what_is_made_today(name: str, tmp_path: Path) -> None:
    """`make pictures` makes the pictures anew."""
    make: Callable[[Path], Study] = STUDIES[name]
    study = make(tmp_path)
    said = {str(each.SOPInstanceUID) for each in study.objects}
    of = {str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in tmp_path.iterdir()}
    sources = {uid: pydicom.dcmread(path, stop_before_pixels=True) for uid, path in of.items() if uid not in said}
    segmentation, report = study.objects

    def pixels(ref: ImageRef) -> np.ndarray:
        return display(of[ref.sop_instance_uid], ref.frame)

    first = key_images(segmentation, Results((segmentation,), report, sources), pixels)[0]
    drawn = np.frombuffer(first.PixelData, np.uint8)[: first.Rows * first.Columns * 3].reshape(first.Rows, -1, 3)
    kept = SAMPLES / f"{name}-key-image.png"
    if "PICTURES" in os.environ:
        Image.fromarray(drawn).save(kept, optimize=True)
    with Image.open(kept) as picture:
        there = np.asarray(picture.convert("RGB")).astype(int)
    assert there.shape == drawn.shape
    assert (np.abs(there - drawn).max(axis=2) > NOTABLE).sum() <= MOST_PIXELS, "run `make pictures`"
    document = (ROOT / "docs" / "samples.md").read_text()
    assert [each.text for each in sentences(report) if f"{each.text}\n" not in document] == []
