"""Storage commitment, both ways: what we asked a destination for, and what senders asked us."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.engine import portions
from pacs_node.ledger.jobs import Jobs, task_of
from pacs_node.ledger.queues import job_of
from pacs_node.ledger.tables import (
    commitment_request_table,
    commitment_table,
    instance_table,
    job_table,
    series_table,
)
from pacs_node.records import (
    Commitment,
    CommitmentReport,
    CommitmentRequest,
    Job,
)


class Commitments(Jobs):
    """Transactions of storage commitment."""

    def take_reports(self, job_id: str) -> list[Commitment]:
        """The storage commitments this job asked for, the latest last. From now on the job knows of their reports."""
        with self._begin() as db:
            mine = commitment_table.c.job == job_id
            # one that is to be asked for again is older than the last, whatever the clock said meanwhile
            age = commitment_table.c.again.desc(), commitment_table.c.begun_at
            rows = db.execute(sa.select(commitment_table).where(mine).order_by(*age)).mappings()
            commitments = [_commitment(row) for row in rows]
            db.execute(
                sa.update(commitment_table).where(mine, commitment_table.c.reported_at.is_not(None)).values(heeded=True)
            )
            return commitments

    def begin_commitment(self, job: Job, transaction_uid: str, now: datetime) -> None:
        """Remember that this is going to be asked for, before the peer hears of it."""
        with self._begin() as db:
            db.execute(
                sa.insert(commitment_table).values(
                    transaction_uid=transaction_uid,
                    job=job.id,
                    begun_at=now,
                    over="",
                    again=False,
                    reported_by="",
                    committed=[],
                    failed=[],
                    disputed=[],
                    heeded=False,
                )
            )

    def commitment_accepted(self, transaction_uid: str, now: datetime) -> None:
        self._set_commitment(transaction_uid, accepted_at=now)

    def commitment_over(self, transaction_uid: str, why: str) -> None:
        self._set_commitment(transaction_uid, over=why)

    def _set_commitment(self, transaction_uid: str, **values: Any) -> None:
        with self._begin() as db:
            ours = commitment_table.c.transaction_uid == transaction_uid
            db.execute(sa.update(commitment_table).where(ours).values(**values))

    def asked_for(self, transaction_uid: str) -> Job | None:
        """The confirm job that asked its destination for this storage commitment."""
        with self._reading() as db:
            mine = sa.select(commitment_table.c.job).where(commitment_table.c.transaction_uid == transaction_uid)
            row = db.execute(sa.select(job_table).where(job_table.c.id.in_(mine))).mappings().first()
            return None if row is None else job_of(row)

    def report_not_believed(self, job: Job, why: str, now: datetime) -> None:
        """Somebody else than the destination has reported on what this job asked."""
        with self._begin() as db:
            self._note(db, job.series_uid, now, "report not believed", f"{task_of(job)}: {why}")

    def commitment_reported(self, report: CommitmentReport, calling_ae: str, now: datetime) -> bool:
        """Keep a destination's report, and wake the job that waits for it. False: nobody asked for this one.

        A second report does not overturn the first: of what it says otherwise neither is believed from now on.
        """
        with self._begin() as db:
            ours = commitment_table.c.transaction_uid == report.transaction_uid
            row = db.execute(sa.select(commitment_table).where(ours).with_for_update()).mappings().first()
            if row is None:
                return False
            job = job_of(db.execute(sa.select(job_table).where(job_table.c.id == row["job"])).mappings().one())
            first = _commitment(row).report
            if first is None:
                values = {
                    "reported_at": now,
                    "reported_by": calling_ae,
                    "committed": [list(each) for each in report.committed],
                    "failed": [list(each) for each in report.failed],
                }
                event, said = "committed", f"{len(report.committed)} objects committed, {len(report.failed)} not"
            else:
                sent = frozenset[str](db.scalars(self._stored(job.send_job or "")))
                disputed = {
                    uid for uid, there in report.said().items() if uid in sent and first.said().get(uid) != there
                }
                if disputed <= set(row["disputed"]):
                    return True  # it is told again
                values = {"disputed": sorted(disputed | set(row["disputed"])), "heeded": False}
                event = "report contradicted"
                said = f"a later report says something else of {len(disputed)} objects; neither is believed"
            db.execute(sa.update(commitment_table).where(ours).values(**values))
            self._note(db, job.series_uid, now, event, f"{task_of(job)}: {said}")
            self._wake_for_report(db, job)
            return True

    def commitment_asked(self, request: CommitmentRequest, job: Job, now: datetime) -> None:
        """A sender wants to know what we keep: its request, and the job that will report."""
        with self._begin() as db:
            values = {"wanted": [list(each) for each in request.wanted], "asked_at": now, "reported_at": None}
            db.execute(
                self._insert(commitment_request_table)
                .values(calling_ae=request.calling_ae, transaction_uid=request.transaction_uid, **values)
                .on_conflict_do_update(index_elements=["calling_ae", "transaction_uid"], set_=values)
            )
            self._add_job(db, job)
            self._keep_for(db, request)
            text = f"{request.calling_ae} asked for storage commitment of {len(request.wanted)} instances"
            self._note(db, job.series_uid, now, "commitment asked", text)

    def _keep_for(self, db: sa.Connection, request: CommitmentRequest) -> None:
        """Whoever asks relies on our images from now on: that is kept with their series."""
        for some in portions([uid for _, uid in request.wanted]):
            mine = instance_table.c.sop_instance_uid.in_(some)
            of = series_table.c.series_uid.in_(sa.select(instance_table.c.series_uid).where(mine))
            db.execute(sa.update(series_table).where(of).values(committed_to=request.calling_ae))

    def unreported(self, calling_ae: str, transaction_uid: str) -> CommitmentRequest | None:
        """A sender's request that it has no report on yet."""
        with self._reading() as db:
            row = (
                db.execute(
                    sa.select(commitment_request_table).where(
                        commitment_request_table.c.calling_ae == calling_ae,
                        commitment_request_table.c.transaction_uid == transaction_uid,
                        commitment_request_table.c.reported_at.is_(None),
                    )
                )
                .mappings()
                .first()
            )
            if row is None:
                return None
            return CommitmentRequest(transaction_uid, calling_ae, tuple((c, i) for c, i in row["wanted"]))

    def mark_reported(self, request: CommitmentRequest, now: datetime) -> None:
        """The sender has our report."""
        with self._begin() as db:
            self._keep_for(db, request)  # what came after it asked, too
            db.execute(
                sa.update(commitment_request_table)
                .where(
                    commitment_request_table.c.calling_ae == request.calling_ae,
                    commitment_request_table.c.transaction_uid == request.transaction_uid,
                )
                .values(reported_at=now)
            )


def _commitment(row: Any) -> Commitment:
    report = None
    if row["reported_at"] is not None:
        committed, failed = ([tuple(each) for each in row[name]] for name in ("committed", "failed"))
        report = CommitmentReport(row["transaction_uid"], tuple(committed), tuple(failed))
    disputed = frozenset(row["disputed"])
    return Commitment(row["transaction_uid"], row["accepted_at"], row["over"], row["again"], report, disputed)
