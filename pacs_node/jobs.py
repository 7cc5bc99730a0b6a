"""The durable work: DBOS runs what the ledger's job rows say. The only file that talks to DBOS.

The job row is the truth; a workflow carries a job id and two numbers. A workflow's id is `job#generation.attempt`,
so submitting twice is one workflow. What runs in this process is known here, whatever the engine says of it. A sweeper
submits the most urgent rows whose time has come, and takes over whatever no living worker runs. Backoff is a row with
a time in it, never a sleeping thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetEnqueueOptions, SetWorkflowID

from pacs_node.errors import LedgerUnavailable
from pacs_node.flow import Flow
from pacs_node.ledger import Ledger
from pacs_node.ledger.engine import engine_for_jobs
from pacs_node.loop import Loop
from pacs_node.records import NEXT, Job, Pause

log = structlog.get_logger()

WORKFLOW = "pacs-node.job"  # constant, like the version below: an upgrade must not strand the jobs in flight
APPLICATION_VERSION = "1"
PARTITIONED = ("send", "confirm", "report")  # kinds of jobs that talk to a destination
WINDOW = 4  # sends that the engine is given for each slot: they are short, and no slot should idle between two
# For the engine, lower first: their order is the ledger's, but what a person wants next passes what was given to it
# before. Always set: an unset one sorts first.
FIRST, PRIORITY = 1, 2
NOWHERE = ("", None)  # no workflow, no worker
BEGIN_WITHIN_S = 10.0  # what the engine has given to this worker begins at once; after this it never will
DOZE_S = 5.0  # how often the engine looks for work while there is none
HAND_BACK_S = (
    5.0  # before a worker whose devices are paused gives back an inference, so that it does not get it at once
)
SLACK_S = 60.0  # between the moment at which a wait was reckoned, or looked at, and the one at which it was written
FINISHED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")  # states of a workflow
FINISHED_DAYS = 1.0  # that the engine remembers what has ended: whatever it says of it counts for nothing
FORGET_EVERY_S = 3600.0
MOST_FORGOTTEN = 500  # rows in one transaction
MOST_CORRECTED = 64  # rows in one sweep whose time the wall clock has spoilt


class Pace:
    """When the engine's pollers look again: at once for what was submitted here, soon while there is work, else seldom.

    Each of their looks is a transaction, and they wait for nothing but the event that ends them: so it waits for them.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._submitted, self._idle, self._over = 0, False, False
        self._seen = threading.local()  # by each poller: how many had been submitted when it last looked

    def set_for(self, stopped: threading.Event) -> None:
        """For whoever waits for this event between two looks."""
        stopped.wait = partial(self._wait, stopped.wait)  # type: ignore[method-assign]

    def submitted(self) -> None:
        with self._change:
            self._submitted += 1
            self._change.notify_all()

    def idle(self, idle: bool) -> None:
        with self._change:
            self._idle = idle

    def end(self) -> None:
        """The event itself is waited for from now on."""
        with self._change:
            self._over = True
            self._change.notify_all()

    def _wait(self, stopped: Callable[[float | None], bool], timeout: float | None = None) -> bool:
        if timeout is None or timeout > DOZE_S:
            return stopped(timeout)
        with self._change:
            wait_s = DOZE_S if self._idle else timeout
            self._change.wait_for(lambda: self._over or self._submitted != getattr(self._seen, "submitted", 0), wait_s)
            self._seen.submitted, over = self._submitted, self._over
        return stopped(timeout if over else 0)


class Engine:
    """Runs jobs in this process until told to stop. One per process (DBOS is a singleton)."""

    def __init__(
        self,
        ledger: Ledger,
        flow: Flow,
        *,
        executor: str,
        infer_slots: int,
        send_slots: int,
        sweep_s: float,
        lease_s: float,
        poison_limit: int,
        poll_s: float,
        now: Callable[[], datetime],
        overtaken_s: float = 3600.0,
        monotonic: Callable[[], float] = time.monotonic,
        devices_left: Callable[[Sequence[Pause]], int] | None = None,
        devices: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    ) -> None:
        """devices_left: how many inferences may run here at a time while this is paused. devices: for other machines to
        see."""
        self.devices = devices
        self.devices_left = devices_left or (lambda pauses: infer_slots)
        self.ledger, self.flow, self.executor, self.now, self.monotonic = ledger, flow, executor, now, monotonic
        self.infer_slots, self.send_slots = infer_slots, send_slots
        self.lease_s, self.poll_s, self.overtaken_s = lease_s, poll_s, overtaken_s
        self.sweeper = Loop("sweeper", self.sweep, sweep_s)
        self.forgetter = Loop("finished workflows", self.forget_finished, FORGET_EVERY_S)
        self._lock = threading.Lock()
        self._here: set[str] = set()  # workflows whose job this process runs now
        self._due: dict[str, float] = {}  # job -> when, by a clock that nobody sets, its next attempt is due
        self._unbegun: dict[str, float] = {}  # workflow that is ours and has not begun -> since when
        self._leases: dict[str, tuple[datetime, float]] = {}  # worker -> its lease, and since when it is this one
        self._heard = monotonic()  # when the ledger last answered
        self._absence = (0.0, -math.inf)  # for how long it had not, or we stood still; and when that ended
        settings: DBOSConfig = {
            "name": "pacs-node",
            "system_database_url": ledger.url,
            "system_database_engine": engine_for_jobs(ledger.url),
            "application_version": APPLICATION_VERSION,
            "executor_id": executor,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "ERROR",
            "use_listen_notify": not ledger.embedded,
        }
        self._dbos = DBOS(config=settings)
        _through_our_log(logging.getLogger("dbos"))
        self._pace = Pace()

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=poison_limit)
        def run_job(job_id: str, generation: int, attempt: int) -> None:
            DBOS.run_step({"name": "attempt"}, self._attempt, job_id, generation, attempt)

        self._run_job = run_job

    def start(self) -> None:
        self.ledger.renew_lease(self.executor, self.lease_s, self.devices())
        slots = self.infer_slots
        self.infer_slots = self.devices_left(self.ledger.pauses(self.now()))
        for job in self.ledger.running_jobs():
            if job.executor == self.executor:
                self.ledger.take_over(job, "the node ended while it ran", self.now())  # the sweeper submits it
        DBOS.launch()
        stops = [*self._dbos.background_thread_stop_events]
        if self.ledger.embedded:
            # What looks for delays and timeouts, of which we ask for none. On a server it holds a lock meanwhile, which
            # must not be idle for 5 s.
            stops.append(self._dbos._background_jobs_stop_event)  # noqa: SLF001 - it has no other name
        for stopped in stops:
            self._pace.set_for(stopped)
        DBOS.register_queue("infer", worker_concurrency=slots, polling_interval_sec=self.poll_s)
        # One partition per destination: a dead one fills its own slots, never those of another.
        for kind in PARTITIONED:
            DBOS.register_queue(kind, partition_worker_concurrency=self.send_slots, polling_interval_sec=self.poll_s)
        self.sweeper.start()
        self.forgetter.start()

    def stop(self, drain_s: float) -> None:
        """Take no new job, give the running ones `drain_s` to end; what is left is taken up at the next start."""
        self.sweeper.stop()
        self._pace.end()
        self.forgetter.stop()
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=max(1, int(drain_s)))
        with suppress(LedgerUnavailable):  # then it runs out
            self.ledger.give_up_lease(self.executor)

    def wake(self) -> None:
        """There is new work: sweep now instead of at the next tick."""
        self.sweeper.wake()

    def forget_finished(self) -> float | None:
        """The engine's rows of what ended long ago: the ledger has the story. 0.0: there are more."""
        before = (self.now() - timedelta(days=FINISHED_DAYS)).isoformat()
        found = DBOS.list_workflows(
            status=list(FINISHED), end_time=before, limit=MOST_FORGOTTEN, load_input=False, load_output=False
        )
        if found:
            DBOS.delete_workflows([each.workflow_id for each in found])
        return 0.0 if len(found) == MOST_FORGOTTEN else None

    def _attempt(self, job_id: str, generation: int, attempt: int) -> None:
        """One attempt of one job, known to run here for as long as it does."""
        workflow = _workflow_id(job_id, generation, attempt)
        with self._lock:
            self._here.add(workflow)
        delay_s: float | None = None
        try:
            if self._may_begin(job_id, generation, attempt):
                delay_s = self.flow.run(job_id, generation, attempt)
        except LedgerUnavailable as error:  # the row says "running", and nobody runs it: the sweeper sees to that
            log.warning("outcome not written down", job=job_id, error=str(error))
        finally:
            with self._lock:
                self._here.discard(workflow)
        if delay_s is not None:
            with self._lock:
                self._due[job_id] = self.monotonic() + delay_s
        self.wake()  # a finished inference has left send jobs behind; and there is room for the next one

    def _may_begin(self, job_id: str, generation: int, attempt: int) -> bool:
        """Unless it is an inference and all devices are paused: what was handed out goes back into its place."""
        if self.infer_slots:
            return True
        job = self.ledger.job(job_id)
        if job is None or job.kind != "infer":
            return True
        if (job.generation, job.attempt) == (generation, attempt):
            if not self.ledger.embedded:
                time.sleep(HAND_BACK_S)
            self.ledger.let_go(job)
        return False

    # ---- the sweeper

    def sweep(self) -> float | None:
        """Make the engine agree with the ledger; the seconds until a job is due, if one is. Says "I am alive", too."""
        self.ledger.renew_lease(self.executor, self.lease_s, self.devices())
        self._back()
        living = self._living()
        self._correct_times()
        self.infer_slots = self.devices_left(self.ledger.pauses(self.now()))
        running = self.ledger.running_jobs()
        failures = self._each(running, lambda job: self._see_to_running(job, living))
        jobs = self.ledger.due_jobs(self.now(), self._windows(len(living)), self.overtaken_s, self.flow.closed())
        states = self._states(jobs)
        self._pace.idle(not running and not jobs)
        jobs = self._no_more_than_can_begin(jobs, states, len(living))
        before, self._unbegun = self._unbegun, {}
        failures += self._each(jobs, lambda job: self._see_to_due(job, states.get(_of(job), NOWHERE), living, before))
        if failures:
            raise failures[0]
        with self._lock:
            return min(self._due.values()) - self.monotonic() if self._due else None

    def _each(self, jobs: Iterable[Job], see_to: Callable[[Job], None]) -> list[Exception]:
        """One job that cannot be seen to holds up no other; a ledger that does not answer holds up all."""
        failures: list[Exception] = []
        for job in jobs:
            try:
                see_to(job)
            except LedgerUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - the edge of one job: the loop tells of it once all are seen to
                failures.append(error)
        return failures

    def _windows(self, workers: int) -> dict[str, int]:
        """How many jobs of each queue are looked at in one sweep. All others wait in the ledger, in their order."""
        return {
            "infer": 2 * self.infer_slots * workers,
            **dict.fromkeys(PARTITIONED, WINDOW * self.send_slots * workers),
        }

    def _no_more_than_can_begin(
        self, jobs: Iterable[Job], states: dict[str, tuple[str, str | None]], workers: int
    ) -> list[Job]:
        """Without the inferences that no slot is free for: these are long, and a more urgent one may come meanwhile."""
        free, kept = self.infer_slots * workers - self.ledger.number_running("infer"), list[Job]()
        for job in jobs:
            state, executor = states.get(_of(job), NOWHERE)
            if job.kind == "infer" and (state in (NOWHERE[0], "ENQUEUED") or executor == self.executor):
                if state == NOWHERE[0] and free <= 0:
                    continue
                free -= 1
            kept.append(job)
        return kept

    def _states(self, jobs: Iterable[Job]) -> dict[str, tuple[str, str | None]]:
        """Workflow -> what the engine says of it, and which worker it gave it to."""
        ids = [_of(job) for job in jobs]
        if not ids:
            return {}
        found = DBOS.list_workflows(workflow_ids=ids, load_input=False, load_output=False)
        return {each.workflow_id: (each.status, each.executor_id) for each in found}

    def _living(self) -> set[str]:
        """Workers whose lease has not run out by the database's clock, and goes on by one that nobody sets.

        After an absence of the database, or of ours, all that lived then get as long as a lease to say that they do.
        """
        now = self.monotonic()
        absent_s, until = self._absence[0], self._absence[1] + self.lease_s
        before, self._leases = self._leases, {}
        for executor, expires_at in self.ledger.living(absent_s + self.lease_s if now < until else 0.0).items():
            known = before.get(executor)
            self._leases[executor] = known if known is not None and known[0] == expires_at else (expires_at, now)
        moving = {executor for executor, (_, since) in self._leases.items() if now - since <= 2 * self.lease_s}
        return moving | {self.executor}

    def _back(self) -> None:
        """The ledger answers. When did it last?"""
        now = self.monotonic()
        if now - self._heard > self.lease_s:
            self._absence = now - self._heard, now
            self._leases.clear()
        self._heard = now

    def _correct_times(self) -> None:
        """A wait is over when it has lasted as long as it should: the wall clock may have been set back meanwhile."""
        for early in self.ledger.end_impossible_waits(self.now(), self.flow.longest_wait_s + SLACK_S):
            log.warning("clock was set back", job=early.id, due=str(early.not_before))
        monotonic = self.monotonic()
        with self._lock:
            over = [job_id for job_id, due in self._due.items() if due <= monotonic][:MOST_CORRECTED]
        for job_id in over:
            job = self.ledger.job(job_id)
            if job is not None:
                self.ledger.due_now(job, self.now())
            with self._lock:
                self._due.pop(job_id, None)

    def _see_to_running(self, job: Job, living: set[str]) -> None:
        """A row says that this job runs. Does it?"""
        if job.executor == self.executor:
            reason = "its last run ended, and nothing could be written down about that"
            self._submit(self._unless_here(job, lambda: self.ledger.put_back(job, reason, self.now())))
        elif job.executor not in living:
            self._take_over(job, f"worker {job.executor} has not been heard of for {self.lease_s:g} s")

    def _see_to_due(self, job: Job, said: tuple[str, str | None], living: set[str], before: dict[str, float]) -> None:
        """A job may begin now. What has the engine said of it, and is that so?"""
        state, executor = said
        if state == NOWHERE[0]:
            self._submit(job)
        elif state == "ENQUEUED":
            pass  # its turn will come
        elif state == "PENDING" and executor == self.executor:  # it is about to begin here, or never will
            since = self._unbegun[_of(job)] = before.get(_of(job), self.monotonic())
            if self.monotonic() - since > BEGIN_WITHIN_S:
                self._take_over(job, "it was given to this worker, and has not begun")
        elif state == "PENDING" and executor in living:
            pass  # that worker sees to it
        elif state == "PENDING":
            self._take_over(job, f"worker {executor} was given it and has not been heard of for {self.lease_s:g} s")
        elif state == "ERROR":  # the ledger could not be written to: nobody died, so it is no crash
            self._submit(
                self.ledger.put_back(job, "the ledger could not be written when its last run ended", self.now())
            )
        elif state == "DELAYED":  # by an earlier version, until a time of the wall clock
            self._take_over(job, "its time has come")
        else:
            self._take_over(job, "its last run ended without a result")

    def _take_over(self, job: Job, reason: str) -> None:
        mine = self._unless_here(job, lambda: self.ledger.take_over(job, reason, self.now()))
        if mine is not None:
            log.warning("job taken over", job=job.id, reason=reason)
            self._submit(mine)

    def _unless_here(self, job: Job, change: Callable[[], Job | None]) -> Job | None:
        """Change the job's generation, unless this process runs it: none can begin while that is looked up."""
        with self._lock:
            return None if _of(job) in self._here else change()

    def _submit(self, job: Job | None) -> None:
        if job is None or job.rests(self.flow.closed()):
            return
        options: dict[str, Any] = {"priority": FIRST if job.priority == NEXT else PRIORITY}
        if job.kind in PARTITIONED:
            options["queue_partition_key"] = job.destination
        with SetWorkflowID(_of(job)), SetEnqueueOptions(**options):
            DBOS.enqueue_workflow(job.kind, self._run_job, job.id, job.generation, job.attempt)
        self._pace.submitted()


def _through_our_log(logger: logging.Logger) -> None:
    """DBOS prints errors with a handler of its own: tracebacks of many lines, and every value that they quote."""
    logger.setLevel(logging.ERROR)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True


def _of(job: Job) -> str:
    return _workflow_id(job.id, job.generation, job.attempt)


def _workflow_id(job_id: str, generation: int, attempt: int) -> str:
    return f"{job_id}#{generation}.{attempt}"
