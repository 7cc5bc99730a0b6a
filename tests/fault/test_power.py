"""A power cut at some of all the moments that `make powercuts` tries: every promise given by then is kept."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.fault.calls import why_not
from tests.fault.power import PAGE, Act, Disk, Recorded, chosen

SEED, CUTS = int(os.environ.get("FAULT_SEED", "1")), 40


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    return Recorded(tmp_path_factory.mktemp("power"), series=3, seed=SEED)


def test_every_promise_is_kept_whenever_the_power_is_cut(recorded: Recorded) -> None:
    assert set(recorded.books.told) == {act.path for act in recorded.acts if act.name == "told"}
    for at, unsynced, told in recorded.cuts(chosen(recorded.acts, CUTS, SEED)):
        assert recorded.broken(told) == [], f"behind act {at} of {len(recorded.acts)}, the rest {unsynced}"


def test_a_node_that_is_started_on_such_a_disk_delivers_everything(recorded: Recorded) -> None:
    promised = [at + 1 for at, act in enumerate(recorded.acts) if act.name == "told"]
    [(_, _, told)] = recorded.cuts([(promised[-1], "dropped")])
    assert told == recorded.books.told.keys()
    assert recorded.delivered(told, promised[-1]) == []


def test_a_sync_that_is_missing_is_missed(recorded: Recorded) -> None:
    """Without those of the packs, and without those of their folders: what was promised is lost."""
    whole, promised = recorded.acts, [at for at, act in enumerate(recorded.acts) if act.name == "told"]
    for what in (".pack", "/instances"):
        try:
            recorded.acts = [act for act in whole if not (act.name == "sync" and of(act, what))]
            last = [at + 1 for at, act in enumerate(recorded.acts) if act.name == "told"][-1]
            [(_, _, told)] = recorded.cuts([(last, "dropped")])
            assert len(told) == len({whole[at].path for at in promised})
            assert any("is lost" in each for each in recorded.broken(told)), what
        finally:
            recorded.acts = whole


def of(act: Act, what: str) -> bool:
    return act.path.endswith(what) if what == ".pack" else "/spool/instances" in act.path and ".pack" not in act.path


DICE = random.Random(1)
TOP = "/disk"


def test_what_a_disk_keeps(tmp_path: Path) -> None:
    def left(*acts: Act, unsynced: str = "dropped") -> dict[str, bytes]:
        disk = Disk(tmp_path / "disk")
        for act in acts:
            disk.do(act)
        found = {}
        for name, what in disk.top.left(unsynced, DICE).items():  # type: ignore[arg-type]
            found[name] = what.left(unsynced, DICE)  # type: ignore[arg-type]
        return found

    def at(name: str) -> str:
        return str(tmp_path / "disk" / name).rstrip("/")

    made, written = Act("open", at("a"), at=os.O_CREAT), Act("write", at("a"), data=b"xyz")
    synced, named = Act("sync", at("a")), Act("sync", at(""))
    moved = Act("rename", at("a"), target=at("b"))
    assert left(made, written) == {}
    assert left(made, written, unsynced="kept") == {"a": b"xyz"}
    assert left(made, written, synced) == {}
    assert left(made, written, named) == {"a": b""}
    assert left(made, written, synced, named) == {"a": b"xyz"}
    assert left(made, written, synced, named, moved) == {"a": b"xyz"}
    assert left(made, written, synced, moved, named) == {"b": b"xyz"}
    assert left(made, named, synced, written, Act("truncate", at("a"), at=1)) == {"a": b""}
    assert left(made, written, synced, named, Act("unlink", at("a"))) == {"a": b"xyz"}
    pages = Act("write", at("a"), data=bytes([1]) * 4 * PAGE)
    torn = {left(made, synced, named, pages, unsynced="torn")["a"] for _ in range(40)}
    assert {b"", pages.data} < torn
    assert all(each.count(1) % PAGE == 0 for each in torn)
