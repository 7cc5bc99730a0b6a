"""New settings of a running node: all or nothing, nobody thrown out, and a way back."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config import Config, load, problems
from models import catalogue
from pacs_node import settings_file
from pacs_node.errors import LedgerUnavailable, SettingsChanged, SettingsRefused
from pacs_node.node import Node
from pacs_node.settings import AT_ONCE, KEYS_AT_ONCE, LiveSettings, in_force, told_to_reload
from tests.factories import us_image
from tests.harness import free_port, wait_for
from tests.parrot import ASSOCIATE_AC, ASSOCIATE_RJ, Parrot
from tests.unit.receive.conftest import encoded

TOML = """
[node]
ae_title = "NODE"
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {port}
web_port = {web}
[receive]
processes = {processes}
keep_free_gb = 0.0
drain_s = 1.0
[assemble]
quiet_s = 0.3
quiet_unreleased_s = 600.0
[[peer]]
name = "scanner"
ae_title = "ME"  # the scanner
may_send = true
[[peer]]
name = "results"
folder = "results"
[[route]]
name = "breast"
match = {{ Modality = "US" }}
pipeline = "breast-us"
send_to = ["results"]
"""
NEW_PEER = {"name": "second", "ae_title": "YOU", "may_send": True}


class Told:
    """A node on a settings file of its own; work is not done."""

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self.file = folder / "node.toml"
        self.file.write_text(TOML.format(port=free_port(), web=free_port(), processes=processes))
        self.node = Node(load(self.file, catalogue()), file=self.file)
        assert self.node.settings is not None
        self.live: LiveSettings = self.node.settings
        self.audited: list[tuple[str, Any]] = []
        self.live.audit = lambda *said: self.audited.append(said)

    @property
    def digest(self) -> str:
        return settings_file.digest(self.live.text())

    def change(self, kind: str, name: str | None, values: dict[str, Any], who: str = "ana") -> None:
        self.live.change(
            lambda text: settings_file.with_entry(text, kind, name, values),
            self.digest,
            who,
            f"{kind} '{name}' changed",
        )

    def edit(self, before: str, after: str) -> None:
        text = self.file.read_text()
        assert before in text
        self.file.write_text(text.replace(before, after))

    def associate(self, title: str) -> int:
        with Parrot(self.node.config.node.dicom_port) as parrot:
            return parrot.associate(calling=title)[0]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    told.node.start(work=False, web=False)
    yield told
    told.node.stop()


def test_a_new_peer_may_send_at_once_and_an_association_that_is_open_goes_on(told: Told) -> None:
    assert told.associate("YOU") == ASSOCIATE_RJ
    image = us_image()
    with Parrot(told.node.config.node.dicom_port) as parrot:
        assert parrot.associate(sop_class=image.SOPClassUID)[0] == ASSOCIATE_AC
        told.change("peer", None, NEW_PEER)
        told.live.change(
            lambda text: settings_file.without_entry(text, "peer", "scanner"), told.digest, "ana", "scanner deleted"
        )
        assert told.associate("YOU") == ASSOCIATE_AC
        assert told.associate("ME") == ASSOCIATE_RJ
        assert parrot.store(image.SOPInstanceUID, encoded(image), image.SOPClassUID) == 0x0000, "it was accepted before"
        parrot.release()
    assert "ME" not in told.file.read_text()
    assert [peer.name for peer in told.node.config.peers] == ["results", "second"]


def test_a_series_takes_the_routes_that_are_in_force_when_it_closes(told: Told) -> None:
    image = us_image()
    with Parrot(told.node.config.node.dicom_port) as parrot:
        assert parrot.associate(sop_class=image.SOPClassUID)[0] == ASSOCIATE_AC
        assert parrot.store(image.SOPInstanceUID, encoded(image), image.SOPClassUID) == 0x0000
        route = {"name": "other", "match": {"Modality": "US"}, "pipeline": "breast-us", "send_to": ["results"]}
        told.change("route", "breast", {**route, "priority": "stat"})
        parrot.release()
    [job] = wait_for(told.node.ledger.open_jobs, 30, "the series to close")
    assert (job.route, job.priority) == ("other", 1)
    told.change("route", "other", {**route, "name": "third", "options": {"threads": 1}, "report_not_run": True})
    assert told.node.ledger.job(job.id) == job, "a job keeps what it was made with"


def test_what_check_refuses_is_refused_in_its_words_and_nothing_has_changed(told: Told) -> None:
    before, config = told.live.text(), told.node.config
    with pytest.raises(SettingsRefused) as refused:
        told.change("route", "breast", {"name": "breast", "match": {"Modalty": "US"}, "pipeline": "breast-us",
                                        "send_to": ["nobody"]})  # fmt: skip
    wrong = settings_file.with_entry(
        before, "route", "breast",
        {"name": "breast", "match": {"Modalty": "US"}, "pipeline": "breast-us", "send_to": ["nobody"]},
    )  # fmt: skip
    (told.file.parent / "wrong").mkdir()
    (told.file.parent / "wrong" / "node.toml").write_text(wrong)
    said = [
        str(each)
        for each in problems(told.file.parent / "wrong" / "node.toml", catalogue())
        if each.severity == "error"
    ]
    assert len(said) == 2
    assert str(refused.value) == "\n".join(said)
    assert (told.live.text(), told.node.config) == (before, config)
    assert [each.what for each in told.live.versions()] == ["first seen"]


def test_what_cannot_be_made_of_new_settings_changes_nothing(told: Told) -> None:
    before = told.live.text()
    (told.file.parent / "no.pem").write_text("no certificate")
    peer = {"name": "web", "dicomweb_url": "https://127.0.0.1:1/x", "dicomweb_ca": "no.pem"}
    with pytest.raises(SettingsRefused, match=r"peer 'web': dicomweb_ca .* cannot be used"):
        told.change("peer", None, peer)
    assert told.live.text() == before
    assert told.live.problem is None


def test_the_second_of_two_is_told(told: Told) -> None:
    looked_at = told.digest
    told.change("peer", None, NEW_PEER, who="ana")
    with pytest.raises(SettingsChanged, match=r"changed meanwhile by ana \(peer 'None' changed\)"):
        told.live.change(lambda text: f"{text}\n# mine\n", looked_at, "ben", "mine")
    looked_at = told.digest
    told.edit("# the scanner", "# by hand")
    with pytest.raises(SettingsChanged, match="was edited meanwhile"):
        told.live.change(lambda text: f"{text}\n# mine\n", looked_at, "ben", "mine")
    assert "# mine" not in told.file.read_text()


def test_two_at_the_very_same_time_are_one_after_the_other(told: Told) -> None:
    looked_at, refused = told.digest, []

    def add(number: int) -> None:
        peer = {"name": f"p{number}", "ae_title": f"P{number}", "may_send": True}
        try:
            told.live.change(
                lambda text: settings_file.with_entry(text, "peer", None, peer), looked_at, f"user{number}", "added"
            )
        except SettingsChanged as error:
            refused.append(error)

    adding = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for each in adding:
        each.start()
    for each in adding:
        each.join()
    assert len(refused) == 7
    assert len(told.node.config.peers) == 3


def test_what_was_changed_is_put_back(told: Told) -> None:
    first = told.live.text()
    told.change("peer", None, NEW_PEER)
    second = told.live.text()
    latest, _ = told.live.versions()
    assert (latest.who, latest.text, '+ae_title = "YOU"' in latest.difference) == ("ana", second, True)
    told.live.undo(latest.id, told.digest, "ben")
    assert told.live.text() == first
    assert [peer.name for peer in told.node.config.peers] == ["scanner", "results"]
    latest, *_ = told.live.versions()
    assert latest.who == "ben"
    told.live.undo(latest.id, told.digest, "ana")
    assert told.live.text() == second
    with pytest.raises(SettingsRefused, match="not known any more"):
        told.live.undo(told.live.versions()[-1].id, told.digest, "ana")
    assert [event for event, _ in told.audited] == ["configuration-changed"] * 3
    there, gone = 'peer.second.ae_title: not set -> "YOU"', 'peer.second.ae_title: "YOU" -> not set'
    assert [(there in facts["changes"], gone in facts["changes"]) for _, facts in told.audited] == [
        (True, False), (False, True), (True, False),
    ]  # fmt: skip


WITH_SECRET = {"name": "web", "dicomweb_url": "https://archive.example/", "dicomweb_token": "hush-1"}


def test_the_history_has_no_secret_and_what_is_put_back_has_the_one_of_now(told: Told) -> None:
    told.change("peer", None, WITH_SECRET)
    told.change("peer", "web", {**WITH_SECRET, "dicomweb_token": "hush-2"})
    renewed = told.live.versions()[0]
    assert "(a secret was changed)" in renewed.difference
    told.change("peer", "web", {**WITH_SECRET, "dicomweb_token": "hush-2", "ask_again_h": 3.0})
    latest = told.live.versions()[0]
    assert "secret" not in latest.difference, "it is the same one"
    told.live.undo(latest.id, told.digest, "ana")
    assert "ask_again_h" not in told.live.text()
    assert 'dicomweb_token = "hush-2"' in told.live.text()
    assert told.node.config.peer("web").dicomweb_token.get_secret_value() == "hush-2"  # type: ignore[union-attr]
    with pytest.raises(SettingsRefused, match="nothing is different"):
        told.live.undo(renewed.id, told.digest, "ana")
    told.change("peer", "web", {**WITH_SECRET, "dicomweb_url": "https://other.example/", "dicomweb_token": "hush-3"})
    elsewhere, before = told.live.versions()[0], told.live.text()
    with pytest.raises(SettingsRefused, match="PACS_NODE_PEER_WEB_DICOMWEB_TOKEN_"):
        told.live.undo(elsewhere.id, told.digest, "ana")
    assert told.live.text() == before
    assert "hush" not in repr([vars(each) for each in told.live.versions()])
    assert "hush" not in repr(told.audited)


def test_who_follows_has_secrets_of_his_own(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history that he reads has none."""
    file = tmp_path / "worker" / "node.toml"
    file.parent.mkdir()
    file.write_text(told.file.read_text())
    running, of = load(file, catalogue()), told.live
    worker = LiveSettings(file, running, told.node.ledger, catalogue(), lambda config: lambda: None, of.now, of.audit)
    told.change("peer", None, WITH_SECRET)
    why = worker.follow() or ""
    [lacking] = re.findall("PACS_NODE_PEER_WEB_DICOMWEB_TOKEN_[0-9A-F]{6}", why)
    assert worker.not_followed == why
    assert [peer.name for peer in worker.running.peers] == ["scanner", "results"]

    monkeypatch.setenv(lacking, "hush-of-the-environment")
    assert worker.follow() is worker.not_followed is None
    assert worker.running.peer("web").dicomweb_token.get_secret_value() == "hush-of-the-environment"  # type: ignore[union-attr]
    monkeypatch.delenv(lacking)
    told.change("peer", None, NEW_PEER)
    assert lacking in (worker.follow() or "")

    own = {**WITH_SECRET, "dicomweb_token": "hush-of-the-worker"}
    file.write_text(settings_file.with_entry(file.read_text(), "peer", None, own))
    assert worker.follow() is None
    assert worker.running.peer("web").dicomweb_token.get_secret_value() == "hush-of-the-worker"  # type: ignore[union-attr]
    assert [peer.name for peer in worker.running.peers] == ["scanner", "results", "web", "second"]
    assert worker.reload()
    assert not worker.reload()
    assert [peer.name for peer in worker.running.peers] == ["scanner", "results", "web", "second"], (
        "it goes on following"
    )
    assert "hush" not in repr(told.audited)


def test_what_was_edited_by_hand_and_not_taken_up_is_not_lost_to_the_history(told: Told) -> None:
    told.edit("# the scanner", "# by hand")
    told.change("peer", None, NEW_PEER)
    assert [(each.who, each.what) for each in told.live.versions()] == [
        ("ana", "peer 'None' changed"), ("", "found in the file"), ("", "first seen"),
    ]  # fmt: skip


def test_a_file_that_cannot_be_written_leaves_no_history(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, text: str) -> None:
        raise SettingsRefused("cannot be written")

    config, before = told.node.config, told.live.versions()
    monkeypatch.setattr(settings_file, "write", fails)
    with pytest.raises(SettingsRefused, match="cannot be written"):
        told.change("peer", None, NEW_PEER)
    assert (told.node.config, told.live.versions()) == (config, before)


def test_a_node_that_is_killed_before_the_file_is_written_starts_with_the_former_one(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(path: Path, text: str) -> None:
        raise Killed

    before = told.live.text()
    with monkeypatch.context() as patch:
        patch.setattr(settings_file, "write", dies)
        with pytest.raises(Killed):
            told.change("peer", None, NEW_PEER)
    assert told.live.text() == before
    told.live.started()
    latest, *_ = told.live.versions()
    assert (latest.what, latest.text) == ("the node started", before), "the history says what is so"


def test_without_its_history_nothing_is_written(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise LedgerUnavailable("the database does not answer")

    before = told.live.text()
    monkeypatch.setattr(told.node.ledger, "keep_settings", away)
    with pytest.raises(LedgerUnavailable):
        told.change("peer", None, NEW_PEER)
    assert told.live.text() == before


def test_a_file_edited_by_hand_is_taken_up_when_asked(told: Told) -> None:
    told.edit("quiet_s = 0.3", "quiet_s = 2.5")
    told.edit('[[peer]]\nname = "results"', '[retention]\nkeep_days = 9\n[[peer]]\nname = "results"')
    assert told.node.config.assemble.quiet_s == 0.3
    assert told.live.reload()
    assert (told.node.stages.config.assemble.quiet_s, told.node.retention.settings.keep_days) == (2.5, 9)
    assert told.node.assembler.config.assemble.quiet_s == 2.5
    assert not told.live.reload(), "nothing has changed"


def test_the_audit_trail_hears_who_had_an_edited_file_taken_up_and_what_changed(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does it: its signal comes to this process here, whose node is told in its place."""
    monkeypatch.setattr("pacs_node.settings.running_on", lambda data_dir: iter([0]))
    monkeypatch.setattr("pacs_node.settings.os.kill", lambda pid, number: told.node.reload())
    told.edit("quiet_s = 0.3", "quiet_s = 2.5")
    told_to_reload(told.file, told.node.config.node.data_dir, told.node.ledger, "ana")
    [(_, facts)] = told.audited
    assert (facts["user"], facts["changes"]) == ("ana", ["assemble.quiet_s: 0.3 -> 2.5"])
    told.edit("quiet_s = 2.5", "quiet_s = 3.5")
    told.node.reload()  # by a signal of whom nobody knows
    assert (told.audited[-1][1]["user"], told.audited[-1][1]["changes"]) == ("", ["assemble.quiet_s: 2.5 -> 3.5"])


def test_what_was_edited_while_no_node_ran_is_told_at_its_start(told: Told) -> None:
    told.node.stop()
    told.edit("quiet_s = 0.3", "quiet_s = 2.5")
    node = Node(load(told.file, catalogue()), file=told.file)
    heard: list[tuple[str, Any]] = []
    node.audit.log = lambda *said: heard.append(said)
    node.start(work=False, web=False)
    node.stop()
    [facts] = [facts for event, facts in heard if event == "configuration-changed"]
    assert facts["changes"] == ["assemble.quiet_s: 0.3 -> 2.5"]
    assert "not those of the last start" in facts["words"]


def test_a_wrong_file_leaves_the_former_settings_and_says_why_until_it_is_right(told: Told) -> None:
    from pacs_node.facts import NodeFacts

    facts = NodeFacts(told.node)
    config = told.node.config
    told.edit("quiet_s = 0.3", "quiet = 0.3")
    told.node.reload()  # by a signal: nobody hears what it raises
    assert told.node.config == config
    health = facts.health()
    [said] = [each for each in health["reasons"] if "settings file" in each]
    assert "no setting 'quiet'" in said
    assert health["status"] == "degraded"
    told.edit("quiet = 0.3", "quiet_s = 0.3")
    told.node.reload()
    assert [each for each in facts.health()["reasons"] if "settings" in each] == []


def test_what_waits_for_the_next_start_is_named_and_not_in_force(told: Told) -> None:
    told.edit('ae_title = "NODE"', 'ae_title = "OTHER"')
    told.edit("processes = 1", "processes = 2")
    told.live.reload()
    assert told.live.waiting == ("ae_title in [node]", "processes in [receive]")
    assert "ae_title in [node], processes in [receive]" in told.live.versions()[0].what, "the command says so, too"
    assert told.node.config.node.ae_title == "NODE"
    assert told.associate("ME") == ASSOCIATE_AC
    told.edit('"OTHER"', '"NODE"')
    told.edit("processes = 2", "processes = 1")
    told.live.reload()
    assert told.live.waiting == ()


def test_who_is_told_changes_at_once(told: Told) -> None:
    def named() -> list[str]:
        return [each.name for each in told.node.notifier.receivers] if told.node.notifier is not None else []

    assert named() == []
    without = told.file.read_text()
    notify = '\n[[notify]]\nname = "{}"\nurls = ["json://127.0.0.1:1/{}"]\nabout = ["pause"]\n'
    told.file.write_text(without + notify.format("first", "a"))
    told.live.reload()
    assert named() == ["first"]
    assert told.node.notifier is not None
    looks = told.node.notifier.loop
    told.file.write_text(without + notify.format("first", "b") + notify.format("second", "c"))
    told.live.reload()
    assert named() == ["first", "second"]
    assert told.live.waiting == ()
    assert told.node.notifier.loop is looks, "one that looks"
    told.node.notifier.troubles = {"first": "away", "second": "away"}
    told.file.write_text(without + notify.format("second", "c"))
    told.live.reload()
    assert told.node.notifier.troubles == {"second": "away"}, "of who is not told any more nothing is wrong"
    told.file.write_text(without)
    told.live.reload()
    assert named() == []


def test_every_table_is_taken_up_or_waits() -> None:
    """One that is neither would be silently ignored: whatever is added to the settings falls on one side."""
    running = Config()
    for name, field in Config.model_fields.items():
        if name in AT_ONCE:
            continue
        table = getattr(running, name)
        for key in type(table).model_fields:
            asked = running.model_copy(update={name: table.model_copy(update={key: "another"})})
            live, waiting = in_force(running, asked)
            at_once = key in KEYS_AT_ONCE.get(name, ()) and key != "dicom_host"  # not without another port
            assert waiting == (() if at_once else (f"{key} in [{name}]",))
            assert getattr(live, name) == (getattr(asked, name) if at_once else table)
        assert field.annotation is type(table)


def test_limits_of_the_listener_are_taken_up(told: Told) -> None:
    """An association that is open goes on as it was accepted."""
    image = us_image()
    port = told.node.config.node.dicom_port
    told.edit(
        "drain_s = 1.0", "drain_s = 1.0\nmax_associations = 1\nmax_pdu = 20000\nacse_timeout_s = 7.0\nlargest_mb = 1"
    )
    with Parrot(port) as parrot:
        assert parrot.associate(sop_class=image.SOPClassUID)[0] == ASSOCIATE_AC
        assert told.live.reload()
        assert told.live.waiting == ()
        assert told.associate("ME") == ASSOCIATE_RJ, "one is the most, and it is open"
        assert parrot.store(image.SOPInstanceUID, encoded(image), image.SOPClassUID) == 0x0000
        parrot.release()
    wait_for(lambda: told.associate("ME") == ASSOCIATE_AC, 30, "room for the next one")
    listener = told.node.listener
    assert listener is not None
    assert listener._server is not None
    assert (listener._server.ae.maximum_pdu_size, listener._server.ae.acse_timeout) == (20000, 7.0)
    assert told.node.spool.largest == 1 << 20


def test_the_listener_moves_to_another_port_and_nobody_is_cut_off(told: Told) -> None:
    image, former, new = us_image(), told.node.config.node.dicom_port, free_port()
    with Parrot(former) as parrot, socket.create_server(("127.0.0.1", 0)) as taken:
        assert parrot.associate(sop_class=image.SOPClassUID)[0] == ASSOCIATE_AC
        told.edit(f"dicom_port = {former}", f"dicom_port = {taken.getsockname()[1]}")
        with pytest.raises(SettingsRefused, match=r"is taken by another program: .*change dicom_port"):
            told.live.reload()
        assert told.associate("ME") == ASSOCIATE_AC, "where it was"
        told.edit(f"dicom_port = {taken.getsockname()[1]}", f"dicom_port = {new}")
        assert told.live.reload()
        assert told.live.waiting == ()
        assert told.node.config.node.dicom_port == new
        assert told.associate("ME") == ASSOCIATE_AC
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", former)):
            pass
        assert parrot.store(image.SOPInstanceUID, encoded(image), image.SOPClassUID) == 0x0000, "it was accepted before"
        parrot.release()
    assert told.node.ledger.instance(str(image.SOPInstanceUID)) or wait_for(
        lambda: told.node.ledger.instance(str(image.SOPInstanceUID)), 30, "its row"
    )


def test_several_processes_stay_at_their_port() -> None:
    running = Config()
    for table, change in (("receive", {"processes": 2}), ("tls", {"only_tls": True})):
        many = running.model_copy(update={table: getattr(running, table).model_copy(update=change)})
        asked = many.model_copy(update={"node": many.node.model_copy(update={"dicom_port": 1})})
        assert in_force(many, asked) == (many, ("dicom_port in [node]",))


def test_all_processes_that_receive_take_new_settings_up(tmp_path: Path) -> None:
    told = Told(tmp_path, processes=2)
    told.node.start(work=False, web=False)
    try:
        assert {told.associate("YOU") for _ in range(6)} == {ASSOCIATE_RJ}
        told.change("peer", None, NEW_PEER)
        assert {told.associate("YOU") for _ in range(12)} == {ASSOCIATE_AC}
        assert told.node.trouble() == []
    finally:
        told.node.stop()


def test_no_page_names_other_code_to_run(told: Told) -> None:
    run = {"command": ["/bin/true", "{input}", "{output}"], "name": "x", "version": "1"}
    route = {"name": "tool", "match": {"Modality": "CT"}, "pipeline": "command", "options": run, "send_to": ["results"]}
    with pytest.raises(
        SettingsRefused, match="route 'tool': which code command runs is said in the settings file alone"
    ):
        told.change("route", None, route)
    told.file.write_text(settings_file.with_entry(told.file.read_text(), "route", None, route))
    told.live.reload()
    told.change("route", "tool", {**route, "priority": "stat"})
    with pytest.raises(SettingsRefused, match="in the settings file alone"):
        told.change("route", "tool", {**route, "options": {**run, "command": ["/bin/sh", "{input}", "{output}"]}})
    told.live.undo(told.live.versions()[0].id, told.digest, "ana")


def test_a_file_that_was_cut_off_is_not_taken_up(told: Told) -> None:
    """It is valid, and would have every sender rejected."""
    whole = told.file.read_text()
    for text in ("", whole[: whole.index("[[peer]]")], whole[: whole.index("[[route]]")]):
        told.file.write_text(text)
        with pytest.raises(SettingsRefused, match=r"has no \[\[(peer|route)\]\] any more: is it whole"):
            told.live.reload()
        assert told.live.problem is not None
        assert told.associate("ME") == ASSOCIATE_AC
    told.file.write_text(whole)
    told.live.reload()
    assert told.live.problem is None
