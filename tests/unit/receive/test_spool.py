"""What the spool promises: the bytes as sent, the first under each UID, nothing lost, no name from the network."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_sr.uids import IMPLEMENTATION_CLASS_UID
from pacs_node.errors import NotReadable, SpoolFull, WrongSopClass
from pacs_node.receive import part10
from pacs_node.receive.spool import Fate, Spool
from tests.factories import ct_series
from tests.unit.receive.conftest import NOON, arrival, encoded


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", keep_free_gb=0)


def digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_bytes_as_sent_in_a_valid_file(spool: Spool, image: Dataset, data_set: bytes) -> None:
    kept = spool.keep(arrival(image, data_set, calling_ae="SCANNER_7"))
    instance = kept.instance
    assert kept.fate is Fate.NEW
    assert instance.path.read_bytes().endswith(data_set)
    assert instance.path.name == f"{digest(image.SOPInstanceUID)}.dcm"
    assert instance.path.parent.name == digest(image.SeriesInstanceUID)
    assert instance.sha256 == hashlib.sha256(data_set).hexdigest()
    assert instance.size == instance.path.stat().st_size
    assert (instance.association, instance.calling_ae, instance.received_at) == ("a-1", "SCANNER_7", NOON)
    assert (instance.series_uid, instance.study_uid) == (image.SeriesInstanceUID, image.StudyInstanceUID)
    read = pydicom.dcmread(instance.path)
    assert read == image
    assert read.file_meta.TransferSyntaxUID == instance.transfer_syntax_uid == image.file_meta.TransferSyntaxUID
    assert read.file_meta.SourceApplicationEntityTitle == "SCANNER_7"
    assert read.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    pydicom.dataset.validate_file_meta(read.file_meta)
    assert read.file_meta.FileMetaInformationGroupLength == instance.size - len(data_set) - 132 - 12


def test_every_length_of_ae_title_and_uid_makes_a_head_that_reads_back() -> None:
    for ae, uid in (("A", "1.2"), ("AB", "1.23"), ("SIXTEEN_LETTERS_", "1." + "2" * 62)):
        head = part10.decode(part10.encode("1.2.3", uid, "1.2.840.10008.1.2.1", ae) + b"rest of the file")
        assert (head.sop_instance_uid, head.source_ae) == (uid, ae)
        assert head.size == len(part10.encode("1.2.3", uid, "1.2.840.10008.1.2.1", ae))


def test_the_same_again_is_quiet(spool: Spool, image: Dataset, data_set: bytes) -> None:
    first = spool.keep(arrival(image, data_set)).instance
    again = spool.keep(arrival(image, data_set, association="a-2"))
    assert again.fate is Fate.SAME
    assert (again.instance.path, again.instance.association) == (first.path, "a-2")
    assert len(files(spool.root)) == 1


def test_other_bytes_keep_the_first_and_put_the_second_aside(spool: Spool, image: Dataset, data_set: bytes) -> None:
    first = spool.keep(arrival(image, data_set)).instance
    other = data_set[:-1] + b"\7"
    second = spool.keep(arrival(image, other))
    assert second.fate is Fate.ASIDE
    assert second.instance.sha256 == first.sha256
    assert first.path.read_bytes().endswith(data_set)
    assert second.aside is not None
    assert second.aside.read_bytes().endswith(other)
    assert second.aside.parent.name == "aside"
    assert spool.keep(arrival(image, other)).aside == second.aside
    assert len(files(spool.root)) == 2


def test_one_uid_in_two_series_is_put_aside_also_after_a_restart(spool: Spool, image: Dataset, data_set: bytes) -> None:
    first = spool.keep(arrival(image, data_set)).instance
    stray = copy.deepcopy(image)
    stray.SeriesInstanceUID = "2.25.1"
    assert Spool(spool.root, 0).keep(arrival(image, encoded(stray))).fate is Fate.ASIDE
    assert [instance.path for instance in Spool(spool.root, 0).scan()] == [first.path]


def test_an_instance_that_was_cleared_away_is_taken_in_again(spool: Spool, image: Dataset, data_set: bytes) -> None:
    spool.keep(arrival(image, data_set)).instance.path.unlink()
    assert spool.keep(arrival(image, data_set)).fate is Fate.NEW


def test_full_is_said_before_anything_is_written(tmp_path: Path, image: Dataset, data_set: bytes) -> None:
    spool = Spool(tmp_path / "spool", keep_free_gb=1e9)
    with pytest.raises(SpoolFull, match="less than 1e\\+09 GB free; free some space"):
        spool.keep(arrival(image, data_set))
    assert files(spool.root) == []


def test_full_while_writing_leaves_nothing(
    spool: Spool, image: Dataset, data_set: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.writev, 0

    def writev(file: int, views: list[memoryview]) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(file, [views[0][:10]])  # a short write first, as a nearly full disk does
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", writev)
    with pytest.raises(SpoolFull, match="ran full"):
        spool.keep(arrival(image, data_set))
    assert files(spool.root) == []


def test_short_writes_are_gone_on_with(
    spool: Spool, image: Dataset, data_set: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda file, views: real(file, [views[0][:97]]))
    assert spool.keep(arrival(image, data_set)).instance.path.read_bytes().endswith(data_set)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda data: data[:-9], NotReadable, "cut off"),
        (lambda data: b"", NotReadable, "empty"),
        (lambda data: b"junk" * 30, NotReadable, "no value representation"),
    ],
)
def test_what_cannot_be_read_is_kept_with_the_reason(
    spool: Spool, image: Dataset, data_set: bytes, spoil: Callable[[bytes], bytes], error: type[Exception], words: str
) -> None:
    spoilt = spoil(data_set)
    with pytest.raises(error, match=words):
        spool.keep(arrival(image, spoilt))
    name = hashlib.sha256(spoilt).hexdigest()
    assert files(spool.root) == [f"unreadable/{name}.dcm", f"unreadable/{name}.txt"]
    assert (spool.root / "unreadable" / f"{name}.dcm").read_bytes().endswith(spoilt)
    assert words in (spool.root / "unreadable" / f"{name}.txt").read_text() or "|" in words
    assert list(spool.scan()) == []


def test_the_command_must_name_the_same_instance(spool: Spool, image: Dataset, data_set: bytes) -> None:
    with pytest.raises(NotReadable, match=r"the command says 1\.2\.3"):
        spool.keep(arrival(image, data_set, sop_instance_uid="1.2.3"))
    with pytest.raises(WrongSopClass, match=r"the command says 1\.2\.840\.10008\.5\.1\.4\.1\.1\.7"):
        spool.keep(arrival(image, data_set, sop_class_uid="1.2.840.10008.5.1.4.1.1.7"))
    assert list(spool.scan()) == []


def test_no_text_from_the_network_becomes_a_path(spool: Spool, image: Dataset, data_set: bytes) -> None:
    with pytest.raises(NotReadable):
        spool.keep(arrival(image, data_set, sop_instance_uid="../../../etc/passwd", calling_ae="../EVIL"))
    spool.keep(arrival(image, data_set, calling_ae="../EVIL"))
    shape = re.compile(r"(instances/[0-9a-f]{64}|unreadable)/[0-9a-f]{64}\.(dcm|txt)")
    assert [name for name in files(spool.root) if not shape.fullmatch(name)] == []


def test_scan_reads_everything_again(spool: Spool) -> None:
    kept = {}
    for image in ct_series(shape=(3, 8, 8)) + ct_series(shape=(2, 8, 8), name="other"):
        kept[image.SOPInstanceUID] = spool.keep(arrival(image, encoded(image))).instance
    (spool.root / "unfinished" / "77-1").write_bytes(b"half an image")
    again = Spool(spool.root, 0)
    found = {instance.sop_instance_uid: instance for instance in again.scan()}
    for uid, instance in kept.items():
        for name in (
            "series_uid",
            "study_uid",
            "sop_class_uid",
            "transfer_syntax_uid",
            "path",
            "sha256",
            "size",
            "calling_ae",
        ):
            assert getattr(found[uid], name) == getattr(instance, name)
    assert found.keys() == kept.keys()
    assert list((spool.root / "unfinished").iterdir()) == []
    known = {instance.path for instance in list(kept.values())[:4]}
    assert [instance.path for instance in again.scan(known)] == [list(kept.values())[4].path]


def test_scan_moves_damaged_files_out_of_the_way(spool: Spool, image: Dataset, data_set: bytes) -> None:
    path = spool.keep(arrival(image, data_set)).instance.path
    path.write_bytes(path.read_bytes()[:-100])
    again = Spool(spool.root, 0)
    assert list(again.scan()) == []
    assert (spool.root / "unreadable" / path.name).exists()
    assert again.keep(arrival(image, data_set)).fate is Fate.NEW


def test_many_threads_one_instance(spool: Spool, image: Dataset, data_set: bytes) -> None:
    """Whoever comes first, exactly one data set is the stored one and every other is aside."""
    sent = [data_set[:-1] + bytes([number % 4]) for number in range(16)]
    kept: list[Any] = []
    threads = [threading.Thread(target=lambda d=each: kept.append(spool.keep(arrival(image, d)))) for each in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.fate for each in kept].count(Fate.NEW) == 1
    assert len({each.instance.sha256 for each in kept}) == 1
    assert len(files(spool.root)) == 4


def test_order_of_durability(spool: Spool, image: Dataset, data_set: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write, fsync the file, rename, fsync the folder: and the folder's own name before that."""
    story = list(_story(spool, image, data_set, monkeypatch))
    series = digest(image.SeriesInstanceUID)
    assert story == [
        f"mkdir {series}",
        "fsync instances",
        "open unfinished",
        "write",
        "fsync unfinished",
        "rename",
        f"fsync {series}",
    ]


def _story(spool: Spool, image: Dataset, data_set: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    story: list[str] = []
    names: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "mkdir", "writev")}

    def open_(path: Any, flags: int, *more: Any, **options: Any) -> int:
        file = real["open"](path, flags, *more, **options)
        names[file] = "unfinished" if Path(path).parent.name == "unfinished" else Path(path).name
        if flags & os.O_CREAT:
            story.append(f"open {names[file]}")
        return file

    def fsync(file: int) -> None:
        story.append(f"fsync {names[file]}")
        real["fsync"](file)

    def rename(source: Any, target: Any) -> None:
        story.append("rename")
        real["rename"](source, target)

    def mkdir(path: Any, *more: Any) -> None:
        real["mkdir"](path, *more)
        story.append(f"mkdir {Path(path).name}")

    def writev(file: int, views: list[memoryview]) -> int:
        story.append("write")
        return real["writev"](file, views)

    for name, stand_in in {"open": open_, "fsync": fsync, "rename": rename, "mkdir": mkdir, "writev": writev}.items():
        monkeypatch.setattr(os, name, stand_in)
    spool.keep(arrival(image, data_set))
    monkeypatch.undo()
    yield from story


def test_what_only_pydicom_reads_is_kept_and_found_again(spool: Spool, image: Dataset, data_set: bytes) -> None:
    """An implicit element inside an explicit data set, as scanners send it."""
    odd = b"\x29\0\x11\x10\x0a\0\0\0some text "
    at = data_set.index(b"\xe0\x7f\x10\0")
    sent = data_set[:at] + odd + data_set[at:]
    kept = spool.keep(arrival(image, sent)).instance
    [found] = Spool(spool.root, 0).scan()
    assert (found.path, found.series_uid, found.sha256) == (kept.path, image.SeriesInstanceUID, kept.sha256)
    assert spool.keep(arrival(image, sent)).fate is Fate.SAME
