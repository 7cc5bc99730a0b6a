"""What the spool promises: the bytes as sent, the first under each UID, nothing lost, no name from the network."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shutil
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_sr.uids import IMPLEMENTATION_CLASS_UID
from pacs_node import fsck, pack
from pacs_node.errors import LedgerUnavailable, NotReadable, ReceiveError, SpoolFull, TooLarge, WrongSopClass
from pacs_node.intake import Intake
from pacs_node.ledger import Ledger
from pacs_node.receive import part10
from pacs_node.receive.header import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from pacs_node.receive.spool import EARLY, Fate, Spool
from pacs_node.records import Instance
from tests.factories import ct_series
from tests.unit.receive.conftest import NOON, Arrival, arrival, data_set_of, encoded


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", keep_free_gb=0)


@pytest.fixture(scope="module")
def large() -> Dataset:
    """Longer than what waits in memory."""
    [image] = ct_series(shape=(1, 256, 256), name="large")
    assert len(encoded(image)) > EARLY
    return image


@pytest.fixture(params=["small", "large"])
def sent(request: pytest.FixtureRequest, image: Dataset, large: Dataset) -> Dataset:
    return image if request.param == "small" else large


def digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()


def files(folder: Path) -> list[str]:
    """All that holds anything."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def scanned(root: Path, **known: Any) -> tuple[Spool, list[Instance]]:
    """A spool after a restart."""
    spool = Spool(root, 0)
    return spool, list(spool.scan(**known))


def test_the_bytes_as_sent_in_a_valid_file(spool: Spool, sent: Dataset) -> None:
    data_set = encoded(sent)
    kept = arrival(sent, data_set, calling_ae="SCANNER_7").brought_to(spool)
    instance = kept.instance
    assert kept.fate is Fate.NEW
    assert data_set_of(instance) == data_set
    assert instance.path.parent.name == digest(sent.SeriesInstanceUID)
    assert instance.offset + instance.size == instance.path.stat().st_size
    assert (instance.association, instance.calling_ae, instance.received_at) == ("a-1", "SCANNER_7", NOON)
    assert (instance.series_uid, instance.study_uid) == (sent.SeriesInstanceUID, sent.StudyInstanceUID)
    read = pydicom.dcmread(BytesIO(pack.content(instance.stored)))
    assert read == sent
    assert read.file_meta.TransferSyntaxUID == instance.transfer_syntax_uid == sent.file_meta.TransferSyntaxUID
    assert read.file_meta.SourceApplicationEntityTitle == "SCANNER_7"
    assert read.file_meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    pydicom.dataset.validate_file_meta(read.file_meta)
    assert read.file_meta.FileMetaInformationGroupLength == instance.size - len(data_set) - 132 - 12


@pytest.mark.parametrize("fragment", [1, 7, 1000, EARLY - 1, EARLY, EARLY + 1, 1 << 20])
def test_however_it_is_cut_into_fragments(spool: Spool, sent: Dataset, fragment: int) -> None:
    if fragment < 1000 and sent.Rows > 100:
        fragment += 500
    data_set = encoded(sent)
    assert data_set_of(arrival(sent, data_set).brought_to(spool, fragment).instance) == data_set


def test_every_length_of_ae_title_and_uid_makes_a_head_that_reads_back() -> None:
    for ae, uid in (("A", "1.2"), ("AB", "1.23"), ("SIXTEEN_LETTERS_", "1." + "2" * 62)):
        head = part10.decode(part10.encode("1.2.3", uid, "1.2.840.10008.1.2.1", ae) + b"rest of the file")
        assert (head.sop_instance_uid, head.source_ae) == (uid, ae)
        assert head.size == len(part10.encode("1.2.3", uid, "1.2.840.10008.1.2.1", ae))


def test_a_series_is_one_file(spool: Spool) -> None:
    images = ct_series(shape=(5, 16, 16)) + ct_series(shape=(3, 256, 256), name="other")
    kept = [arrival(image, encoded(image)).brought_to(spool).instance for image in images]
    assert len({instance.path for instance in kept}) == 2
    assert [data_set_of(instance) for instance in kept] == [encoded(image) for image in images]


def test_the_same_again_is_quiet(spool: Spool, sent: Dataset) -> None:
    first = arrival(sent, encoded(sent)).brought_to(spool).instance
    again = arrival(sent, encoded(sent), association="a-2").brought_to(spool)
    assert again.fate is Fate.SAME
    assert (again.instance.stored, again.instance.association) == (first.stored, "a-2")
    assert len(files(spool.root)) == 1
    assert first.path.stat().st_size == first.offset + first.size


def test_other_bytes_keep_the_first_and_put_the_second_aside(spool: Spool, sent: Dataset) -> None:
    data_set = encoded(sent)
    first = arrival(sent, data_set).brought_to(spool).instance
    other = data_set[:-1] + b"\7"
    second = arrival(sent, other).brought_to(spool)
    assert second.fate is Fate.ASIDE
    assert second.instance.stored == first.stored
    assert data_set_of(first) == data_set
    assert second.aside is not None
    assert second.aside.read_bytes().endswith(other)
    assert second.aside.parent.name == "aside"
    assert arrival(sent, other).brought_to(spool).aside == second.aside
    assert len(files(spool.root)) == 2


def test_the_same_bytes_in_another_syntax_are_other_ones(spool: Spool, image: Dataset) -> None:
    """What they mean hangs on the syntax."""
    data_set = encoded(image)
    arrival(image, data_set).brought_to(spool)
    other = arrival(image, data_set, transfer_syntax_uid="1.2.840.10008.1.2.4.70")
    assert other.brought_to(spool).fate is Fate.ASIDE


def test_one_uid_in_two_series_is_put_aside_also_after_a_restart(spool: Spool, sent: Dataset) -> None:
    first = arrival(sent, encoded(sent)).brought_to(spool).instance
    stray = copy.deepcopy(sent)
    stray.SeriesInstanceUID = "2.25.1"
    again, found = scanned(spool.root)
    assert [instance.stored for instance in found] == [first.stored]
    assert arrival(sent, encoded(stray)).brought_to(again).fate is Fate.ASIDE
    assert [instance.stored for instance in scanned(spool.root)[1]] == [first.stored]


def test_what_the_index_has_is_known_without_a_scan(tmp_path: Path, sent: Dataset) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    spool = Spool(tmp_path / "spool", 0, ledger.instance)
    first = arrival(sent, encoded(sent)).brought_to(spool).instance
    ledger.take_in(first)
    spool.indexed([first])
    again = Spool(tmp_path / "spool", 0, ledger.instance)
    assert list(again.scan(ledger.indexed_up_to())) == []
    assert arrival(sent, encoded(sent)).brought_to(again).fate is Fate.SAME
    assert arrival(sent, encoded(sent)[:-1] + b"\7").brought_to(again).fate is Fate.ASIDE


def test_an_index_that_is_away_keeps_nothing(tmp_path: Path, sent: Dataset) -> None:
    def away(uid: str) -> Instance | None:
        raise LedgerUnavailable("it is away")

    spool = Spool(tmp_path / "spool", 0, away)
    with pytest.raises(LedgerUnavailable):
        arrival(sent, encoded(sent)).brought_to(spool)
    assert files(spool.root) == []


def test_one_that_was_cleared_away_and_sent_again_is_found_beside_a_new_one(tmp_path: Path) -> None:
    """Both lie in one pack, and the process ends before either has its row: what is indexed of a pack has no holes."""
    ledger = Ledger(f"sqlite:///{tmp_path}/node.sqlite", tmp_path)
    ledger.migrate()
    first, second = ct_series(shape=(2, 16, 16))
    spool = Spool(tmp_path / "spool", 0, ledger.instance)
    intake = Intake(ledger, spool.indexed, lambda step: None)
    gone = arrival(first, encoded(first)).brought_to(spool).instance
    intake.take_in([gone])
    gone.path.unlink()
    for image in (first, second):
        assert arrival(image, encoded(image)).brought_to(spool).fate is Fate.NEW
    again = Spool(tmp_path / "spool", 0, ledger.instance)
    assert Intake(ledger, again.indexed, lambda step: None).take_in_found(again.scan(ledger.indexed_up_to())) == 2
    for image in (first, second):
        known = ledger.instance(image.SOPInstanceUID)
        assert known is not None
        assert data_set_of(known) == encoded(image)
    assert list(again.scan(ledger.indexed_up_to())) == []


def test_a_pack_that_was_moved_away_is_not_written_to(spool: Spool) -> None:
    first, second = ct_series(shape=(2, 16, 16))
    folder = arrival(first, encoded(first)).brought_to(spool).instance.path.parent
    folder.rename(spool.root / "trash")
    kept = arrival(second, encoded(second)).brought_to(spool).instance
    assert data_set_of(kept) == encoded(second)
    assert [each.stored for each in scanned(spool.root)[1]] == [kept.stored]


def test_what_is_sent_again_over_a_damaged_copy_is_kept(spool: Spool, sent: Dataset) -> None:
    first = arrival(sent, encoded(sent)).brought_to(spool).instance
    content = bytearray(first.path.read_bytes())
    content[first.offset + 128 : first.offset + 300] = bytes(172)
    first.path.write_bytes(content)
    again = arrival(sent, encoded(sent)).brought_to(spool)
    assert again.fate is Fate.ASIDE
    assert again.aside is not None
    assert again.aside.read_bytes().endswith(encoded(sent))


@pytest.mark.parametrize("gone", ["file", "folder"])
def test_an_instance_that_was_cleared_away_is_taken_in_again(spool: Spool, sent: Dataset, gone: str) -> None:
    path = arrival(sent, encoded(sent)).brought_to(spool).instance.path
    if gone == "file":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    kept = arrival(sent, encoded(sent)).brought_to(spool)
    assert kept.fate is Fate.NEW
    assert data_set_of(kept.instance) == encoded(sent)
    assert len(scanned(spool.root)[1]) == 1


def test_a_pack_that_is_deleted_under_an_image_is_no_success(spool: Spool, large: Dataset) -> None:
    incoming = spool.begin(arrival(large, b"").announced)
    incoming.write(encoded(large))
    [path] = spool.root.rglob("*.pack")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="deleted while"):
        incoming.keep(lambda: NOON)
    assert arrival(large, encoded(large)).brought_to(spool).fate is Fate.NEW
    assert len(scanned(spool.root)[1]) == 1


def test_full_is_said_before_anything_is_written(tmp_path: Path, sent: Dataset) -> None:
    spool = Spool(tmp_path / "spool", keep_free_gb=1e9)
    with pytest.raises(SpoolFull, match="less than 1e\\+09 GB free; free some space"):
        arrival(sent, encoded(sent)).brought_to(spool)
    assert files(spool.root) == []


FAULTS: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in ("pwritev", "fdatasync", "fsync", "open", "ftruncate", "mkdir", "statvfs")
}


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("code", [28, 5])  # ENOSPC, EIO
def test_the_nth_call_fails(
    tmp_path: Path, large: Dataset, image: Dataset, number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was answered with success is there, and nothing else; and when the disk is well again, all goes on."""
    spool = Spool(tmp_path / "spool", 0)
    before = arrival(image, encoded(image)).brought_to(spool).instance
    calls = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        return call

    for name, real in FAULTS.items():
        monkeypatch.setattr(os, name, failing(real))
    sent = arrival(large, encoded(large))
    kept, said = None, None
    try:
        kept = sent.brought_to(spool)
    except (ReceiveError, OSError) as error:
        said = error
    trouble = spool.trouble
    monkeypatch.undo()
    assert trouble == (f"images cannot be kept ({os.strerror(code)}): senders are answered 0xA700" if said else None)
    assert spool.trouble is None, "it is tried again"
    assert [*(spool.root / "unfinished").iterdir()] == [], "what was tried leaves nothing behind"
    assert said is None or isinstance(said, SpoolFull) == (code == 28), said
    there = [before] if kept is None else [before, kept.instance]
    assert {data_set_of(each) for each in scanned(spool.root)[1]} >= {data_set_of(each) for each in there}
    assert sent.brought_to(spool).fate is (Fate.NEW if kept is None else Fate.SAME)
    [again] = [each for each in scanned(spool.root)[1] if each.sop_instance_uid == large.SOPInstanceUID][:1]
    assert data_set_of(again) == encoded(large)


def test_short_writes_are_gone_on_with(spool: Spool, sent: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, views, at: real(file, [views[0][:977]], at))
    assert data_set_of(arrival(sent, encoded(sent)).brought_to(spool).instance) == encoded(sent)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda data: data[:-9], NotReadable, "cut off"),
        (lambda data: b"", NotReadable, "empty"),
        (lambda data: b"junk" * 30, NotReadable, "no value representation"),
    ],
)
def test_what_cannot_be_read_is_kept_with_the_reason(
    spool: Spool, sent: Dataset, spoil: Callable[[bytes], bytes], error: type[Exception], words: str
) -> None:
    spoilt = spoil(encoded(sent))
    with pytest.raises(error, match=words):
        arrival(sent, spoilt).brought_to(spool)
    name = hashlib.sha256(spoilt).hexdigest()
    assert files(spool.root) == [f"unreadable/{name}.dcm", f"unreadable/{name}.txt"]
    assert (spool.root / "unreadable" / f"{name}.dcm").read_bytes().endswith(spoilt)
    assert words in (spool.root / "unreadable" / f"{name}.txt").read_text()
    assert list(spool.scan()) == []


def test_the_command_must_name_the_same_instance(spool: Spool, sent: Dataset) -> None:
    with pytest.raises(NotReadable, match=r"the command says 1\.2\.3"):
        arrival(sent, encoded(sent), sop_instance_uid="1.2.3").brought_to(spool)
    with pytest.raises(WrongSopClass, match=r"the command says 1\.2\.840\.10008\.5\.1\.4\.1\.1\.7"):
        arrival(sent, encoded(sent), sop_class_uid="1.2.840.10008.5.1.4.1.1.7").brought_to(spool)
    assert list(spool.scan()) == []


def test_one_that_is_too_long_leaves_nothing(tmp_path: Path, large: Dataset) -> None:
    spool = Spool(tmp_path / "spool", 0, largest=1 << 20)
    incoming = spool.begin(arrival(large, b"").announced)
    for fragment in [encoded(large), *[bytes(1 << 16)] * 64]:
        incoming.write(fragment)
    assert sum(path.stat().st_size for path in spool.root.rglob("*") if path.is_file()) == 0
    with pytest.raises(TooLarge, match="longer than 1 MiB: largest_mb"):
        incoming.keep(lambda: NOON)
    assert files(spool.root) == []


def test_what_ends_in_the_middle_leaves_nothing(spool: Spool, large: Dataset) -> None:
    first = arrival(large, encoded(large)).brought_to(spool).instance
    other = copy.deepcopy(large)
    other.SOPInstanceUID = "2.25.77"
    incoming = spool.begin(arrival(other, b"").announced)
    incoming.write(encoded(other)[: EARLY + 100])
    assert first.path.stat().st_size > first.offset + first.size
    incoming.drop()
    assert first.path.stat().st_size == first.offset + first.size
    assert arrival(other, encoded(other)).brought_to(spool).instance.path == first.path


@pytest.mark.parametrize("syntax", ["deflated", "first series is another", "series after the pixels"])
def test_a_series_that_is_only_known_at_the_end(spool: Spool, large: Dataset, syntax: str) -> None:
    data_set, options = encoded(large), {}
    series = b"\x20\0\x0e\0UI"
    at = data_set.index(series)
    element = data_set[at : at + 8 + int.from_bytes(data_set[at + 6 : at + 8], "little")]
    if syntax == "deflated":
        noise = os.urandom(256 * 256 * 2)  # else it is short
        data_set = data_set[: -len(noise)] + noise
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data_set = compressor.compress(data_set) + compressor.flush()
        data_set += b"\0" * (len(data_set) % 2)
        options = {"transfer_syntax_uid": DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN}
    elif syntax == "first series is another":
        filler = b"\x29\0\x10\x10UN\0\0" + (1 << 17).to_bytes(4, "little") + bytes(1 << 17)
        stray = element.replace(b"2.25", b"2.26", 1)
        assert stray != element
        data_set = data_set.replace(element, stray + filler + element)
    else:
        filler = b"\x09\0\x10\x10UN\0\0" + (1 << 17).to_bytes(4, "little") + bytes(1 << 17)
        data_set = filler + data_set
    kept = arrival(large, data_set, **options).brought_to(spool)
    assert kept.fate is Fate.NEW
    assert kept.instance.path.parent.name == digest(large.SeriesInstanceUID)
    assert data_set_of(kept.instance) == data_set
    assert len(files(spool.root)) == 1
    assert len(scanned(spool.root)[1]) == 1


def test_no_text_from_the_network_becomes_a_path(spool: Spool, sent: Dataset) -> None:
    with pytest.raises(NotReadable):
        arrival(sent, encoded(sent), sop_instance_uid="../../../etc/passwd", calling_ae="../EVIL").brought_to(spool)
    arrival(sent, encoded(sent), calling_ae="../EVIL").brought_to(spool)
    shape = re.compile(r"instances/[0-9a-f]{64}/[0-9T]+-\d+-\d+\.pack|unreadable/[0-9a-f]{64}\.(dcm|txt)")
    assert [name for name in files(spool.root) if not shape.fullmatch(name)] == []


def of(instance: Instance) -> tuple[Any, ...]:
    return tuple(getattr(instance, name) for name in Instance.__dataclass_fields__)


def test_scan_reads_everything_again(spool: Spool) -> None:
    images = ct_series(shape=(3, 8, 8)) + ct_series(shape=(2, 256, 256), name="other")
    kept = [arrival(image, encoded(image)).brought_to(spool).instance for image in images]
    (spool.root / "unfinished" / "77-1").write_bytes(b"half an image")
    again, found = scanned(spool.root)
    assert sorted(map(of, found)) == sorted(map(of, kept))
    assert list((spool.root / "unfinished").iterdir()) == []
    known = {instance.path: instance.offset + instance.size for instance in kept[:4]}
    assert [instance.stored for instance in again.scan(known)] == [kept[4].stored]


def test_files_of_earlier_versions_are_taken_over(spool: Spool, image: Dataset) -> None:
    """One file for each instance, named by digests."""
    data_set = encoded(image)
    head = part10.encode(image.SOPClassUID, image.SOPInstanceUID, image.file_meta.TransferSyntaxUID, "ME")
    path = spool.root / "instances" / digest(image.SeriesInstanceUID) / f"{digest(image.SOPInstanceUID)}.dcm"
    path.parent.mkdir()
    path.write_bytes(head + data_set)
    again, [found] = scanned(spool.root)
    assert (found.path, found.offset, found.size) == (path, 0, len(head + data_set))
    assert arrival(image, data_set).brought_to(again).fate is Fate.SAME
    assert arrival(image, data_set[:-1] + b"\7").brought_to(again).fate is Fate.ASIDE
    assert scanned(spool.root, known={path: found.size})[1] == []
    path.write_bytes(path.read_bytes()[:-100])
    told: list[Path] = []
    assert list(Spool(spool.root, 0).scan(on_damaged=lambda path, reason: told.append(path))) == []
    assert told == [spool.root / "unreadable" / path.name]
    assert told[0].exists()
    assert not path.exists()


def test_a_pack_may_be_cut_off_while_it_is_read(spool: Spool, large: Dataset) -> None:
    first = arrival(large, encoded(large)).brought_to(spool).instance
    other = copy.deepcopy(large)
    other.SOPInstanceUID = "2.25.79"
    incoming = spool.begin(arrival(other, b"").announced)
    for _ in range(40):
        incoming.write(encoded(other))
    found = pack.records(first.path)
    assert next(found).offset == first.offset
    incoming.drop()
    assert list(found) == []


@pytest.mark.parametrize("spoil", ["a bit of the image", "a bit of the head", "the end is missing"])
def test_scan_passes_over_what_is_damaged(spool: Spool, spoil: str) -> None:
    """And says so; what lies behind it is found."""
    images = ct_series(shape=(3, 16, 16))
    kept = [arrival(image, encoded(image)).brought_to(spool).instance for image in images]
    path, damaged = kept[0].path, kept[1 if spoil != "the end is missing" else 2]
    content = bytearray(path.read_bytes())
    if spoil == "the end is missing":
        del content[-100:]
    else:
        content[damaged.offset + (700 if spoil == "a bit of the image" else -60)] ^= 1
    path.write_bytes(content)
    told: list[Path] = []
    again = Spool(spool.root, 0)
    found = list(again.scan(on_damaged=lambda path, reason: told.append(path)))
    assert [each.stored for each in found] == [each.stored for each in kept if each != damaged]
    assert len(told) == (1 if spoil == "a bit of the image" else 0)
    image = images[kept.index(damaged)]
    assert arrival(image, encoded(image)).brought_to(again).fate is Fate.NEW


def test_many_threads_one_instance(spool: Spool, sent: Dataset) -> None:
    """Whoever comes first, exactly one data set is the stored one and every other is aside."""
    data_set = encoded(sent)
    brought = [data_set[:-1] + bytes([number % 4]) for number in range(16)]
    kept: list[Any] = []
    _together([lambda d=each: kept.append(arrival(sent, d).brought_to(spool)) for each in brought])
    assert [each.fate for each in kept].count(Fate.NEW) == 1
    assert len({each.instance.stored for each in kept}) == 1
    assert len([name for name in files(spool.root) if name.startswith("aside")]) == 3
    assert len(scanned(spool.root)[1]) == 1


def test_many_threads_many_instances_of_one_series(spool: Spool) -> None:
    images = ct_series(shape=(24, 160, 160))
    kept: list[Instance] = []
    _together(
        [lambda i=image: kept.append(arrival(i, encoded(i)).brought_to(spool, 9000).instance) for image in images]
    )
    by_uid = {instance.sop_instance_uid: instance for instance in kept}
    assert all(data_set_of(by_uid[image.SOPInstanceUID]) == encoded(image) for image in images)
    assert sorted(map(of, scanned(spool.root)[1])) == sorted(map(of, kept))


def _together(work: Sequence[Callable[[], Any]]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_order_of_durability(spool: Spool, sent: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, its own name, the pack, its name; then the image, its head, one sync. Then a sync each."""
    story = list(_story(spool, sent, monkeypatch))
    series = digest(sent.SeriesInstanceUID)
    written = [each for each in story if each != "write"]
    assert written == [f"mkdir {series}", "fsync instances", "open pack", f"fsync {series}", "sync pack"]
    assert story[-2:] == ["write", "sync pack"]
    other = copy.deepcopy(sent)
    other.SOPInstanceUID = "2.25.78"
    assert [each for each in _story(spool, other, monkeypatch) if each != "write"] == ["sync pack"]


def _story(spool: Spool, image: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    story: list[str] = []
    names: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "fdatasync", "mkdir", "pwritev")}

    def open_(path: Any, flags: int, *more: Any, **options: Any) -> int:
        file = real["open"](path, flags, *more, **options)
        names[file] = "pack" if Path(path).suffix == ".pack" else Path(path).name
        if flags & os.O_CREAT:
            story.append(f"open {names[file]}")
        return int(file)

    def fsync(file: int) -> None:
        story.append(f"fsync {names[file]}")
        real["fsync"](file)

    def fdatasync(file: int) -> None:
        story.append("sync pack")
        real["fdatasync"](file)

    def mkdir(path: Any, *more: Any) -> None:
        real["mkdir"](path, *more)
        story.append(f"mkdir {Path(path).name}")

    def pwritev(file: int, views: list[memoryview], at: int) -> int:
        story.append("write")
        return int(real["pwritev"](file, views, at))

    instead = {"open": open_, "fsync": fsync, "fdatasync": fdatasync, "mkdir": mkdir, "pwritev": pwritev}
    for name, stand_in in instead.items():
        monkeypatch.setattr(os, name, stand_in)
    arrival(image, encoded(image)).brought_to(spool)
    monkeypatch.undo()
    yield from story


def test_what_only_pydicom_reads_is_kept_and_found_again(spool: Spool, sent: Dataset) -> None:
    """An implicit element inside an explicit data set, as scanners send it."""
    data_set = encoded(sent)
    odd = b"\x29\0\x11\x10\x0a\0\0\0some text "
    at = data_set.index(b"\xe0\x7f\x10\0")
    brought = arrival(sent, data_set[:at] + odd + data_set[at:])
    kept = brought.brought_to(spool).instance
    _, [found] = scanned(spool.root)
    assert (found.stored, found.series_uid) == (kept.stored, sent.SeriesInstanceUID)
    assert brought.brought_to(spool).fate is Fate.SAME


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_packs_that_nobody_writes_to_are_closed_in_the_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.receive.spool.MOST_OPEN", 3)
    before = open_files()
    for number in range(12):
        [image] = ct_series(shape=(1, 8, 8), name=f"series {number}")
        arrival(image, encoded(image)).brought_to(spool)
    assert open_files() - before == 3
    spool.close()
    assert open_files() == before
    assert len(scanned(spool.root)[1]) == 12


def test_packs_that_nothing_comes_for_are_closed_and_the_next_image_is_kept(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    first, second = ct_series(shape=(2, 8, 8), name="a series")
    arrival(first, encoded(first)).brought_to(spool)
    spool.close_unused()
    assert open_files() - before == 1, "it was used just now"
    monkeypatch.setattr("pacs_node.receive.spool.UNUSED_S", 0.0)
    ledger = Ledger(f"sqlite:///{spool.root.parent}/node.sqlite", spool.root.parent)
    try:
        ledger.migrate()
        intake = Intake(ledger, spool.indexed, lambda step: None, rest=spool.close_unused)
        with_ledger = open_files()
        assert intake._look() is None
    finally:
        ledger.close()
    assert open_files() < with_ledger
    assert open_files() == before
    arrival(second, encoded(second)).brought_to(spool)
    assert len(scanned(spool.root)[1]) == 2


def test_what_is_remembered_of_series_does_not_grow(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a series whose folder is forgotten the folder is synced once more, and that is all."""
    monkeypatch.setattr("pacs_node.receive.spool.MOST_FOLDERS", 3)
    for number in (*range(8), 0, 1):
        [image, *_] = ct_series(shape=(2, 8, 8), name=f"series {number}")
        arrival(image, encoded(image)).brought_to(spool)
        assert len(spool._folders_on_disk) <= 3
    assert len(scanned(spool.root)[1]) == 8


# ---- images larger than the memory of a small machine

HUGE = 96 << 20  # bytes of pixels; one may have two GiB
LITTLE = 24 << 20  # bytes that a reader may take, whatever the size of an image


def huge(encapsulated: bool) -> Arrival:
    [image] = ct_series(shape=(1, 8, 8), name="large")
    if encapsulated:
        content = encoded(image)
        at = content.index(b"\xe0\x7f\x10\x00")  # Pixel Data, which is the last
        fragment = b"\xfe\xff\x00\xe0" + struct.pack("<L", HUGE) + bytes(HUGE)
        pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0" + fragment
        content = content[:at] + pixels + b"\xfe\xff\xdd\xe0\0\0\0\0"
        return arrival(image, content, transfer_syntax_uid="1.2.840.10008.1.2.4.90")
    image.PixelData = bytes(HUGE)
    return arrival(image, encoded(image))


def as_one_file(kept: Instance, spoilt: bool) -> None:
    """As earlier versions kept it; spoilt: it is another image than its name says."""
    name = "0" * 64 if spoilt else hashlib.sha256(kept.sop_instance_uid.encode()).hexdigest()
    kept.path.with_name(f"{name}.dcm").write_bytes(pack.content(kept.stored))
    kept.path.unlink()


def spoil(kept: Instance) -> None:
    with kept.path.open("r+b") as file:
        file.seek(kept.offset + kept.size - 20)
        file.write(b"x")


def found_again(spool: Spool, kept: Instance) -> None:
    assert [each.sop_instance_uid for each in spool.scan()] == [kept.sop_instance_uid]


def nothing_found(spool: Spool, kept: Instance) -> None:
    assert list(spool.scan()) == []
    assert [path.suffix for path in (spool.root / "unreadable").iterdir()] == [".dcm"]


def compared(spool: Spool, kept: Instance) -> None:
    assert spool.compare(kept, kept).fate is Fate.SAME


def compared_with_other(spool: Spool, kept: Instance) -> None:
    [other] = ct_series(shape=(1, 8, 8), name="small")
    small = arrival(other, encoded(other)).brought_to(spool).instance
    assert spool.compare(small, kept).fate is Fate.ASIDE


def checked(spool: Spool, kept: Instance) -> None:
    ledger = Ledger(f"sqlite:///{spool.root.parent}/node.sqlite", spool.root.parent)
    ledger.migrate()
    assert [fault.kind for fault in fsck.faults(spool.root.parent, ledger)] == [fsck.NOT_INDEXED]
    assert fsck.mend(spool.root.parent, ledger) == ["1 images indexed"]
    ledger.close()


READERS: dict[str, tuple[Callable[[Instance], None], Callable[[Spool, Instance], None]]] = {
    "a start": (lambda kept: None, found_again),
    "a start after damage": (spoil, nothing_found),
    "a start on a file of an earlier version": (lambda kept: as_one_file(kept, spoilt=False), found_again),
    "a start on one with another name": (lambda kept: as_one_file(kept, spoilt=True), nothing_found),
    "what is the same, with its row": (lambda kept: None, compared),
    "what is another, with its row": (lambda kept: None, compared_with_other),
    "fsck": (lambda kept: None, checked),
}


@pytest.mark.parametrize("encapsulated", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_an_image_of_any_size_is_read_in_little_memory(tmp_path: Path, reader: str, encapsulated: bool) -> None:
    """Else a small machine would start again and again on the image that it cannot hold."""
    prepare, read = READERS[reader]
    kept = huge(encapsulated).brought_to(Spool(tmp_path / "spool", 0), fragment=1 << 20).instance
    prepare(kept)
    spool = Spool(tmp_path / "spool", 0)
    tracemalloc.start()
    try:
        read(spool, kept)
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
