"""A backup of a node at work, and the node that is made of it: whole, or refused in words."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from config import Config, load
from models import catalogue
from pacs_node import fsck, pack
from pacs_node.audit import Trail, told
from pacs_node.backup import MANIFEST, BackupError, Images, back_up, restore
from pacs_node.cli import app
from pacs_node.errors import CannotStart, LedgerTooOld
from pacs_node.ledger.copies import revision_of
from pacs_node.node import Node, utc_now
from pacs_node.start_up import FILES_LOCK, RESTORING, exclusively
from tests.factories import us_image
from tests.unit.node.test_retention import Story
from tests.unit.receive.conftest import arrival, data_set_of, encoded

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A series with results, one whose send waits, and an image kept aside."""
    (tmp_path / "first").mkdir()
    story = Story(tmp_path / "first")
    story.image()
    story.image()
    story.arrive()
    story.image(us_image(name="other"))
    [job] = story.close()
    story.infer(job)
    again = us_image(name="kept", number=1)
    again.StudyDescription = "OTHER"
    came = arrival(again, encoded(again))
    incoming = story.node.spool.begin(came.announced)
    incoming.write(came.data_set)
    assert incoming.keep(story.now).aside is not None
    return story


def saved(story: Story, to: Path, images: Images = Images.copy) -> Path:
    back_up(story.node.config, story.file, to, images, story.now())
    return to


def second(story: Story, folder: Path) -> Config:
    """The same settings, elsewhere."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(story.file, folder / "node.toml")
    return load(folder / "node.toml", catalogue())


@pytest.mark.parametrize("images", [Images.copy, Images.link])
def test_the_node_goes_on_where_the_backup_was_made(story: Story, tmp_path: Path, images: Images) -> None:
    """Elsewhere, after the first one is gone: every image byte for byte, every job as it was."""
    uids = story.node.ledger.series_uids()
    before = {uid: [data_set_of(each) for each in story.node.ledger.instances(uid)] for uid in uids}
    jobs, told = story.node.ledger.open_jobs(), [story.node.ledger.series(uid) for uid in before]
    objects = [(each.sop_instance_uid, each.path.read_bytes()) for each in story.node.ledger.every_object()]
    copy = saved(story, tmp_path / "copy", images)
    late = us_image(name="late")  # of the time after the backup; a link is the same file
    story.image(late)
    story.image(us_image(name="kept", number=7))
    faults = story.faults()
    story.node.stop()
    shutil.rmtree(story.folder / "data")
    settings = second(story, tmp_path / "second")
    restore(settings, copy, story.now())
    node = Node(settings, now=story.now)
    ledger = node.ledger
    ledger.migrate()
    assert {uid: [data_set_of(i) for i in ledger.instances(uid)] for uid in ledger.series_uids()} == before
    assert (ledger.open_jobs(), [ledger.series(uid) for uid in before]) == (jobs, told)
    assert [(each.sop_instance_uid, each.path.read_bytes()) for each in ledger.every_object()] == objects
    assert all(each.path.is_relative_to(tmp_path / "second") for each in ledger.every_object())
    assert [f.kind for f in fsck.faults(settings.node.data_dir, ledger)] == [f.kind for f in faults]
    assert len(list((settings.node.data_dir / "spool" / "aside").iterdir())) == 1
    node.intake.take_in_found(node.spool.scan(ledger.indexed_up_to()))
    assert len(ledger.series_uids()) == len(before), "nothing is taken for new"
    node.stop()


def test_without_images_the_node_says_that_they_are_gone(story: Story, tmp_path: Path) -> None:
    copy = saved(story, tmp_path / "copy", Images.none)
    settings = second(story, tmp_path / "second")
    restore(settings, copy, story.now())
    node = Node(settings, now=story.now)
    facts = node.ledger.series(story.uid)
    assert facts is not None
    assert (facts["state"], facts["deleted_images"]) == ("deleted", 2)
    assert "left out of the backup" in facts["timeline"][-1]["text"]
    why_not = node.flow.rerun(story.uid)
    assert why_not is not None
    assert why_not.startswith("its images were deleted here on ")
    assert [job.kind for job in node.ledger.open_jobs()] == ["send"]
    assert not [f for f in fsck.faults(settings.node.data_dir, node.ledger) if f.kind == fsck.LOST]
    node.stop()


def test_while_images_come_what_was_answered_before_is_in_it(story: Story, tmp_path: Path) -> None:
    """Senders go on all the while. All that had been answered when it began is there; of the rest whole images."""
    stop, came = threading.Event(), list[str]()

    def send(series: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            image = us_image(name=f"stream{series}", number=number)
            sent = arrival(image, encoded(image))
            incoming = story.node.spool.begin(sent.announced)
            incoming.write(sent.data_set)
            incoming.keep(story.now, story.node.intake.stored)
            story.node.intake.flush()
            came.append(str(image.SOPInstanceUID))

    senders = [threading.Thread(target=send, args=(number,)) for number in range(2)]
    for sender in senders:
        sender.start()
    while len(came) < 20:
        pass
    answered = set(came)
    copy = saved(story, tmp_path / "copy")
    stop.set()
    for sender in senders:
        sender.join()
    settings = second(story, tmp_path / "second")
    restore(settings, copy, story.now())
    node = Node(settings, now=story.now)
    node.intake.take_in_found(node.spool.scan(node.ledger.indexed_up_to()))
    there = {each.sop_instance_uid for uid in node.ledger.series_uids() for each in node.ledger.instances(uid)}
    assert answered <= there
    assert there <= {*came, *there}
    harmed = [f for f in fsck.faults(settings.node.data_dir, node.ledger) if f.kind in (fsck.LOST, fsck.NOT_INDEXED)]
    assert harmed == []
    node.stop()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def change(copy: Path, **values: object) -> None:
    told = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**told, **values}))


def one(copy: Path, pattern: str) -> Path:
    return min(copy.rglob(pattern))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda copy: (copy / MANIFEST).unlink(), "is no backup, or one that has not ended"),
    "half a manifest": (lambda copy: (copy / MANIFEST).write_text('{"form": 1'), "cannot be read"),
    "another form": (lambda copy: change(copy, form=2, pacs_node="9.0"), "made by pacs-node 9.0"),
    "a newer ledger": (lambda copy: change(copy, ledger_revision="9999"), "revision 9999"),
    "another kind of database": (lambda copy: change(copy, database="postgresql"), "holds a postgresql database"),
    "a bit of a pack": (lambda copy: flip(one(copy, f"*{pack.SUFFIX}")), "is not what was written"),
    "a pack": (lambda copy: one(copy, f"*{pack.SUFFIX}").unlink(), "lacks files/spool"),
    "a bit of a result": (lambda copy: flip(one(copy, "*SEG.dcm")), "is not what was written"),
    "a bit of the database": (lambda copy: flip(copy / "database" / "node.sqlite"), "is not what was written"),
    "a path that leads out": (
        lambda copy: change(copy, files=[{"path": "results/../../x", "size": 0, "sha256": ""}]),
        "is no file of a backup",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_refused_and_nothing_restored(story: Story, tmp_path: Path, what: str) -> None:
    copy = saved(story, tmp_path / "copy")
    damage, words = DAMAGE[what]
    damage(copy)
    settings = second(story, tmp_path / "second")
    with pytest.raises((BackupError, LedgerTooOld)) as refused:
        restore(settings, copy, story.now())
    assert words.removeprefix("lacks files/") in str(refused.value)
    assert not settings.node.data_dir.exists()


def test_nothing_is_overwritten(story: Story, tmp_path: Path) -> None:
    copy = saved(story, tmp_path / "copy")
    with pytest.raises(BackupError, match="is not empty: name a new folder"):
        saved(story, copy)
    with pytest.raises(BackupError, match="lies in data_dir"):
        saved(story, story.folder / "data" / "copy")
    with pytest.raises(BackupError, match="is not empty: restore into an empty one"):
        restore(story.node.config, copy, story.now())
    settings = second(story, tmp_path / "second")
    (tmp_path / "second" / "mine.sqlite").touch()
    database = settings.database.model_copy(update={"url": f"sqlite:///{tmp_path}/second/mine.sqlite"})
    with pytest.raises(CannotStart, match=r"mine\.sqlite is there already"):
        restore(settings.model_copy(update={"database": database}), copy, story.now())


def test_a_restore_that_was_cut_off_is_no_node(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = saved(story, tmp_path / "copy")
    settings = second(story, tmp_path / "second")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pacs_node.backup.put_back", full)
    with pytest.raises(OSError, match="No space"):
        restore(settings, copy, story.now())
    assert (settings.node.data_dir / RESTORING).exists()
    with pytest.raises(CannotStart, match="a restore that has not ended"):
        Node(settings)


def test_retention_waits_while_a_backup_is_made(story: Story) -> None:
    story.later()
    with exclusively(story.folder / "data" / FILES_LOCK, wait=False):
        assert story.node.retention.tick() is None
        assert story.series()["state"] == "closed"
    story.node.retention.tick()
    assert story.series()["state"] == "deleted"


def test_the_commands(story: Story, tmp_path: Path) -> None:
    story.node.ledger.close()
    copy, config = tmp_path / "copy", str(story.file)
    done = CliRunner().invoke(app, ["backup", str(copy), "--config", config])
    assert done.exit_code == 0, done.output
    assert f"restore with: pacs-node restore {copy}" in done.stdout
    assert (copy / "node.toml").read_text() == story.file.read_text()
    assert story.node.ledger.marks()["backup"]["text"].endswith(" files, copy")
    story.node.ledger.close()
    assert {path.stat().st_mode & 0o077 for path in [copy, *copy.rglob("*")]} == {0}
    wrong = CliRunner().invoke(app, ["backup", str(copy), "--config", config, "--images", "some"])
    assert (wrong.exit_code, "copy, link, none" in wrong.output) == (1, True)
    full = CliRunner().invoke(app, ["restore", str(copy), "--config", config])
    assert (full.exit_code, "is not empty" in full.output) == (1, True)
    said = trail_of(story)
    assert [(event["about"], event["failed"]) for event in said] == [
        ([f"file://{copy}"], True),  # restored over a node
        ([f"file://{copy}"], False),
    ]
    assert all(event["who"] == [getpass.getuser()] for event in said)
    assert "is not empty" in said[0]["words"]
    shutil.rmtree(story.folder / "data")
    none = CliRunner().invoke(app, ["backup", str(tmp_path / "other"), "--config", config])
    assert (none.exit_code, "there is no node" in none.output) == (1, True)
    made = CliRunner().invoke(app, ["restore", str(copy), "--config", config])
    assert made.exit_code == 0, made.output
    assert "as they were on" in trail_of(story)[0]["words"]
    assert len(story.new_node().ledger.series_uids()) == 2
    assert CliRunner().invoke(app, ["fsck", "--mend", "--config", config]).exit_code == 0
    assert trail_of(story)[0]["about"] == ["pacs-node fsck --mend"]


def test_a_restore_that_the_database_alone_stands_against_is_told_and_can_be_begun_again(
    story: Story, tmp_path: Path
) -> None:
    copy, config = saved(story, tmp_path / "copy"), str(story.file)
    said_before = len(trail_of(story))
    story.node.stop()
    text = story.file.read_text()
    story.file.write_text(f'{text}\n[database]\nurl = "sqlite:///elsewhere.sqlite"\n')
    shutil.rmtree(story.folder / "data")
    (story.folder / "elsewhere.sqlite").write_bytes(b"")
    for tries in (1, 2):
        done = CliRunner().invoke(app, ["restore", str(copy), "--config", config])
        assert (done.exit_code, "is there already" in done.output) == (1, True)
        assert [event["failed"] for event in trail_of(story)] == [True] * tries
    (story.folder / "elsewhere.sqlite").unlink()
    done = CliRunner().invoke(app, ["restore", str(copy), "--config", config])
    assert done.exit_code == 0, done.output
    assert [event["failed"] for event in trail_of(story)][:3] == [False, True, True]
    assert len(trail_of(story)) == said_before + 3, "and what the backup has brought"
    (tmp_path / "third").mkdir()
    (story.folder / "data" / "elsewhere").touch()
    assert "is not empty" in CliRunner().invoke(app, ["restore", str(copy), "--config", config]).output


OF_NODE = """
[[peer]]
name = "archive"
dicomweb_url = "https://archive.example/dicom-web"
dicomweb_token = "hush-1"  # password = "hush-2"
[[notify]]
name = "us"
urls = ["json://node:hush-3@hooks.example"]
#[store]
#secret_access_key = "hush-4"
"""


def test_no_secret_lies_in_a_backup_and_restore_says_which(story: Story, tmp_path: Path) -> None:
    """Neither in its settings nor in the history that the database has, also of times before."""
    story.file.write_text(story.file.read_text() + OF_NODE)
    node = Node(load(story.file, catalogue()), file=story.file)
    assert node.settings is not None
    node.settings.started()
    story.file.write_text(story.file.read_text().replace("hush-1", "hush-5"))
    node.settings.reload()
    node.ledger.close()
    copy, config = tmp_path / "copy", str(story.file)
    done = CliRunner().invoke(app, ["backup", str(copy), "--config", config])
    assert done.exit_code == 0, done.output
    for path in (path for path in copy.rglob("*") if path.is_file()):
        assert b"hush" not in path.read_bytes(), path
    lacking = re.findall(r"PACS_NODE_\w+", done.output)
    assert len(lacking) == 2
    assert "_NOTIFY_US_URLS_" in lacking[0]
    assert "_PEER_ARCHIVE_DICOMWEB_TOKEN_" in lacking[1]
    story.node.stop()
    shutil.rmtree(story.folder / "data")
    restored = CliRunner().invoke(app, ["restore", str(copy), "--config", config])
    assert restored.exit_code == 0, restored.output
    assert re.findall(r"PACS_NODE_\w+", restored.output) == lacking
    shutil.copyfile(copy / "node.toml", story.file)  # as it is: no node starts with it
    said = CliRunner().invoke(app, ["check", "--config", config])
    assert said.exit_code == 1
    assert all(f"the environment has no variable {each}" in said.output for each in lacking)
    given = {lacking[0]: "json://node:hush-3@hooks.example", lacking[1]: "hush-5"}
    assert CliRunner().invoke(app, ["check", "--config", config], env=given).exit_code == 0


def test_a_command_that_is_broken_off_has_not_done_it(story: Story, tmp_path: Path, monkeypatch: Any) -> None:
    def broken_off(*_: object) -> None:
        raise KeyboardInterrupt

    story.node.ledger.close()
    monkeypatch.setattr("pacs_node.backup.back_up", broken_off)
    done = CliRunner().invoke(app, ["backup", str(tmp_path / "copy"), "--config", str(story.file)])
    assert done.exit_code != 0
    assert [event["failed"] for event in trail_of(story)] == [True]


def trail_of(story: Story) -> list[dict[str, Any]]:
    """What commands have said to the audit trail, the latest first."""
    lines = Trail(story.folder / "data" / "audit", 1 << 20, utc_now).backwards()
    events = [event for line in lines if (event := told(line)) is not None]
    return [event for event in events if event["about"] and event["who"]]


@pytest.mark.parametrize("command", ["rerun", "fsck", "retention"])
def test_an_older_node_says_so_of_a_newer_ledger(story: Story, command: str) -> None:
    """What a downgrade meets: no traceback, and nothing changed."""
    with story.node.ledger.engine.begin() as db:
        db.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerTooOld, match="the database was written by a newer pacs-node: install that version"):
        story.new_node().start(listen=False, web=False)  # as `serve` and `worker` do
    said = CliRunner().invoke(app, [command, "--config", str(story.file), *(["1.2.3"] if command == "rerun" else [])])
    assert said.exit_code == 1
    assert "the database was written by a newer pacs-node: install that version" in said.output
    assert "Traceback" not in said.output
    assert revision_of(story.node.config.database.url) == "9999"


def test_what_the_page_says_runs(story: Story, tmp_path: Path) -> None:
    """docs/keeping.md, from its settings to the restored node."""
    page = (ROOT / "docs" / "keeping.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"(?m)^    (\[retention\](?:\n    \w+ = .+)+)$", page)
    file = story.file
    before, _, after = file.read_text().partition("[retention]\nkeep_days = 30")
    file.write_text(before + settings.replace("\n    ", "\n") + after)
    assert load(file, catalogue()).retention.stop_free_gb == 100.0
    story.node.ledger.close()
    said = {}
    for command in re.findall(r"(?m)^    pacs-node (.+)$", page):
        name, *words = command.replace("/backup/monday", str(tmp_path / "copy")).replace("node.toml", str(file)).split()
        if name == "restore":
            shutil.rmtree(story.folder / "data")
        said[name] = CliRunner().invoke(app, [name, *words])
        assert said[name].exit_code == 0, said[name].output
    assert list(said) == ["retention", "backup", "restore", "fsck"]
    assert said["fsck"].stdout.startswith("0 lost or damaged")
