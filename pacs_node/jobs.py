"""The durable work: DBOS runs what the ledger's job rows say. The only file that talks to DBOS.

The job row is the truth; a workflow carries a job id and two numbers. A workflow's id is `job#generation.attempt`,
so submitting twice is one workflow. A sweeper submits every open row whose workflow is missing or has ended, and
takes over the jobs of workers whose lease ran out. Backoff is a row with a time in it, never a sleeping thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetEnqueueOptions, SetWorkflowID

from pacs_node.flow import Flow
from pacs_node.ledger import Ledger
from pacs_node.ledger.engine import engine_for_jobs
from pacs_node.loop import Loop
from pacs_node.records import Job

log = structlog.get_logger()

WORKFLOW = "pacs-node.job"  # constant, like the version below: an upgrade must not strand the jobs in flight
APPLICATION_VERSION = "1"
ENDED_WITHOUT_RESULT = {"CANCELLED", "SUCCESS"}  # while the row is still open: run it again
RAISED = "ERROR"
PARTITIONED = ("send", "confirm", "report")  # kinds of jobs that talk to a destination
POISONED = "MAX_RECOVERY_ATTEMPTS_EXCEEDED"


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
    ) -> None:
        self.ledger, self.flow, self.executor, self.now = ledger, flow, executor, now
        self.infer_slots, self.send_slots = infer_slots, send_slots
        self.lease_s, self.poll_s = lease_s, poll_s
        self.sweeper = Loop("sweeper", self.sweep, sweep_s)
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
        logging.getLogger("dbos").setLevel(logging.ERROR)
        DBOS(config=settings)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=poison_limit)
        def run_job(job_id: str, generation: int, attempt: int) -> None:
            delay_s = DBOS.run_step({"name": "attempt"}, flow.run, job_id, generation, attempt)
            if delay_s is not None:
                self._submit(job_id, generation, attempt + 1, delay_s)  # in the body: DBOS forbids it in a step
            self.wake()  # a finished inference has left send jobs behind

        self._run_job = run_job

    def start(self) -> None:
        self.ledger.renew_lease(self.executor, self.lease_s)
        DBOS.launch()
        DBOS.register_queue("infer", worker_concurrency=self.infer_slots, polling_interval_sec=self.poll_s)
        # One partition per destination: a dead one fills its own slots, never those of another.
        for kind in PARTITIONED:
            DBOS.register_queue(kind, partition_worker_concurrency=self.send_slots, polling_interval_sec=self.poll_s)
        self.sweeper.start()

    def stop(self, drain_s: float) -> None:
        """Take no new job, give the running ones `drain_s` to end; what is left is taken up at the next start."""
        self.sweeper.stop()
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=max(1, int(drain_s)))
        self.ledger.give_up_lease(self.executor)

    def wake(self) -> None:
        """There is new work: sweep now instead of at the next tick."""
        self.sweeper.wake()

    def sweep(self) -> None:
        """Make the engine agree with the ledger: every open job has a live workflow. Says "I am alive", too."""
        self.ledger.renew_lease(self.executor, self.lease_s)
        jobs = self.ledger.open_jobs()
        if not jobs:
            return
        states = {
            status.workflow_id: status.status
            for status in DBOS.list_workflows(
                workflow_ids=[_workflow_id(job.id, job.generation, job.attempt) for job in jobs],
                load_input=False,
                load_output=False,
            )
        }
        living = self.ledger.living()
        for job in jobs:
            state = states.get(_workflow_id(job.id, job.generation, job.attempt))
            if state is None:
                self._submit_row(job)
            elif state == POISONED:
                self.ledger.give_up(job, "the worker died every time it ran this job", self.now())
            elif state == RAISED:  # the ledger could not be written to: nobody died, so it is no crash
                self.ledger.put_back(job, "the ledger could not be written when its last run ended", self.now())
            elif state in ENDED_WITHOUT_RESULT:
                self._take_over(job, "its last run ended without a result")
            elif job.state == "running" and job.executor not in living:
                self._take_over(job, f"worker {job.executor} has not been heard of for {self.lease_s:g} s")

    def _take_over(self, job: Job, reason: str) -> None:
        mine = self.ledger.take_over(job, reason, self.now())
        if mine is not None:
            log.warning("job taken over", job=job.id, reason=reason)
            self._submit_row(mine)

    def _submit_row(self, job: Job) -> None:
        delay_s = (job.not_before - self.now()).total_seconds() if job.not_before else None
        self._submit(job.id, job.generation, job.attempt, delay_s if delay_s and delay_s > 0 else None, job)

    def _submit(
        self, job_id: str, generation: int, attempt: int, delay_s: float | None, job: Job | None = None
    ) -> None:
        job = job or self.ledger.job(job_id)
        if job is None:
            return
        options: dict[str, Any] = {"priority": job.priority}  # always set: an unset one sorts first
        if delay_s is not None:
            options["delay_seconds"] = delay_s
        if job.kind in PARTITIONED:
            options["queue_partition_key"] = job.destination
        with SetWorkflowID(_workflow_id(job_id, generation, attempt)), SetEnqueueOptions(**options):
            DBOS.enqueue_workflow(job.kind, self._run_job, job_id, generation, attempt)


def _workflow_id(job_id: str, generation: int, attempt: int) -> str:
    return f"{job_id}#{generation}.{attempt}"
