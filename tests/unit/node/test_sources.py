"""Headers are read while models are at work, and whoever does not want them does not wait for them."""

from __future__ import annotations

import threading
from itertools import repeat
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError

from dicom_sr.reading import read_header
from pacs_node import sources
from pacs_node.sources import read_meanwhile
from tests.results import CASES


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    images = CASES["ct_two"]().images
    paths = [tmp_path / f"{number}.dcm" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save_as(path, enforce_file_format=True)
    return paths


def test_they_are_read_and_decoded_before_anybody_asks(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    begun = {file: threading.Event() for file in files}

    def noted(file: Path) -> Dataset:
        begun[file].set()
        return read_header(file)

    monkeypatch.setattr(sources, "read_header", noted)
    with read_meanwhile(files) as headers:
        assert all(each.wait(60) for each in begun.values())
        found = headers()
    assert [header.SOPInstanceUID for header in found] == [read_header(file).SOPInstanceUID for file in files]
    raw = [header.get_item("ImagePositionPatient") for header in map(read_header, files)]
    assert all(isinstance(each, RawDataElement) for each in raw)
    assert not any(isinstance(each.get_item("ImagePositionPatient"), RawDataElement) for each in found)


def test_who_leaves_without_them_does_not_wait_for_all(files: list[Path]) -> None:
    with pytest.raises(ZeroDivisionError), read_meanwhile(repeat(files[0])):  # it has no end
        raise ZeroDivisionError


def test_what_cannot_be_read_is_said_when_it_is_asked_for(files: list[Path]) -> None:
    files[1].write_bytes(b"no image")
    with read_meanwhile(files) as headers, pytest.raises(InvalidDicomError):
        headers()
