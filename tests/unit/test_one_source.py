"""What two packages must agree on is decided in one place."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicom_sr import encode
from dicom_sr.source import plane
from models.read import read_ultrasound
from pacs_node.records import Pause, moment
from tests.factories import ct_series, us_image
from tests.harness import ROOT
from tests.results import WHEN, ct_findings


def test_segmentation_and_measurements_use_one_calibration(tmp_path: Path) -> None:
    """Two tissue regions, a colour region and another PixelSpacing: reader and writer choose the same one."""
    image = us_image(tmp_path, shape=(200, 300))
    small, large, colour = Dataset(), Dataset(), Dataset()
    places = ((small, (90, 90), 0.01, 1), (large, (290, 190), 0.02, 1), (colour, (299, 199), 0.03, 2))
    for region, (x1, y1), delta_cm, kind in places:
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, kind, 0
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1, y1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = delta_cm, delta_cm / 2
    image.SequenceOfUltrasoundRegions = [small, colour, large]
    image.PixelSpacing = [0.5, 0.5]
    image.save_as(tmp_path / "0000.dcm", enforce_file_format=True)
    spacing_mm = plane(image).spacing_mm
    assert spacing_mm is not None
    assert [float(mm) for mm in spacing_mm] == [0.1, 0.2]  # rows, columns of the largest tissue region
    for region in read_ultrasound(tmp_path / "0000.dcm").regions:
        for x, y in ((0, 0), (90, 90), (91, 90), (290, 190)):
            if region.holds(x, y):
                written = plane(image, None, (x, y)).spacing_mm
                assert written is not None
                assert region.spacing_mm == tuple(float(mm) for mm in written)
    assert plane(image, None, (299, 199)).spacing_mm is None  # colour flow


def test_other_options_make_other_objects() -> None:
    images = ct_series(shape=(3, 16, 16))
    plain = ct_findings(images)
    uids = {
        str(dataset.SOPInstanceUID)
        for variant in ("", '{"peak": 0.9}')
        for dataset in encode(replace(plain, variant=variant), images, when=WHEN)
    }
    assert len(uids) == 2


@pytest.fixture(params=["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_time_is_said_in_utc_wherever_the_machine_is(machine: None) -> None:
    at = datetime(2026, 3, 14, 11, 10, 5, tzinfo=timezone(timedelta(hours=1, minutes=30)))
    assert moment(at) == "2026-03-14 09:40 UTC"
    assert moment(at, "seconds") == "2026-03-14 09:40:05 UTC"
    paused = Pause("destination", "pacs", at, "ana", until=at + timedelta(hours=1))
    assert paused.words.endswith("since 2026-03-14 09:40 UTC until 2026-03-14 10:40 UTC")


def test_no_source_says_a_time_without_its_zone() -> None:
    said = [
        (path.name, found[0])
        for folder in ("pacs_node", "config", "models", "dicom_sr")
        for path in (ROOT / folder).rglob("*.py")
        for found in re.finditer(r"\{[^{}]*:[^{}]*%H:%M[^{}]*\}.{0,4}", path.read_text())
    ]
    assert said, "the pattern finds none"
    assert not [each for each in said if "%Z" not in each[1] and not each[1].endswith("} UTC")]
