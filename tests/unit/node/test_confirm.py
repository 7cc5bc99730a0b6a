"""The story of an arrival, on a real ledger: what is asked, awaited, believed, and what a kill in between does."""

from __future__ import annotations

import itertools
import random
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pacs_node.errors import NotOffered, TryAgain
from pacs_node.flow import Flow, RetryPolicy
from pacs_node.ledger import Ledger
from pacs_node.records import (
    HEARTBEAT_AE,
    CommitmentReport,
    CommitmentRequest,
    Instance,
    Job,
    Package,
    Receipt,
    Result,
    Sent,
    Verdict,
)

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SEG, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33"
BOTH = ((SEG, "2.1"), (SR, "2.2"))


class Killed(BaseException):
    """The process ends here."""


class Scripted:
    """A destination whose answers a test writes down, and the rooms round it."""

    def __init__(self) -> None:
        self.commits = True
        self.query: str | None = "C-FIND"
        self.asked: list[str] = []  # Transaction UIDs
        self.has = {"2.1", "2.2"}  # what a query finds
        self.answer: object = None  # of ask_commitment: a report's two halves, None, or an error
        self.silent = False  # finds nothing out

    def arrival_check(self, destination: str) -> Scripted | None:
        return None if destination == "folder" else self

    def sent(self, paths: Sequence[Path], stored: frozenset[str]) -> list[Sent]:
        classes = {uid: sop_class for sop_class, uid in BOTH}
        return [Sent(classes[path.name], path.name, "1.8", "1.9") for path in paths if path.name in stored]

    def ask_commitment(self, transaction_uid: str, sent: Sequence[Sent]) -> CommitmentReport | None:
        self.asked.append(transaction_uid)
        if isinstance(self.answer, Exception):
            raise self.answer
        return None if self.answer is None else CommitmentReport(transaction_uid, *self.answer)

    def find(self, sent: Sequence[Sent]) -> set[str]:
        if self.silent:
            raise NotOffered("pacs does not offer C-FIND")
        return self.has & {each.sop_instance_uid for each in sent}

    def is_shadow(self, route: str) -> bool:
        return False

    def deliver(self, destination: str, package: Package) -> list[Receipt]:
        return [Receipt(path.name, True, 0, "0x0000 Success", T0) for path in package.paths]


class Story:
    def __init__(self, folder: Path) -> None:
        self.clock = T0
        self.stages = Scripted()
        self.kill_at: str | None = None
        self.ledger = Ledger(f"sqlite:///{folder}/node.sqlite", folder)
        self.ledger.migrate()
        policies = dict.fromkeys(("infer", "send", "confirm", "report"), RetryPolicy(1, 1, 3))
        self.flow = Flow(self.ledger, self.stages, policies, poison_limit=9, now=lambda: self.clock,
                         jitter=random.Random(1), executor="w", await_report_s=100, at=self.at)  # fmt: skip

    def at(self, step: str) -> None:
        if step == self.kill_at:
            self.kill_at = None
            raise Killed

    def sent(self, destination: str = "pacs", sender: str = "") -> Job | None:
        """One series has been inferred and sent; the job that follows."""
        self.ledger.take_in(Instance("1.1", "c", "1.9", "1.8", "t", Path("/x"), 1, T0, "a", "CT1"))
        job = Job("j", "infer", "1.9", "1.8", 1, "breast-us", "r", 5, T0, (destination,), sender=sender)
        self.ledger.close_series(
            "1.9", arrived=1, because="quiet", modality="US", description="", verdict=Verdict(True, "fit"), rules=[],
            jobs=[job], revision=1, now=T0,
        )  # fmt: skip
        self.ledger.begin(job, "w", T0)
        results = [Result(uid, sop_class, Path("/r") / uid) for sop_class, uid in BOTH]
        send = Job("s", "send", "1.9", "1.8", 1, "breast-us", "r", 5, T0, destination=destination, infer_job="j",
                   sender=sender)  # fmt: skip
        self.ledger.finish(job, "done", "2 findings", T0, results=results, follow_up=[send])
        self.flow.run("s", 1, 1)
        return next((job for job in self.ledger.open_jobs() if job.kind == "confirm"), None)

    def run(self) -> dict:
        """One attempt of the open confirm job, as the engine would make it."""
        [job] = [job for job in self.ledger.open_jobs() if job.kind == "confirm"]
        self.flow.run(job.id, job.generation, job.attempt)
        return self.facts()

    def facts(self) -> dict:
        [job] = [job for job in self.ledger.series("1.9")["jobs"] if job["kind"] == "confirm"]
        return job

    def report(self, committed: tuple = BOTH, failed: tuple = ()) -> bool:
        return self.ledger.commitment_reported(CommitmentReport(self.stages.asked[0], committed, failed), "PACS", T0)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which nothing has happened: a copy is had sooner than another one."""
    folder = tmp_path_factory.mktemp("migrated")
    Story(folder).ledger.close()
    return folder / "node.sqlite"


@pytest.fixture
def story(tmp_path: Path, migrated: Path) -> Story:
    shutil.copy(migrated, tmp_path)
    return Story(tmp_path)


def arrived(facts: dict) -> list:
    return [(each["sop_instance_uid"], each["arrived"], each["how"]) for each in facts["arrivals"]]


def test_a_report_on_the_same_association_proves_it_at_once(story: Story) -> None:
    story.sent()
    story.stages.answer = (BOTH,)
    facts = story.run()
    assert (facts["state"], facts["reason"]) == ("done", "arrived: storage commitment")
    assert arrived(facts) == [("2.1", True, "storage commitment"), ("2.2", True, "storage commitment")]
    counts = story.ledger.arrival_counts()
    assert counts == [("pacs", "yes", "storage commitment", 2)]


def test_nobody_is_asked_about_a_folder(story: Story) -> None:
    assert story.sent("folder") is None


def test_a_later_report_wakes_the_job(story: Story) -> None:
    story.sent()
    facts = story.run()
    assert facts["state"] == "waiting"
    assert facts["not_before"].startswith("2026-01-02T03:05:45")  # accepted at T0, awaited for 100 s
    assert facts["reason"] == "pacs was asked for storage commitment and will report"
    assert story.report()
    assert story.facts()["state"] == "queued"
    assert story.run()["reason"] == "arrived: storage commitment"
    assert len(story.stages.asked) == 1


def test_without_a_report_in_time_it_is_queried_and_a_late_one_still_counts(story: Story) -> None:
    story.sent()
    story.run()
    story.clock += timedelta(seconds=101)
    facts = story.run()
    assert (facts["state"], facts["reason"]) == ("done", "arrived: found by C-FIND")
    story.clock += timedelta(hours=5)
    assert story.report()
    assert story.run()["reason"] == "arrived: storage commitment"
    assert len(story.stages.asked) == 1


SAID = list(itertools.product((True, False, None), repeat=2))  # of one object, by a first report and a second


def half(told: Sequence[bool | None]) -> tuple[tuple, tuple]:
    """What a report commits to and what it does not, of the two objects: True, False, or nothing said."""
    both = list(zip(BOTH, told, strict=True))
    return tuple(o for o, there in both if there is True), tuple((*o, 0x0110) for o, there in both if there is False)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("found", [{"2.1"}, None], ids=str)
@pytest.mark.parametrize(("one", "other"), zip(SAID, SAID[4:] + SAID[:4], strict=True), ids=str)
def test_a_second_report_that_says_something_else_overturns_nothing_and_is_not_passed_over(
    story: Story, one: tuple, other: tuple, found: set[str] | None, ended: bool
) -> None:
    """Of an object that two reports disagree about neither is believed: a query decides, or nothing is proven."""

    def finish() -> None:
        while story.facts()["state"] in ("queued", "waiting"):
            story.run()

    def contradictions() -> int:
        timeline = story.ledger.series("1.9")["timeline"]
        return sum(event["event"] == "report contradicted" for event in timeline)

    first, second = zip(one, other, strict=True)
    story.stages.silent = found is None
    story.stages.has = found or set()
    story.sent()
    story.run()
    assert story.report(*half(first))
    if ended:
        finish()
    for _ in range(2):  # told again it is no news
        assert story.report(*half(second))
        finish()
        disputed = [said is not None and said != before for before, said in (one, other)]
        assert contradictions() == any(disputed)
    known = {each["sop_instance_uid"]: (each["arrived"], each["how"]) for each in story.facts()["arrivals"]}
    for uid, (before, _), doubted in zip(("2.1", "2.2"), (one, other), disputed, strict=True):
        if before is True and not doubted:
            assert known[uid] == (True, "storage commitment")
        else:
            assert known[uid] == ((None, "") if found is None else (uid in found, "C-FIND"))
    assert len(story.stages.asked) == 1


def test_what_is_in_doubt_is_said(story: Story) -> None:
    story.stages.silent = True
    story.sent()
    story.run()
    story.report()
    story.report(committed=(), failed=((SR, "2.2", 0x0110),))
    facts = story.run()
    assert arrived(facts) == [("2.1", True, "storage commitment"), ("2.2", None, "")]
    assert facts["reason"] == (
        "not proven: storage commitment: the peer's reports contradict each other; C-FIND: pacs does not offer C-FIND"
    )


def test_no_two_requests_can_be_told_from_each_other(tmp_path: Path) -> None:
    """The same job in two nodes asks under two Transaction UIDs: they come from nowhere but the ledger."""
    uids = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        story = Story(tmp_path / name)
        story.sent()
        story.run()
        uids |= set(story.stages.asked)
    assert len(uids) == 2
    assert all(re.fullmatch(r"2\.25\.[1-9][0-9]{30,38}", uid) for uid in uids)


def test_a_report_nobody_asked_for_is_not_known(story: Story) -> None:
    story.sent()
    assert not story.ledger.commitment_reported(CommitmentReport("9.9", BOTH), "PACS", T0)


@pytest.mark.parametrize("found", [set(), {"2.1", "2.2"}])
def test_a_report_that_comes_while_the_job_ends_is_not_lost(story: Story, found: set[str]) -> None:
    """The query has just been asked when the report is told: the job runs once more and believes the report."""
    story.sent()
    story.run()
    story.clock += timedelta(seconds=101)
    story.stages.has = found
    find = story.stages.find

    def slow(sent: Sequence[Sent]) -> set[str]:
        story.report()
        return find(sent)

    story.stages.find = slow
    story.run()
    assert story.facts()["state"] == "queued"
    assert story.run()["reason"] == "arrived: storage commitment"


def test_killed_between_the_request_and_its_row(story: Story) -> None:
    """The peer knows the Transaction UID, so does the ledger; the same one is asked for again, and no other."""
    job = story.sent()
    story.kill_at = "commitment asked"
    with pytest.raises(Killed):
        story.run()
    story.run()
    assert story.stages.asked == [story.stages.asked[0]] * 2
    assert story.report()
    assert story.run()["reason"] == "arrived: storage commitment"
    assert len(story.ledger.take_reports(job.id)) == 1


def test_killed_after_the_request_and_told_before_the_restart(story: Story) -> None:
    """The report finds its row although the node died before it knew that the request was accepted."""
    story.sent()
    story.kill_at = "commitment asked"
    with pytest.raises(Killed):
        story.run()
    assert story.report()
    assert story.run()["reason"] == "arrived: storage commitment"
    assert len(story.stages.asked) == 1


def test_what_is_not_committed_is_looked_for(story: Story) -> None:
    story.sent()
    story.stages.answer = (BOTH[:1], ((SR, "2.2", 0x0110),))
    facts = story.run()
    assert facts["state"] == "done"
    assert arrived(facts) == [("2.1", True, "storage commitment"), ("2.2", True, "C-FIND")]
    assert facts["reason"] == "1 arrived: storage commitment; 1 arrived: found by C-FIND"


def test_what_is_nowhere_fails_after_the_last_attempt_and_may_be_asked_for_again(story: Story) -> None:
    story.sent()
    story.stages.answer = (BOTH[:1], ((SR, "2.2", 0x0112),))
    story.stages.has = {"2.1"}
    assert story.run()["state"] == "waiting"
    story.run()
    facts = story.run()
    assert facts["state"] == "failed"
    assert facts["reason"] == (
        "1 of 2 objects not there: C-FIND does not find it; storage commitment: 0x0112 No such object instance"
    )
    assert arrived(facts) == [("2.1", True, "storage commitment"), ("2.2", False, "C-FIND")]
    assert len(story.stages.asked) == 1
    assert story.ledger.run_again(facts["id"], T0)
    story.stages.answer = (BOTH,)
    assert story.run()["reason"] == "arrived: storage commitment"
    assert len(set(story.stages.asked)) == 2  # an operator's wish is a new request, PS3.4 J.3.2.1.3


def test_the_last_word_of_the_peer_counts(story: Story) -> None:
    """Asked again it no longer has what it had promised: that is not "arrived"."""
    story.sent()
    story.stages.answer = (BOTH[:1], ((SR, "2.2", 0x0112),))
    story.stages.has = set()
    while (facts := story.run())["state"] == "waiting":
        pass
    assert facts["state"] == "failed"
    assert story.ledger.run_again(facts["id"], T0)
    [(first_class, first_uid)] = BOTH[:1]
    story.stages.answer = (BOTH[1:], ((first_class, first_uid, 0x0112),))
    while (facts := story.run())["state"] == "waiting":
        pass
    assert {uid: there for uid, there, _ in arrived(facts)} == {"2.1": False, "2.2": True}


def test_no_proof_is_no_failure(story: Story) -> None:
    story.sent()
    story.stages.answer = NotOffered("pacs does not offer it")
    story.stages.silent = True
    facts = story.run()
    assert facts["state"] == "done"
    assert facts["reason"] == (
        "not proven: storage commitment: pacs does not offer it; C-FIND: pacs does not offer C-FIND"
    )
    assert {each[1:] for each in arrived(facts)} == {(None, "")}


def test_an_object_whose_file_is_gone_is_not_proven(story: Story) -> None:
    story.sent()
    story.stages.answer = (BOTH,)
    story.stages.sent = lambda paths, stored: Scripted().sent(paths, stored)[:1]
    facts = story.run()
    assert arrived(facts) == [("2.1", True, "storage commitment"), ("2.2", None, "")]
    assert (facts["state"], facts["reason"]) == ("done", "not proven: its file is no longer here to ask for")


def test_a_peer_that_is_down_is_asked_again_until_the_attempts_end(story: Story) -> None:
    story.sent()
    story.stages.answer = TryAgain("pacs cannot be reached")
    assert story.run()["state"] == "waiting"
    story.run()
    facts = story.run()
    assert facts["reason"] == "arrived: found by C-FIND"
    assert len(set(story.stages.asked)) == 1


@pytest.mark.parametrize(("commits", "query"), [(True, None), (False, "C-FIND")])
def test_only_what_the_settings_allow_is_asked(story: Story, commits: bool, query: str | None) -> None:
    story.sent()
    story.stages.commits, story.stages.query = commits, query
    story.stages.answer = ((), tuple((c, uid, 0x0112) for c, uid in BOTH))
    facts = story.run()
    assert bool(story.stages.asked) is commits
    assert facts["state"] == ("failed" if commits else "done")


@pytest.mark.parametrize("query", ["C-FIND", None])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("has", [{"2.1", "2.2"}, {"2.1"}])
def test_the_results_of_a_heartbeat_are_looked_for_and_a_promise_says_less(
    story: Story, query: str | None, silent: bool, has: set[str]
) -> None:
    """Storage commitment counts where no query is answered alone."""
    story.sent(sender=HEARTBEAT_AE)
    story.stages.answer, story.stages.query, story.stages.silent, story.stages.has = (BOTH,), query, silent, has
    facts = story.run()
    asked = query is not None and not silent
    assert bool(story.stages.asked) is not asked
    if asked and len(has) == 1:
        assert (facts["state"], facts["reason"]) == ("waiting", "C-FIND finds 1 of 2 objects at pacs")
    else:
        assert facts["reason"] == ("arrived: found by C-FIND" if asked else "arrived: storage commitment")


def test_a_sender_is_answered_once(story: Story) -> None:
    """Its request is a row and a job; once it was told on its own association, the job has nothing left to do."""
    story.sent()
    request = CommitmentRequest("5.5", "CT1", (("c", "1.1"), ("c", "1.7")))
    told: list[CommitmentReport] = []
    story.stages.judge_commitment = lambda asked: CommitmentReport(asked.transaction_uid, asked.wanted)
    story.stages.report = lambda calling_ae, report: told.append(report)
    for here in (True, False):
        story.clock += timedelta(seconds=1)
        story.flow.commitment_asked(request)  # the second time: it has lost our answer, and asks again
        [job] = [job for job in story.ledger.open_jobs() if job.kind == "report"]
        if here:
            story.ledger.mark_reported(request, story.clock)
        assert story.flow.run(job.id, 1, 1) is None
    assert [report.transaction_uid for report in told] == ["5.5"]
    reasons = [job["reason"] for job in story.ledger.series("1.9")["jobs"] if job["kind"] == "report"]
    assert reasons == ["reported on the sender's own association", "reported: 2 instances kept, 0 not"]


@pytest.mark.parametrize("hours", [5, -5])
def test_a_report_is_not_awaited_for_hours_because_the_clock_was_set(story: Story, hours: int) -> None:
    story.sent()
    assert story.run()["state"] == "waiting"
    story.clock += timedelta(hours=hours)
    for _ in range(3):
        facts = story.run()
        if facts["state"] != "waiting":
            break
        until = datetime.fromisoformat(facts["not_before"])
        assert until - story.clock <= timedelta(seconds=100), "await_report_s"
        story.clock = until
    assert facts["state"] == "done"


def test_an_operator_who_asks_again_is_answered_by_the_new_report_whatever_the_clock_said(story: Story) -> None:
    story.sent()
    story.stages.answer = (BOTH[:1], ((SR, "2.2", 0x0112),))
    story.stages.has = set()
    while (facts := story.run())["state"] == "waiting":
        pass
    story.clock -= timedelta(hours=5)
    assert story.ledger.run_again(facts["id"], story.clock)
    story.stages.answer = (BOTH,)
    assert story.run()["reason"] == "arrived: storage commitment"
    assert len(set(story.stages.asked)) == 2
