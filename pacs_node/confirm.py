"""The story of an arrival: "sent" is what a destination answered once; "arrived" is what it says when asked again.

    asked for storage commitment -> its report, on this association, on a later one, or never -> else a query;
    of a heartbeat the query first

The request's Transaction UID is in the ledger before the peer hears of it: a node that dies between the two asks again
with the same one, so that nothing is lost and nothing asked for twice. It is random, and shown nowhere: only
who was asked can report on it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pacs_node.commitment import NO_SUCH_INSTANCE, reason_words
from pacs_node.errors import Await, GiveUp, NotOffered, TryAgain
from pacs_node.records import HEARTBEAT_AE, ArrivalProof, Commitment, CommitmentReport, Job, Sent

if TYPE_CHECKING:
    from pacs_node.ledger import Ledger

COMMITMENT = "storage commitment"


class ArrivalCheck(Protocol):
    """Who can be asked whether a destination has our results."""

    commits: bool  # may it be asked for storage commitment?
    query: str | None  # how `find` asks: "C-FIND", "QIDO-RS"; None: it may not be asked

    def ask_commitment(self, transaction_uid: str, sent: Sequence[Sent]) -> CommitmentReport | None:
        """Ask for a storage commitment. None: the peer will report later, on an association of its own.

        Raises NotOffered, or TryAgain when the peer does not answer now.
        """

    def find(self, sent: Sequence[Sent]) -> set[str]:
        """The SOP Instance UIDs of those it has. Raises NotOffered, or TryAgain when the peer does not answer now."""


class ArrivalChecks(Protocol):
    def arrival_check(self, destination: str) -> ArrivalCheck | None: ...
    def sent(self, paths: Sequence[Path], stored: frozenset[str]) -> list[Sent]: ...


@dataclass(frozen=True)
class Ending:
    """How the job ends: its state, its reason, and what is known of each object."""

    state: str
    reason: str
    arrivals: list[ArrivalProof]


class Confirm:
    """Proves that the results of one send job are at their destination, or says why that cannot be proven."""

    def __init__(
        self, ledger: Ledger, stages: ArrivalChecks, await_report_s: float, now: Callable[[], datetime],
        at: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.ledger, self.stages, self.await_report_s, self.now, self.at = ledger, stages, await_report_s, now, at

    def __call__(self, job: Job, *, last: bool) -> Ending:
        """One attempt. Raises TryAgain unless it is the last one; Await while a report is on its way."""
        assert job.destination is not None
        arrival_check = self.stages.arrival_check(job.destination)
        if arrival_check is None:
            raise GiveUp(f"the settings have no peer '{job.destination}' that can be asked whether results arrived")
        sent, gone = self._sent(job)
        committed, doubts = set[str](), dict[str, str]()
        rest, found, no_answer = sent, None, ""
        # a heartbeat is to be found by whoever looks for it; of its results a promise says less
        query_first = bool(sent and arrival_check.query) and job.sender == HEARTBEAT_AE
        if query_first:
            found, no_answer = self._by_query(sent, arrival_check, last)
        if found is None and sent and arrival_check.commits:
            committed, doubts = self._by_commitment(job, sent, arrival_check, last)
            rest = [each for each in sent if each.sop_instance_uid not in committed]
        if rest and arrival_check.query and not query_first:
            found, no_answer = self._by_query(rest, arrival_check, last)
        if found is not None and len(found) < len(rest) and not last:
            raise TryAgain(f"{arrival_check.query} finds {len(found)} of {len(rest)} objects at {job.destination}")

        def judge(each: Sent) -> ArrivalProof:
            uid, now = each.sop_instance_uid, self.now()
            doubt = doubts.get(uid, "")
            if uid in committed:
                return ArrivalProof(uid, True, COMMITMENT, f"arrived: {COMMITMENT}", now)
            if found is not None and uid in found:
                return ArrivalProof(
                    uid, True, str(arrival_check.query), f"arrived: found by {arrival_check.query}", now
                )
            if found is not None:
                text = f"not there: {arrival_check.query} does not find it" + (f"; {doubt}" if doubt else "")
                return ArrivalProof(uid, False, str(arrival_check.query), text, now)
            if doubt.endswith(reason_words(NO_SUCH_INSTANCE)):
                return ArrivalProof(uid, False, COMMITMENT, f"not there: {doubt}", now)
            return ArrivalProof(uid, None, "", "not proven: " + "; ".join(filter(None, (doubt, no_answer))), now)

        lost = [
            ArrivalProof(uid, None, "", "not proven: its file is no longer here to ask for", self.now()) for uid in gone
        ]
        return _ending([*(judge(each) for each in sent), *lost])

    def _sent(self, job: Job) -> tuple[list[Sent], list[str]]:
        """What the send job says was stored, and the SOP Instance UIDs of that whose files are gone."""
        send = self.ledger.job(job.send_job or "")
        stored = self.ledger.stored_uids(send.id) if send is not None else frozenset()
        results = self.ledger.results(send.infer_job) if send is not None and send.infer_job else []
        sent = self.stages.sent([result.path for result in results], stored)
        return sent, sorted(stored - {each.sop_instance_uid for each in sent})

    def _by_commitment(
        self, job: Job, sent: list[Sent], arrival_check: ArrivalCheck, last: bool
    ) -> tuple[set[str], dict[str, str]]:
        """(SOP Instance UIDs the peer answers for, why not the others). Raises TryAgain, Await."""
        known = self.ledger.take_reports(job.id)
        if not known or known[-1].again:
            self.ledger.begin_commitment(job, _transaction_uid(), self.now())
            known = self.ledger.take_reports(job.id)
        if known[-1].open and known[-1].accepted_at is None:
            self._ask(known[-1], sent, arrival_check, last)
            known = self.ledger.take_reports(job.id)
        mine = known[-1]
        if mine.open and mine.accepted_at is not None:
            accepted_at, now = mine.accepted_at, self.now()
            if accepted_at > now:  # the clock was set back since: the wait begins now
                self.ledger.commitment_accepted(mine.transaction_uid, now)
                accepted_at = now
            until = accepted_at + timedelta(seconds=self.await_report_s)
            if now < until:
                raise Await(f"{job.destination} was asked for storage commitment and will report", until)
            self.ledger.commitment_over(mine.transaction_uid, f"no report within {self.await_report_s:g} s")
            mine = self.ledger.take_reports(job.id)[-1]
        committed: set[str] = set()
        for each in known:  # the peer's last word counts
            said = each.report.said() if each.report is not None else {}
            committed = (committed | said.keys()) - {uid for uid, there in said.items() if not there} - each.disputed
        failed = {uid: reason for _, uid, reason in mine.report.failed} if mine.report else {}

        def doubt(uid: str) -> str:
            if uid in mine.disputed:
                return "the peer's reports contradict each other"
            return reason_words(failed[uid]) if uid in failed else mine.over or "the report does not name it"

        doubts = {each.sop_instance_uid: f"{COMMITMENT}: {doubt(each.sop_instance_uid)}" for each in sent}
        return committed & set(doubts), doubts

    def _ask(self, commitment: Commitment, sent: list[Sent], arrival_check: ArrivalCheck, last: bool) -> None:
        """N-ACTION; what comes of it is in the ledger. Raises TryAgain."""
        uid = commitment.transaction_uid
        try:
            report = arrival_check.ask_commitment(uid, sent)
        except NotOffered as refusal:
            self.ledger.commitment_over(uid, str(refusal))
            return
        except TryAgain as failure:
            if not last:
                raise
            self.ledger.commitment_over(uid, str(failure))
            return
        self.at("commitment asked")
        self.ledger.commitment_accepted(uid, self.now())
        if report is not None:
            self.ledger.commitment_reported(report, "", self.now())

    def _by_query(self, rest: list[Sent], arrival_check: ArrivalCheck, last: bool) -> tuple[set[str] | None, str]:
        """(what the peer has, "") or (None, why it does not say). Raises TryAgain."""
        try:
            return arrival_check.find(rest), ""
        except NotOffered as refusal:
            return None, f"{arrival_check.query}: {refusal}"
        except TryAgain as failure:
            if not last:
                raise
            return None, f"{arrival_check.query}: {failure}"


def _ending(arrivals: list[ArrivalProof]) -> Ending:
    absent = [each for each in arrivals if each.arrived is False]
    unproven = [each for each in arrivals if each.arrived is None]
    if absent:
        return Ending("failed", f"{len(absent)} of {len(arrivals)} objects {absent[0].text}", arrivals)
    if unproven:
        return Ending("done", unproven[0].text, arrivals)
    texts = Counter(each.text for each in arrivals)
    if len(texts) == 1:
        return Ending("done", arrivals[0].text, arrivals)
    return Ending("done", "; ".join(f"{number} {text}" for text, number in texts.items()), arrivals)


def _transaction_uid() -> str:
    """A UID by the form of PS3.5 B.2 that nobody can guess: 122 bits of it are random."""
    return f"2.25.{uuid.uuid4().int}"
