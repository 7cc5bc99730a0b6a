"""Jobs: every change of their state, checked against the table of transitions, and what they answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from pacs_node.ledger.editions import Editions
from pacs_node.ledger.figures import Figures
from pacs_node.ledger.found import FoundRows
from pacs_node.ledger.queues import BELONGS_TO, JOB_FIELDS, Queues, in_order_of_queues, job_of
from pacs_node.ledger.tables import (
    arrival_table,
    commitment_table,
    edition_table,
    job_table,
    place_table,
    receipt_table,
    result_table,
    series_table,
)
from pacs_node.ledger.tallies import Tallies
from pacs_node.outcomes import Counted
from pacs_node.records import (
    BEGINNABLE,
    HEARTBEAT_AE,
    LONGEST_STUDY,
    NEXT,
    OPEN_JOB_STATES,
    PRIORITY_NAMES,
    TRANSITIONS,
    ArrivalProof,
    Edition,
    Job,
    Receipt,
    Result,
    why_held,
)


class Jobs(Editions, Queues, Figures, Tallies, FoundRows):
    """Jobs from queued to ended. A write of a job says WHERE generation = :mine."""

    def _add_job(self, db: sa.Connection, job: Job) -> None:
        if job.shadow and job.kind != "infer":
            raise ValueError(f"nothing of a shadow leaves the node: no {job.kind} job for route '{job.route}'")
        row = {name: getattr(job, name) for name in JOB_FIELDS} | {
            "turn": self._turn(db, job),
            "parent": getattr(job, BELONGS_TO[job.kind]) if job.kind in BELONGS_TO else None,
            "send_to": list(job.send_to),
            "also": [asdict(each) for each in job.also],
            "options": dict(job.options),
            "warnings": [],
            "facts": {},
            "progress": 0.0,
            "progress_text": "",
        }
        db.execute(self._insert(job_table).values(row).on_conflict_do_nothing())

    def job(self, job_id: str) -> Job | None:
        with self._reading() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            return None if row is None else job_of(row)

    def waiting_in_study(self, study_uid: str) -> list[Job]:
        """Jobs that wait for other series of this study; and those that have waited in vain."""
        waits = sa.and_(job_table.c.study == "waiting", job_table.c.state.in_(BEGINNABLE))
        gone_by = sa.and_(job_table.c.study.in_(("incomplete", "skipped")), job_table.c.state.in_(("done", "refused")))
        mine = job_table.c.study_uid == study_uid, sa.or_(waits, gone_by)
        with self._reading() as db:
            rows = db.execute(sa.select(job_table).where(*mine).order_by(job_table.c.id)).mappings()
            return [job_of(row) for row in rows]

    def note_study(self, job: Job, study: str) -> None:
        """How the study of a job was that has begun: one of STUDIES."""
        with self._begin() as db:
            mine = job_table.c.id == job.id, job_table.c.generation == job.generation
            db.execute(sa.update(job_table).where(*mine).values(study=study))

    def studies(self) -> list[tuple[str, str, int]]:
        """(route, how the study was, number) of jobs that needed other series of it."""
        of = job_table.c.route, job_table.c.study
        query = sa.select(*of, sa.func.count()).where(job_table.c.study.is_not(None)).group_by(*of).order_by(*of)
        with self._reading() as db:
            return [tuple(row) for row in db.execute(query)]

    def is_ours(self, job: Job) -> bool:
        """Whether this attempt still holds the job: nobody has taken it over, and it is not superseded."""
        with self._reading() as db:
            held = sa.select(job_table.c.id).where(
                job_table.c.id == job.id,
                job_table.c.generation == job.generation,
                job_table.c.attempt == job.attempt,
                job_table.c.state == "running",
            )
            return db.scalar(held) is not None

    def open_jobs(self) -> list[Job]:
        """Jobs that are not finished, the most urgent first."""
        with self._reading() as db:
            rows = db.execute(
                sa.select(job_table)
                .where(job_table.c.state.in_(OPEN_JOB_STATES))
                .order_by(job_table.c.priority, job_table.c.created_at)
            ).mappings()
            return [job_of(row) for row in rows]

    def open_jobs_of(self, series_uid: str) -> list[Job]:
        """Those of a series that are not finished."""
        with self._reading() as db:
            its = job_table.c.series_uid == series_uid, job_table.c.state.in_(OPEN_JOB_STATES)
            return [job_of(row) for row in db.execute(sa.select(job_table).where(*its)).mappings()]

    def running_jobs(self) -> list[Job]:
        """Jobs whose rows say that a worker runs them."""
        with self._reading() as db:
            rows = db.execute(sa.select(job_table).where(job_table.c.state == "running")).mappings()
            return [job_of(row) for row in rows]

    def due_now(self, job: Job, now: datetime) -> None:
        """The wait of this attempt is over, whatever time its row names."""
        with self._begin() as db:
            db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job.id,
                    job_table.c.generation == job.generation,
                    job_table.c.attempt == job.attempt,
                    job_table.c.state.in_(BEGINNABLE),
                    job_table.c.not_before > now,
                )
                .values(not_before=now)
            )

    def end_impossible_waits(self, now: datetime, longest_s: float) -> list[Job]:
        """Let jobs begin now that wait for longer than any job may: the clock was set back. It is said at each."""
        time = job_table.c.not_before
        beyond = sa.and_(
            time > now + timedelta(seconds=longest_s),
            sa.or_(  # what waits for other series of its study may wait for longer
                job_table.c.waits_until.is_(None), time > job_table.c.waits_until, time > now + LONGEST_STUDY
            ),
        )
        with self._reading() as db:  # first, and nearly always only this: asked at every sweep
            if db.scalar(sa.select(job_table.c.id).where(beyond).limit(1)) is None:
                return []
        with self._begin() as db:
            rows = db.execute(sa.select(job_table).where(beyond)).mappings()  # by its index: there are hardly any
            jobs = [job_of(row) for row in rows if row["state"] in BEGINNABLE]
            for job in jobs:
                assert job.not_before is not None
                ahead = f"{(job.not_before - now).total_seconds():.0f} s ahead"
                said = f"{task_of(job)}: its time lay {ahead}, so the clock was set back; it runs now"
                self._note(db, job.series_uid, now, "clock", said)
            if jobs:
                db.execute(sa.update(job_table).where(beyond, job_table.c.state.in_(BEGINNABLE)).values(not_before=now))
        return jobs

    def _move(self, db: sa.Connection, job: Job, state: str, **values: Any) -> bool:
        """Change a job's state if the table of transitions allows it and the job is still ours (fencing)."""
        before = [old for old, new in TRANSITIONS if new == state]
        moved = db.execute(
            sa.update(job_table)
            .where(
                job_table.c.id == job.id,
                job_table.c.generation == job.generation,
                job_table.c.attempt == job.attempt,
                job_table.c.state.in_(before),
            )
            .values(state=state, **values)
        ).rowcount
        return bool(moved)

    def begin(self, job: Job, executor: str, now: datetime, rested_s: float = 0.0) -> bool:
        """Start one attempt. False when the job is finished, another generation has taken it, or it is paused.

        rested_s: of its wait, for the hours of its route; once, however often it begins.
        """
        with self._begin() as db:
            if why_held(self._pauses(db, now), job.kind, job.pipeline, job.destination):
                self._let_go(db, job)
                return False
            moved = self._move(
                db,
                job,
                "running",
                executor=executor,
                crashes=job_table.c.crashes + 1,
                started_at=now,
                not_before=None,
                progress=0.0,
                progress_text="",
                rested_s=round(rested_s, 3) if job.rested_s is None else job.rested_s,
            )
            if moved:
                self._count_start(db, job)
                waits_for_a_turn = job.kind == "infer" and job.counts and job.needs is None
                if waits_for_a_turn and (job.generation, job.attempt) == (1, 1):
                    self._took(db, "wait", job.pipeline, (now - job.created_at).total_seconds() - rested_s)
                if rested_s and job.rested_s is None and job.counts:
                    self._took(db, "rest", job.pipeline, rested_s)
            return moved

    def let_go(self, job: Job) -> None:
        """It does not begin now, though the engine was given it; in its place it will be given it anew."""
        with self._begin() as db:
            self._let_go(db, job)

    def _let_go(self, db: sa.Connection, job: Job) -> None:
        mine = job_table.c.id == job.id, job_table.c.generation == job.generation, job_table.c.attempt == job.attempt
        waits = job_table.c.state.in_(BEGINNABLE)
        db.execute(sa.update(job_table).where(*mine, waits).values(generation=job.generation + 1))

    def hurry(self, job_id: str, priority: int, by: str, now: datetime, rested_s: float = 0.0) -> str | None:
        """Make a job that waits NEXT, before all of its queue, or STAT. None, or why not.

        rested_s: of its wait until now, for the hours of its route, which are not for it from now on.
        """
        with self._begin() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            if row is None:
                return "there is no such job"
            job, name = job_of(row), PRIORITY_NAMES[priority]
            if job.state not in BEGINNABLE:
                return f"it does not wait: it is {job.state}"
            if job.shadow:
                return "it is of a shadow route, which is in nobody's way"
            if job.priority == priority != NEXT:
                return f"it is {name} already"
            moved = replace(job, priority=priority)
            turn = self._turn_of_next(db, moved) if priority == NEXT else self._turn(db, moved)
            place = {"priority": priority, "turn": turn, "generation": job.generation + 1}  # the engine may have had it
            rest = {"rested_s": round(rested_s, 3)} if rested_s else {}
            hurried = db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job_id,
                    job_table.c.generation == job.generation,
                    job_table.c.attempt == job.attempt,
                    job_table.c.state.in_(BEGINNABLE),
                )
                .values(**place, **rest)
            ).rowcount
            if not hurried:
                return "it has just begun"
            self._note(db, job.series_uid, now, "priority", f"{task_of(job)}: {name}, asked for by {by}")
            return None

    def progress(self, job: Job, fraction: float, text: str) -> None:
        with self._begin() as db:
            db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job.id,
                    job_table.c.generation == job.generation,
                    job_table.c.state == "running",
                )
                .values(progress=fraction, progress_text=text)
            )

    def retry_later(
        self,
        job: Job,
        reason: str,
        not_before: datetime,
        receipts: Sequence[Receipt],
        now: datetime,
        *,
        counts: bool = True,
        error: str | None = None,
    ) -> bool:
        """This attempt failed in a way that waiting may cure; the next attempt is a row, not a sleeping thread.

        counts: False, and it is none of the attempts that a job may make. error: the class of what it failed by; None:
        it waits for something, and has not failed
        """
        step = {"attempt": job.attempt + 1} if counts else {"generation": job.generation + 1}
        known = {"reason": reason, "error": error, "crashes": 0, "not_before": not_before}
        with self._begin() as db:
            moved = self._move(db, job, "waiting", **known, **step)
            if moved:
                self._add_receipts(db, job, receipts)
                self._note(db, job.series_uid, now, "retry", f"{task_of(job)}: {reason}")
                self._wake_for_report(db, job)
            else:
                self._late_outcome(db, job, receipts)
            return moved

    def finish(
        self,
        job: Job,
        state: str,
        reason: str,
        now: datetime,
        *,
        results: Sequence[Result] = (),
        receipts: Sequence[Receipt] = (),
        follow_up: Sequence[Job] = (),
        arrivals: Sequence[ArrivalProof] = (),
        warnings: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        edition: Edition | None = None,
        places: Mapping[str, Any] | None = None,
        counted: Mapping[str, Counted] | None = None,
        error: str | None = None,
    ) -> bool:
        """End a job: its results, receipts and the jobs that follow, in one transaction. False: not ours any more.

        counted: what came of its series, see outcomes.py. error: the class of that which ended it.

        Raises EditionChanged, and writes nothing, when `edition` does not replace what stands at the destinations now,
        or a further destination holds an earlier one and would not get it.
        """
        with self._begin() as db:
            ended = self._move(
                db,
                job,
                state,
                reason=reason,
                error=error,
                crashes=0,
                finished_at=now,
                progress=1.0 if state == "done" else job_table.c.progress,
                warnings=list(warnings),
                facts=as_json(facts or {}),
            )
            if not ended:
                self._late_outcome(db, job, receipts)
                return False
            if edition is not None:
                self._add_edition(db, job, edition, now, {each.destination for each in follow_up})
                if counted and job.counts:
                    self._tally(db, job, edition, counted, now)
            if state == "done" and job.kind == "infer" and job.counts and facts is not None:
                self._note_found(db, job, facts)
            if places is not None:
                self._add_places(db, job, places)
            for position, result in enumerate(results):
                db.execute(
                    self._insert(result_table)
                    .values(
                        job=job.id,
                        sop_instance_uid=result.sop_instance_uid,
                        sop_class_uid=result.sop_class_uid,
                        path=self._place(result.path),
                        position=position,
                    )
                    .on_conflict_do_nothing()
                )
            self._add_receipts(db, job, receipts)
            for next_job in in_order_of_queues(follow_up):
                self._add_job(db, next_job)
            for arrival in arrivals:
                db.execute(
                    sa.insert(arrival_table).values(
                        job=job.id,
                        destination=job.destination,
                        sop_instance_uid=arrival.sop_instance_uid,
                        arrived=arrival.arrived,
                        how=arrival.how,
                        text=arrival.text,
                        at=arrival.at,
                    )
                )
            self._note(db, job.series_uid, now, state, f"{task_of(job)}: {reason}")
            self._wake_for_report(db, job)
            if state == "done" and job.sender != HEARTBEAT_AE:
                self._time(db, job, now, facts or {})
                if job.kind in ("send", "confirm") and not follow_up and all(each.arrived for each in arrivals):
                    self._have_arrived(db, job, now)
            return True

    def _add_places(self, db: sa.Connection, job: Job, places: Mapping[str, Any]) -> None:
        row = self._insert(place_table).values(job=job.id, said=as_json(places))
        again = {"said": as_json(places)}
        db.execute(row.on_conflict_do_update(index_elements=[place_table.c.job], set_=again))

    def _time(self, db: sa.Connection, job: Job, now: datetime, facts: Mapping[str, Any]) -> None:
        """How long a job took that has ended well."""
        if job.kind == "infer":
            for what, fact in (("infer", "seconds"), ("encode", "encode_seconds")):
                if isinstance(facts.get(fact), int | float):
                    self._took(db, what, job.pipeline, facts[fact])
        elif job.kind == "send":
            began = db.scalar(sa.select(job_table.c.started_at).where(job_table.c.id == job.id))
            if began is not None:
                self._took(db, "send", job.destination or "", (now - began).total_seconds())

    def _have_arrived(self, db: sa.Connection, job: Job, now: datetime) -> None:
        """The results of a series are where they should be: of all destinations the last one counts, and not what a
        person had run again."""
        if not job.sender:
            return
        of_it = series_table.c.series_uid == job.series_uid, series_table.c.revision == job.revision
        last = db.scalar(sa.select(series_table.c.last_arrival).where(*of_it))
        if last is not None:
            mine = job_table.c.series_uid == job.series_uid, job_table.c.revision == job.revision
            infer = job_table.c.kind == "infer", job_table.c.route == job.route
            rested_s = db.scalar(sa.select(sa.func.max(job_table.c.rested_s)).where(*mine, *infer)) or 0.0
            turnaround_s = max(0.0, (now - last).total_seconds() - rested_s)
            db.execute(sa.update(series_table).where(*of_it).values(turnaround_s=round(turnaround_s, 3)))
            self._took(db, "turnaround", job.pipeline, turnaround_s)

    def results(self, job_id: str) -> list[Result]:
        with self._reading() as db:
            rows = db.execute(
                sa.select(result_table).where(result_table.c.job == job_id).order_by(result_table.c.position)
            ).mappings()
            return [Result(row["sop_instance_uid"], row["sop_class_uid"], self._path(row["path"])) for row in rows]

    def take_over(self, job: Job, reason: str, now: datetime) -> Job | None:
        """Give an unfinished job to a new generation: whatever the old one still writes is refused."""
        with self._begin() as db:
            if not self._move(db, job, "queued", generation=job.generation + 1, reason=reason):
                return None
            self._note(db, job.series_uid, now, "taken over", f"{task_of(job)}: {reason}")
        return replace(job, generation=job.generation + 1, state="queued")

    def put_back(self, job: Job, reason: str, now: datetime) -> Job | None:
        """A new generation, as in `take_over`; but nobody died: the attempt counts neither as one nor as a crash."""
        crashes = _may_have_sent(job.kind)
        with self._begin() as db:
            if not self._move(db, job, "queued", generation=job.generation + 1, crashes=crashes, reason=reason):
                return None
            self._note(db, job.series_uid, now, "put back", f"{task_of(job)}: {reason}")
        return replace(job, generation=job.generation + 1, crashes=crashes, state="queued")

    def give_up(self, job: Job, reason: str, now: datetime) -> bool:
        """End a job that must not run again, whichever worker holds it."""
        with self._begin() as db:
            ended = db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job.id,
                    job_table.c.generation == job.generation,
                    job_table.c.state.in_(OPEN_JOB_STATES),
                )
                .values(state="failed", reason=reason, error="GivenUp", finished_at=now)
            ).rowcount
            if ended:
                self._note(db, job.series_uid, now, "failed", f"{task_of(job)}: {reason}")
            return bool(ended)

    def run_again(self, job_id: str, now: datetime) -> bool:
        """An operator's "retry now": an open, failed or refused job starts afresh, whoever holds it.

        False: there is none, it has ended well, newer jobs are in its place, or the images of its series were deleted.
        """
        with self._begin() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            if row is None or self._deleted(db, row["series_uid"], for_update=True):
                return False
            if not (row["state"] in OPEN_JOB_STATES or self._may_be_reopened(db, row)):
                return False
            job = job_of(row)
            again = db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job_id,
                    job_table.c.generation == job.generation,
                    job_table.c.state == job.state,
                )
                .values(
                    state="queued",
                    generation=job.generation + 1,
                    attempt=1,
                    crashes=_may_have_sent(job.kind) if job.crashes else 0,
                    not_before=None,
                    finished_at=None,
                    reason="asked to run again",
                    error=None,
                )
            ).rowcount
            if not again:
                return False
            db.execute(sa.update(commitment_table).where(commitment_table.c.job == job_id).values(again=True))
            self._note(db, job.series_uid, now, "retry now", f"{task_of(job)}: asked to run again")
            return True

    def _deleted(self, db: sa.Connection, series_uid: str, *, for_update: bool = False) -> bool:
        """Whether the images and results of a series have been deleted. for_update: nor are they until this ends; asked
        before a row of a job is changed."""
        of_it = sa.select(series_table.c.state).where(series_table.c.series_uid == series_uid)
        return db.scalar(of_it.with_for_update() if for_update else of_it) == "deleted"

    def _may_be_reopened(self, db: sa.Connection, row: Any) -> bool:
        """Whether a job that has ended without a result may begin again."""
        if row["state"] not in ("failed", "refused"):
            return False
        revision = db.scalar(sa.select(series_table.c.revision).where(series_table.c.series_uid == row["series_uid"]))
        if revision not in (None, row["revision"]):  # late images have come since: their revision has jobs of its own
            return False
        # what has said why it was refused is left: the series is run again, with jobs of their own
        return db.scalar(sa.select(edition_table.c.job).where(edition_table.c.job == row["id"])) is None

    def dismiss(self, job_id: str, now: datetime) -> bool:
        """An operator's "leave it": a failed job is no trouble any more. False: it has not failed."""
        with self._begin() as db:
            row = db.execute(sa.select(job_table).where(job_table.c.id == job_id)).mappings().first()
            if row is None or row["state"] != "failed":
                return False
            job = job_of(row)
            said = f"dismissed; it had failed: {job.reason}"
            dismissed = db.execute(
                sa.update(job_table)
                .where(
                    job_table.c.id == job_id,
                    job_table.c.generation == job.generation,
                    job_table.c.state == "failed",
                )
                .values(state="superseded", reason=said)
            ).rowcount
            if dismissed:
                self._note(db, job.series_uid, now, "dismissed", f"{task_of(job)}: {said}")
            return bool(dismissed)

    def _late_outcome(self, db: sa.Connection, job: Job, receipts: Sequence[Receipt]) -> None:
        """A send that was superseded while it ran has ended: what the destination stored, it holds."""
        self._add_receipts(db, job, receipts)
        db.execute(
            sa.update(job_table)
            .where(
                job_table.c.id == job.id,
                job_table.c.generation == job.generation,
                job_table.c.attempt == job.attempt,
                job_table.c.state == "superseded",
            )
            .values(crashes=0)
        )

    def _add_receipts(self, db: sa.Connection, job: Job, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            db.execute(
                self._insert(receipt_table)
                .values(
                    job=job.id,
                    sop_instance_uid=receipt.sop_instance_uid,
                    attempt=job.generation * 1000 + job.attempt,
                    stored=receipt.stored,
                    status=receipt.status,
                    text=receipt.text,
                    at=receipt.at,
                    sop_class_uid=receipt.sop_class_uid,
                )
                .on_conflict_do_nothing()
            )

    def stored_uids(self, job_id: str) -> frozenset[str]:
        """The SOP Instance UIDs that the destination of a send job says it has stored."""
        with self._reading() as db:
            return frozenset(db.scalars(self._stored(job_id)))

    def _stored(self, job_id: str) -> sa.Select[tuple[str]]:
        return sa.select(receipt_table.c.sop_instance_uid).where(receipt_table.c.job == job_id, receipt_table.c.stored)

    def _wake_for_report(self, db: sa.Connection, job: Job) -> None:
        """A confirm job that a report has come for runs again, unless it runs now and looks for itself; or unless
        the results are not here any more."""
        if self._deleted(db, job.series_uid):
            return
        news = sa.exists().where(
            commitment_table.c.job == job.id,
            commitment_table.c.reported_at.is_not(None),
            commitment_table.c.heeded.is_(False),
        )
        db.execute(
            sa.update(job_table)
            .where(job_table.c.id == job.id, job_table.c.kind == "confirm", job_table.c.state != "running", news)
            .values(
                state="queued",
                generation=job_table.c.generation + 1,
                attempt=1,
                crashes=0,
                not_before=None,
                finished_at=None,
                reason="a storage commitment report has come",
            )
        )


def _may_have_sent(kind: str) -> int:
    """The crashes of a job that lost an attempt without its worker's death: a send's results may have arrived."""
    return 1 if kind == "send" else 0


def task_of(job: Job) -> str:
    return f"{job.kind} {job.pipeline}" + (f" to {job.destination}" if job.destination else "")


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what JSON can say; numbers from numpy become plain numbers."""
    return json.loads(
        json.dumps(dict(values), default=lambda value: value.item() if hasattr(value, "item") else str(value))
    )
