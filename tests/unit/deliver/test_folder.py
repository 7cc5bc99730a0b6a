"""A folder as destination: whole files under names that tell nothing of the patient, the same again does no harm."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pydicom
import pytest

from pacs_node.deliver.destination import Deferred, Undeliverable
from pacs_node.deliver.folder import FolderDestination
from pacs_node.records import Package, Receipt
from tests.factories import ct_series
from tests.unit.deliver.conftest import NOON, now


def deliver(root: Path, paths: list[Path]) -> list[Receipt]:
    return FolderDestination("folder", root).deliver(Package("job", tuple(paths)), now)


def test_copies_by_study_and_modality(tmp_path: Path, images: list[Path]) -> None:
    root = tmp_path / "out"
    receipts = deliver(root, images)
    copies = sorted(root.rglob("*"))
    assert [each for each in copies if each.is_file()] == sorted(root.glob("study-*/*.dcm"))
    for receipt, path in zip(receipts, images, strict=True):
        copy = Path(receipt.text.removeprefix("written to "))
        assert copy.read_bytes() == path.read_bytes()
        assert re.fullmatch(r"study-[0-9a-f]{16}/(CT|US)-[0-9a-f]{16}\.dcm", str(copy.relative_to(root)))
        assert (receipt.sop_instance_uid, receipt.stored, receipt.status, receipt.at) == (
            pydicom.dcmread(path).SOPInstanceUID,
            True,
            None,
            NOON,
        )


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
@pytest.mark.parametrize(
    ("readable_by", "folders", "files"),
    [("owner", 0o700, 0o600), ("group", 0o750, 0o640), ("everyone", 0o755, 0o644)],
)
def test_who_may_read_is_what_the_settings_say(
    tmp_path: Path, images: list[Path], readable_by: str, folders: int, files: int, umask: int
) -> None:
    root, before = tmp_path / "above" / "out", os.umask(umask)
    try:
        FolderDestination("folder", root, readable_by=readable_by).deliver(Package("job", tuple(images)), now)
    finally:
        os.umask(before)
    for each in (root.parent, root, *root.rglob("*")):
        assert each.stat().st_mode & 0o777 == (folders if each.is_dir() else files), each


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path, images: list[Path]) -> None:
    root = tmp_path / "out"
    root.mkdir()
    root.chmod(0o2775)
    deliver(root, images)
    assert root.stat().st_mode & 0o7777 == 0o2775


def test_the_same_again_writes_nothing(tmp_path: Path, images: list[Path]) -> None:
    first = deliver(tmp_path / "out", images)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    assert deliver(tmp_path / "out", images) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")} == before


def test_a_revised_object_replaces_the_old_one(tmp_path: Path, images: list[Path]) -> None:
    deliver(tmp_path / "out", images[:1])
    revised = pydicom.dcmread(images[0])
    revised.ImageComments = "revised"
    revised.save_as(images[0], enforce_file_format=True)
    deliver(tmp_path / "out", images[:1])
    (copy,) = (tmp_path / "out").rglob("*.dcm")
    assert pydicom.dcmread(copy).ImageComments == "revised"


def test_modality_from_the_file_is_no_path(tmp_path: Path) -> None:
    (image,) = ct_series(tmp_path / "ct", shape=(1, 8, 8))
    path = Path(image.filename)
    path.write_bytes(path.read_bytes().replace(b"CS\2\0CT", b"CS\2\0./"))
    assert pydicom.dcmread(path).Modality == "./"
    (receipt,) = deliver(tmp_path / "out", [path])
    assert Path(receipt.text.removeprefix("written to ")).name.startswith("OT-")


def test_a_folder_that_cannot_be_written(tmp_path: Path, images: list[Path]) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(Deferred, match="cannot write to"):
        deliver(tmp_path / "out", images)


def test_an_interrupted_copy_is_not_seen(tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Deferred, match="No space left on device") as raised:
        deliver(tmp_path / "out", images)
    assert raised.value.receipts == ()
    monkeypatch.undo()
    assert list((tmp_path / "out").rglob("*.dcm")) == []
    assert len(deliver(tmp_path / "out", images)) == 3
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 3


def test_not_dicom(tmp_path: Path, images: list[Path]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(Undeliverable, match=r"notes\.txt is no DICOM file") as raised:
        deliver(tmp_path / "out", [images[0], path])
    assert len(raised.value.receipts) == 1
