"""What comes while the database is away is kept like any other; what it would have been told then, it is told later."""

from __future__ import annotations

import copy
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from config import load
from models import catalogue
from pacs_node import intake
from pacs_node.errors import LedgerUnavailable
from pacs_node.fsck import mend
from pacs_node.ledger import Ledger
from pacs_node.node import Node
from pacs_node.receive.spool import Fate, Kept
from tests.factories import ct_series
from tests.unit.receive.conftest import arrival, data_set_of, encoded

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
ASKED = ("instance", "kept_instances", "take_in_all", "associations_ended", "note_refusal")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "node.toml").write_text('[node]\ndata_dir = "data"\n[receive]\nkeep_free_gb = 0.0\n')
    node = new_node(tmp_path)
    yield node
    node.ledger.close()


def new_node(folder: Path) -> Node:
    node = Node(load(folder / "node.toml", catalogue()), now=lambda: NOON)
    node.ledger.migrate()
    return node


@contextmanager
def away(monkeypatch: pytest.MonkeyPatch, *asked: str) -> Iterator[list[str]]:
    """The database does not answer; what it was asked meanwhile."""
    heard: list[str] = []

    def silent(name: str) -> Any:
        def ask(*_: Any) -> None:
            heard.append(name)
            raise LedgerUnavailable("the database does not answer")

        return ask

    with monkeypatch.context() as patch:
        for name in asked or ASKED:
            patch.setattr(Ledger, name, silent(name))
        yield heard


def brought(node: Node, image: Dataset) -> Kept:
    came = arrival(image, encoded(image))
    incoming = node.spool.begin(came.announced)
    incoming.write(came.data_set)
    return incoming.keep(node.now, node.intake.stored)


def other(image: Dataset, series: bool) -> Dataset:
    """Other data under the same SOP Instance UID, in the same series or in one of its own."""
    changed = copy.deepcopy(image)
    changed.ImageComments = "other data"
    if series:
        changed.SeriesInstanceUID = "2.25.77"
    return changed


def noted(node: Node) -> set[tuple[str, str]]:
    node._note_refusals()
    return {(row["kind"], row["sop_instance_uid"]) for row in node.ledger.refusals(100)}


def aside(node: Node) -> list[Path]:
    return list((node.spool.root / "aside").iterdir())


COMES = {
    "the same": (lambda image: image, Fate.SAME),
    "another one of that series": (lambda image: other(image, series=False), Fate.ASIDE),
    "another one of another series": (lambda image: other(image, series=True), Fate.ASIDE),
}
ENDS = ("flushed", "killed before", "killed while its rows are written", "killed before, and mended")


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("what", COMES)
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_there_already_is_found_out_when_it_is_back(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, ends: str, alone: bool
) -> None:
    """An image is in the ledger, and comes again while that is away, alone or before a new one of its pack. Nothing is
    lost of what was promised, and of two data sets under one UID the second is kept aside and told of, whoever dies."""
    change, fate = COMES[what]
    image, new = ct_series(shape=(2, 16, 16))
    brought(node, image)
    node.intake.flush()
    again = change(image)
    with away(monkeypatch):
        assert brought(node, again).fate is Fate.NEW
        if not alone:
            assert brought(node, new).fate is Fate.NEW
        with pytest.raises(LedgerUnavailable):
            node.intake.flush()
    if ends == "flushed":
        node.intake.flush()
    elif ends == "killed while its rows are written":
        take_in_all = Ledger.take_in_all

        def killed(*told: Any) -> None:
            take_in_all(*told)
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "take_in_all", killed)
            with pytest.raises(SystemExit):
                node.intake.flush()
    if ends != "flushed":
        told = list(node._not_noted)  # what a thread of the node writes at once
        node.ledger.close()
        node = new_node(tmp_path)
        node._not_noted.extend(told)
        if ends.endswith("mended"):
            mend(tmp_path / "data", node.ledger)
        node.intake.take_in_found(node.spool.scan(node.ledger.indexed_up_to()))
    kept = node.ledger.instance(image.SOPInstanceUID)
    assert kept is not None
    assert data_set_of(kept) == encoded(image), "the first counts"
    assert len(node.ledger.instances(image.SeriesInstanceUID)) == (1 if alone else 2)
    expected = 1 if fate is Fate.ASIDE else 0
    assert len(aside(node)) == expected
    assert all(path.read_bytes().endswith(encoded(again)) for path in aside(node))
    if not (ends.endswith("mended") and not alone):  # there `mend` has said so
        assert noted(node) == ({("kept aside", image.SOPInstanceUID)} if expected else set())
    assert brought(node, again).fate is fate, "as ever"
    node.ledger.close()


def packs(node: Node) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (node.spool.root / "instances").rglob("*.pack")}


@pytest.fixture
def left_twice(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Node, Dataset, int]]:
    """A node at its start; the one before had three images, kept each under its UID once more while the ledger was
    away, as in COMES, and was killed. And the third image, and the bytes that all three take."""
    images = ct_series(shape=(3, 16, 16))
    for image in images:
        brought(node, image)
    node.intake.flush()
    [size] = packs(node).values()
    with away(monkeypatch):
        for image, (change, _) in zip(images, COMES.values(), strict=True):
            assert brought(node, change(image)).fate is Fate.NEW
    started = new_node(tmp_path)
    yield started, images[-1], size
    started.ledger.close()


def test_what_was_settled_is_not_found_at_the_next_start(left_twice: tuple[Node, Dataset, int], tmp_path: Path) -> None:
    node, image, size = left_twice
    node.take_in_found()
    assert list(packs(node).values()) == [size], "the pack of one was cut, that of the other had nothing else"
    assert [len(node.ledger.refusals(100)), len(aside(node))] == [2, 2]
    kept = node.ledger.instance(image.SOPInstanceUID)
    assert kept is not None
    assert data_set_of(kept) == encoded(image)
    again = new_node(tmp_path)
    assert list(again.spool.scan(again.ledger.indexed_up_to())) == []
    assert brought(again, other(image, series=True)).fate is Fate.ASIDE, "as ever"
    again.ledger.close()


@pytest.mark.parametrize("what", ["damaged", "torn"])
def test_a_pack_with_anything_but_whole_images_behind_stays_as_it_is(
    left_twice: tuple[Node, Dataset, int], what: str
) -> None:
    node, _, size = left_twice
    for path in (node.spool.root / "instances").rglob("*.pack"):
        with path.open("r+b") as file:
            file.seek(-100 if what == "damaged" else 0, os.SEEK_END)
            file.write(b"neither")
    before = packs(node)
    assert [each for each in before.values() if each > size]
    node.take_in_found()
    assert packs(node) == before


def test_no_pack_is_cut_that_rows_name_by_another_path(left_twice: tuple[Node, Dataset, int], tmp_path: Path) -> None:
    """As where the folder of the data is mounted twice; here each file has a second name in another folder."""
    _, _, size = left_twice
    shutil.copytree(tmp_path / "data" / "spool", tmp_path / "again" / "spool", copy_function=os.link)
    with (
        closing(sqlite3.connect(tmp_path / "data" / "node.sqlite")) as db,
        closing(sqlite3.connect(tmp_path / "again" / "node.sqlite")) as copied,
    ):
        db.backup(copied)
        with copied:
            copied.execute("UPDATE instance SET path = ? || path", (f"{tmp_path}/data/",))
    (tmp_path / "node.toml").write_text('[node]\ndata_dir = "again"\n[receive]\nkeep_free_gb = 0.0\n')
    node = new_node(tmp_path)
    assert not set(node.ledger.indexed_up_to()) & set((node.spool.root / "instances").rglob("*.pack"))
    node.take_in_found()
    assert list(packs(node).values()) == [size], "what no row names is gone, what rows name is there"
    for image in ct_series(shape=(3, 16, 16)):
        kept = node.ledger.instance(image.SOPInstanceUID)
        assert kept is not None
        assert data_set_of(kept) == encoded(image)
    node.ledger.close()


def test_a_start_whose_refusals_cannot_be_noted_cuts_nothing_and_goes_on(
    left_twice: tuple[Node, Dataset, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, _, _ = left_twice
    before = packs(node)

    def refuses(*_: Any, **__: Any) -> None:
        raise ValueError("a text that this database does not take")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "note_refusal", refuses)
        node.take_in_found()
    assert packs(node) == before
    assert len(noted(node)) == 2, "later"


def test_it_is_asked_once_and_senders_wait_for_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may take a quarter of a minute not to come. Whether it is back is seen by who writes the rows."""
    images = ct_series(shape=(6, 16, 16))
    with away(monkeypatch) as heard:
        for image in images[:3]:
            assert brought(node, image).fate is Fate.NEW
        assert heard == ["instance"]
        assert brought(node, images[0]).fate is Fate.SAME, "of what waits here it is known"
        assert brought(node, other(images[0], series=False)).fate is Fate.ASIDE
        with pytest.raises(LedgerUnavailable):
            node.intake.flush()
    node.intake.flush()
    assert len(node.ledger.instances(images[0].SeriesInstanceUID)) == 3
    assert brought(node, images[1]).fate is Fate.SAME
    assert brought(node, images[4]).fate is Fate.NEW
    with away(monkeypatch) as heard:
        assert brought(node, images[5]).fate is Fate.NEW
        assert heard == ["instance"], "it is asked again once it has answered"


@pytest.mark.parametrize("asked", ASKED[:3])
def test_whichever_answer_is_lacking_nothing_is_lost(node: Node, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    images = ct_series(shape=(4, 16, 16))
    brought(node, images[0])
    node.intake.flush()
    with away(monkeypatch, asked):
        for image in images:
            brought(node, image)
        with suppress(LedgerUnavailable):  # some flushes need that answer, others do without
            node.intake.flush()
    node.intake.flush()
    assert {each.sop_instance_uid for each in node.ledger.instances(images[0].SeriesInstanceUID)} == {
        image.SOPInstanceUID for image in images
    }


def test_no_more_wait_than_there_is_room_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MOST_WAITING", 3)
    images = ct_series(shape=(5, 16, 16))
    with away(monkeypatch):
        for image in images[:3]:
            brought(node, image)
        with pytest.raises(LedgerUnavailable, match="3 images wait for the ledger"):
            brought(node, images[3])
    node.intake.flush()
    brought(node, images[3])
    node.intake.flush()
    assert len(node.ledger.instances(images[0].SeriesInstanceUID)) == 4
