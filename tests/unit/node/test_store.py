"""What machines have in common: one contract for a shared folder and for a bucket of a real server."""

from __future__ import annotations

import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pacs_node import fsck
from pacs_node import store as stores
from pacs_node.cli import app
from pacs_node.errors import CannotStart, StoreAway
from pacs_node.facts import NodeFacts
from pacs_node.pack import HEAD, Pack, content, unpacked
from pacs_node.records import Stored
from pacs_node.store import Bucket, ObjectStore, SharedFolder, Store
from tests.harness import ObjectServer, free_port
from tests.unit.node.test_retention import Story

NUMBER = count(1)
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Machine:
    root: Path  # its data folder
    store: Store

    @property
    def work(self) -> Path:
        return self.root / "work"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with ObjectServer(tmp_path_factory.mktemp("store")) as server:
        yield server


def bucket(server: ObjectServer, **changes: Any) -> Bucket:
    prefix = f"test{next(NUMBER)}"
    known = Bucket("images", server.url, "us-east-1", prefix, ObjectServer.KEY, ObjectServer.SECRET, None)
    return replace(known, **changes)


@pytest.fixture(params=["folder", "s3"])
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Machine, Machine]:
    """Two machines of one node."""
    if request.param == "folder":
        root = tmp_path / "data"
        root.mkdir()
        return Machine(root, SharedFolder()), Machine(root, SharedFolder())
    common = bucket(request.getfixturevalue("server"))
    roots = tmp_path / "one" / "data", tmp_path / "two" / "elsewhere"
    for root in roots:
        root.mkdir(parents=True)
    one, two = (Machine(root, ObjectStore(common, root)) for root in roots)
    return one, two


def on(machine: Machine, other: Machine, path: Path) -> Path:
    """The same place on another machine."""
    return other.root / path.relative_to(machine.root)


def images(machine: Machine, sizes: list[int], name: str = "a") -> list[Stored]:
    """A pack of them."""
    path = machine.root / "spool" / "instances" / name / "0.pack"
    path.parent.mkdir(parents=True)
    written, stored = Pack(path), []
    for size in sizes:
        record = written.begin()
        record.write(random.Random(size).randbytes(size))
        record.keep(NOW, "a1")
        stored.append(Stored(path, record.offset, size))
    written.close()
    return stored


def elsewhere(one: Machine, two: Machine, stored: list[Stored]) -> list[Stored]:
    return [replace(each, path=on(one, two, each.path)) for each in stored]


SIZES = [1, 1000, 70_000, 3, 9_000_000, 12]


def test_what_one_machine_shares_the_other_has_to_the_byte(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "AT_ONCE", 60_000)  # several requests
    one, two = machines
    stored = images(one, SIZES)
    one.store.share(stored[0].path, stored[-1].offset + stored[-1].size)
    there = elsewhere(one, two, stored)
    assert two.store.held(there) == set(there)
    wanted = [there[number] for number in (4, 0, 2, 1)]  # in another order, and not all
    here = two.store.at_hand(wanted, two.work / "job")
    assert [content(each) for each in here] == [content(stored[number]) for number in (4, 0, 2, 1)]
    with unpacked(here, two.work / "job") as files:
        assert [file.read_bytes() for file in files] == [content(each) for each in here]
    assert not (two.work / "job").exists(), "nothing is left"
    assert one.store.at_hand(stored, one.work / "job") == stored, "what lies here is read where it lies"


def test_only_what_was_promised_is_shared_and_a_pack_that_grows_is_shared_again(
    machines: tuple[Machine, Machine],
) -> None:
    one, two = machines
    stored = images(one, [100, 200, 300])
    there = elsewhere(one, two, stored)
    ends = [each.offset + each.size for each in stored]
    one.store.share(stored[0].path, ends[0])
    assert there[0] in two.store.held(there)
    if isinstance(two.store, ObjectStore):
        assert two.store.held(there) == {there[0]}
    for end in (ends[2], ends[1], ends[2]):  # in any order, as often as one likes
        one.store.share(stored[0].path, end)
    assert two.store.held(there) == set(there)
    with pytest.raises(OSError, match=r"0\.pack") if isinstance(one.store, ObjectStore) else nothing():
        one.store.share(stored[0].path, ends[2] + HEAD)
    assert two.store.held(there) == set(there)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_what_nobody_shared_stays_where_it_is_said_to_be(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    stored = images(one, [100, 200])
    lost = [replace(each, path=each.path.with_name("1.pack")) for each in elsewhere(one, two, stored)]
    assert two.store.held(lost) == set()
    assert two.store.at_hand(lost, two.work / "job") == lost
    with unpacked(lost, two.work / "job") as files:
        assert not any(file.exists() for file in files)


def test_results_go_from_machine_to_machine(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    home = one.root / "results" / "job1"
    with one.store.folder(home, one.work) as folder:
        (folder / "1" / "forms").mkdir(parents=True)
        (folder / "1" / "01-SEG.dcm").write_bytes(b"segmentation")
        (folder / "findings.npz").write_bytes(b"")
    with two.store.folder(on(one, two, home), two.work) as folder:
        assert (folder / "1" / "01-SEG.dcm").read_bytes() == b"segmentation"
        assert (folder / "findings.npz").read_bytes() == b""
        (folder / "1" / "forms").mkdir(exist_ok=True)
        (folder / "1" / "forms" / "picture.dcm").write_bytes(b"picture")
        (folder / "findings.npz").write_bytes(b"better")
    with one.store.folder(home, one.work) as folder:
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert files == {
            "1/01-SEG.dcm": b"segmentation",
            "1/forms/picture.dcm": b"picture",
            "findings.npz": b"better",
        }
    if isinstance(one.store, ObjectStore):
        assert not list(one.work.iterdir()), "a worker keeps nothing"
        assert not home.exists()


def test_what_ends_in_an_error_shares_nothing_in_a_bucket(server: ObjectServer, tmp_path: Path) -> None:
    store = ObjectStore(bucket(server), tmp_path)

    def half() -> None:
        with store.folder(tmp_path / "results" / "job", tmp_path / "work") as folder:
            (folder / "half.dcm").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    with store.folder(tmp_path / "results" / "job", tmp_path / "work") as folder:
        assert not list(folder.iterdir())


def test_what_is_deleted_is_gone_on_both(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    stored, other = images(one, [100]), images(one, [50], "ab")
    for some in (stored, other):
        one.store.share(some[0].path, some[0].offset + some[0].size)
    home = one.root / "results" / "job1"
    for name in ("job1", "job11"):
        with one.store.folder(home.with_name(name), one.work) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "01-SR.dcm").write_bytes(b"report")
    one.store.delete(stored[0].path.parent)  # a folder
    one.store.delete(other[0].path)  # a file
    one.store.delete(home)
    for _ in range(2):
        one.store.delete(home)  # again: no error
    gone = elsewhere(one, two, [*stored, *other])
    assert two.store.held(gone) == set()
    assert one.store.held([*stored, *other]) == set()
    for name, left in (("job1", 0), ("job11", 1)):
        with two.store.folder(on(one, two, home.with_name(name)), two.work) as folder:
            assert len(list(folder.glob("*"))) == left, name


def test_both_can_be_tried(machines: tuple[Machine, Machine]) -> None:
    for machine in machines:
        machine.store.tried()


# ------------------------------------------------------------------------------- a bucket that cannot be had, in words

BAD: list[tuple[dict[str, Any], str]] = [
    ({"secret_access_key": "wrong"}, "does not take the secret key: correct secret_access_key_file"),
    ({"access_key_id": "nobody"}, "does not know the key: correct access_key_id"),
    ({"name": "nonesuch"}, "denies access: let the key read, write, list and delete there"),
    ({"access_key_id": "admin", "secret_access_key": "secret", "name": "Not_A_Bucket"}, "answers 4"),
    ({"endpoint": "http://127.0.0.1:1"}, "does not answer: start it, or correct endpoint"),
    ({"endpoint": "http://nowhere.invalid:9000"}, "does not answer: start it, or correct endpoint"),
]


@pytest.mark.parametrize(("changes", "words"), BAD, ids=lambda each: str(each)[:40])
def test_a_store_that_is_not_to_be_had_is_said_in_words(
    server: ObjectServer, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    store = ObjectStore(bucket(server, **changes), tmp_path)
    with pytest.raises(StoreAway) as said:
        store.tried()
    assert str(said.value).startswith(f"the store s3://{changes.get('name', 'images')} at http://")
    assert words in str(said.value)
    assert "secret-of" not in str(said.value)


USES: list[Callable[[Machine, list[Stored]], Any]] = [
    lambda machine, stored: machine.store.share(stored[0].path, 10),
    lambda machine, stored: machine.store.held([Stored(machine.root / "spool" / "b", 0, 1)]),
    lambda machine, stored: machine.store.at_hand([Stored(machine.root / "spool" / "b", 0, 1)], machine.work),
    lambda machine, stored: machine.store.folder(machine.root / "results" / "job", machine.work).__enter__(),
    lambda machine, stored: machine.store.delete(machine.root / "results" / "job"),
]


@pytest.mark.parametrize("use", USES)
def test_while_it_is_away_every_use_says_so_and_leaves_nothing(
    tmp_path: Path, use: Callable[[Machine, list[Stored]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "RETRIES", 0)
    away = Bucket("images", f"http://127.0.0.1:{free_port()}", "us-east-1", "", "node", "secret", None)
    machine = Machine(tmp_path, ObjectStore(away, tmp_path))
    stored = images(machine, [100])
    with pytest.raises(StoreAway, match="does not answer"):
        use(machine, stored)
    assert not list(machine.work.glob("*"))
    assert content(stored[0]), "what lies here stays"


def test_scratch_that_a_killed_process_left_is_cleared_away_after_a_day(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, work = ObjectStore(bucket(server), tmp_path), tmp_path / "work"
    left = [work / "results-job-abc", work / "job.1"]
    for each in left:
        (each / "1").mkdir(parents=True)
    with store.folder(tmp_path / "results" / "job", work) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(each.exists() for each in left), "somebody may be at work"
    monkeypatch.setattr(stores, "FORGOTTEN_S", -1)
    with store.folder(tmp_path / "results" / "job", work):
        assert not any(each.exists() for each in left)


def test_the_key_may_come_from_the_environment(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsaid = bucket(server, access_key_id=None, secret_access_key=None)
    for secret in (ObjectServer.SECRET, "wrong"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ObjectServer.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with nothing() if secret == ObjectServer.SECRET else pytest.raises(StoreAway, match="secret key"):
            ObjectStore(unsaid, tmp_path).tried()


def test_secrets_are_not_shown(server: ObjectServer) -> None:
    assert "secret-of" not in repr(bucket(server)) + str(bucket(server))


def test_without_the_library_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(CannotStart, match=r"pip install 'pacs-node\[s3\]'"):
        ObjectStore(Bucket("images", None, "us-east-1", "", None, None, None), tmp_path)


# ---- retention and backup of a node with a bucket


@pytest.fixture
def story(server: ObjectServer, tmp_path: Path) -> Iterator[Story]:
    """One series whose results have arrived: its images here and in the bucket, its results in the bucket alone."""
    at = bucket(server)
    key = tmp_path / "store.key"
    key.write_text(ObjectServer.SECRET)
    key.chmod(0o600)
    settings = f"""[store]
kind = "s3"
bucket = "{at.name}"
prefix = "{at.prefix}"
endpoint = "{at.endpoint}"
access_key_id = "{at.access_key_id}"
secret_access_key_file = "store.key"
"""
    story = Story(tmp_path, settings)
    story.image()
    story.image()
    [job] = story.close()
    with story.node.stages._results_of(job.id) as folder:
        (folder / "1").mkdir()
        (folder / "1" / "01-SEG.dcm").write_bytes(b"a result")
    for send in story.infer(job):
        story.confirm(story.send(send), arrived=True)
    shutil.rmtree(story.node.stages.results)
    assert [name.rpartition("/")[2] for name in shared(story)][:1] == ["01-SEG.dcm"]
    assert len(shared(story)) == 2
    yield story
    story.node.stop()


def shared(story: Story) -> list[str]:
    """All that is in the bucket of a node."""
    store = story.node.stages.store
    assert isinstance(store, ObjectStore)
    return store._names(store.bucket.prefix)


def test_what_retention_deletes_goes_from_the_bucket_too(story: Story) -> None:
    assert story.faults() == []
    story.later()
    assert len(story.run()) == 1
    assert shared(story) == story.kept_files() == story.node.ledger.deletions() == []
    story.image()
    [job] = story.close()
    assert (job.revision, len(shared(story))) == (2, 1)


def test_while_the_bucket_is_away_it_goes_here_and_later_there(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RETRIES", 0)
    retention, there = story.node.retention, story.node.stages.store
    assert isinstance(there, ObjectStore)
    retention.store = ObjectStore(replace(there.bucket, endpoint=f"http://127.0.0.1:{free_port()}"), there.root)
    story.later()
    assert len(story.run()) == 1
    assert story.kept_files() == []
    assert story.series()["state"] == "deleted"
    assert retention.away is not None
    assert retention.away in NodeFacts(story.node).health()["reasons"]
    assert "does not answer: start it" in retention.away
    assert {fault.kind for fault in story.faults()} == {fsck.LEFT_BEHIND}
    retention.resume()  # as at a start
    assert len(story.node.ledger.deletions()) == 1
    assert len(shared(story)) == 2
    retention.store = there
    assert story.run() == []
    assert (shared(story), story.node.ledger.deletions(), retention.away) == ([], [], None)


def test_a_backup_says_what_it_does_not_hold(story: Story, tmp_path: Path) -> None:
    there = story.node.stages.store
    assert isinstance(there, ObjectStore)
    where = f"s3://images/{there.bucket.prefix}"
    done = CliRunner().invoke(app, ["backup", str(tmp_path / "copy"), "--config", str(story.file)])
    assert done.exit_code == 0, done.output
    assert f"not in it: results, and what else lies in {where} alone" in done.stdout
    shutil.rmtree(story.folder / "data")
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "copy"), "--config", str(story.file)])
    assert done.exit_code == 0, done.output
    assert f"not in it: results, which lay in {where}, where the settings look for them" in done.stdout
    done = CliRunner().invoke(app, ["fsck", "--config", str(story.file)])
    assert done.stdout == "0 lost or damaged, 0 other remarks\n", "the images here, the results in the bucket"
