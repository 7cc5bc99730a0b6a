"""What the pages ask of the node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pacs_node.records import EVERY, Wanted


class Facts(Protocol):
    """What the pages show. Plain values only: what JSON can say, times as ISO 8601 text."""

    def health(self) -> dict[str, Any]:
        """{"status": "ok" | "degraded" | "trouble", ...}; "reasons" (sentences) and "attention" (jobs) are shown."""

    def ready(self) -> dict[str, Any]:
        """{"ready": bool, "reasons": why not}"""

    def system(self) -> dict[str, Any]:
        """What the node runs on, and how it is: see system.py."""

    def routes(self) -> list[str]:
        """The names of the settings' routes."""

    def series_list(self, limit: int, wanted: Wanted = EVERY) -> list[dict[str, Any]]:
        """The first of the series that are wanted, in their order."""

    def stamp(self) -> str:
        """Another text whenever a page would show something else."""

    def series_count(self, wanted: Wanted) -> tuple[int, int]:
        """How many are wanted, and how many there are."""

    def choices(self) -> dict[str, list[str]]:
        """What a list can be narrowed to: "modality", "sender", "pipeline" and "kind" of findings."""

    def series_uids(self, wanted: Wanted) -> list[str]:
        """Of the series that are wanted, as many as one button is for, in their order."""

    def bulk(self, do: str, series_uids: Sequence[str], by: str) -> dict[str, str | None]:
        """Retry, run again or delete these series: series UID -> None, or why not. by: on whose behalf."""

    def series(self, series_uid: str) -> dict[str, Any] | None:
        """Everything about one series, or None."""

    def sought(self, said: str) -> str:
        """What `Wanted.patient` is for a name, Patient ID or accession number. Raises ValueError with words that do not
        repeat it."""

    def patient(self, series_uid: str) -> dict[str, str] | None:
        """Who the patient of a series is; None: no such series, or its images are not at hand."""

    def destinations(self) -> list[dict[str, Any]]:
        """Where results go, and what each destination answered to each SOP class and transfer syntax."""

    def queue(self, limit: int) -> list[dict[str, Any]]:
        """Each queue with what runs, what is next in its order, and what is delayed; why each is there."""

    def pauses(self) -> list[dict[str, Any]]:
        """What a person has paused: "kind", "name", "what", "since", "who", "reason", "until", "words"."""

    def can_pause(self) -> dict[str, list[str]]:
        """What can be paused: kind -> names."""

    def pause(self, kind: str, name: str, by: str, reason: str = "", hours: float | None = None) -> str | None:
        """Jobs of it begin no more, for so long or until somebody resumes it. None, or why not."""

    def resume(self, kind: str, name: str, by: str) -> bool:
        """False: it is not paused."""

    def hurry(self, job_id: str, priority: int, by: str) -> str | None:
        """A job that waits is next, or STAT. None, or why not."""

    def inference(self) -> dict[str, Any]:
        """{"devices": what runs on each and what ails it, "forms": in which form each network is served, and why}"""

    def refusals(self, limit: int, kind: str = "", sender: str = "") -> dict[str, Any]:
        """What was refused or kept aside at receipt, the newest first, how often there was one of each kind, and from
        whom: {"counts": {kind: {"number", "latest", "means"}}, "senders": [...], "refusals": [...]}"""

    def audit(self, limit: int, before: str, wanted: Mapping[str, str]) -> dict[str, Any]:
        """The audit trail, the newest first: {"kinds": names of events, "events": [...]}; `before` a time, and of
        `wanted`: event (its name), who (a part of a name or address), study (its UID)."""

    def what_is(self, job_id: str) -> str:
        """A job in words, for the audit trail; "": there is none."""

    def retry(self, job_id: str) -> str | None:
        """Run this job afresh, whoever holds it. None, or why not: there is none, it has ended well, a newer one is
        there, or its images are gone."""

    def dismiss(self, job_id: str) -> bool:
        """Count this failed job as dealt with. False: there is no such job, or it has not failed."""

    def rerun(self, series_uid: str) -> str | None:
        """Run this series again. None, or why not."""

    def rerun_many(self, route: str | None, since: datetime | None) -> dict[str, str | None]:
        """Run again what came since then, or what this route has taken: series UID -> None, or why not."""

    def shadows(self) -> list[dict[str, Any]]:
        """Every shadow route: "states" of its inferences, and "beside": live routes that took the same series."""

    def compared(
        self, route: str, live: str, since: datetime | None = None, before: datetime | None = None
    ) -> dict[str, Any]:
        """A shadow route and a live one on the series of a time: agreement, and "each" series with what differs."""

    def rejected(self, job_id: str) -> dict[str, Path]:
        """The objects of a job that were held back: name -> file."""

    def findings(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        """What the results of a series say: {"state": "ready" | "preparing" | "refused" | "none", "why", "results",
        ...}. None: there is no such series."""

    def volume(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        """{"state", "why", ...} of a series as one volume. None: there is no such series."""

    def earlier(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        """As `volume`, of the study that its results were compared with, and the way to it from this one."""

    def view_file(self, series_uid: str, name: str) -> Path | None:
        """A file that was made for who looks at a series."""

    def results_of(self, series_uid: str) -> list[dict[str, str]]:
        """The results in force of a series: "job", "pipeline", "sop_class_uid", "sop_instance_uid"."""

    def result_file(self, job_id: str, name: str) -> bytes | None:
        """A result of a job, as it was sent."""

    def viewer_address(self, study_uid: str, series_uid: str) -> str | None:
        """Where the hospital's own viewer shows this series; None: the settings do not say."""

    def note_feedback(
        self,
        series_uid: str,
        reader: str,
        job: str,
        kind: str,
        finding: int | None,
        place: tuple[int, float, float] | None,
    ) -> str | None:
        """What a reader says of a finding, or where one was missed: (image from 0, column, row). None, or why it is not
        noted."""

    def feedback_of(self, series_uid: str) -> list[dict[str, Any]]:
        """What has been said of the findings of a series, the oldest first."""

    def feedback(self) -> Iterator[dict[str, Any]]:
        """All that has been said of findings, the oldest first."""

    def pipeline(self, name: str, sender: str | None = None) -> dict[str, Any] | None:
        """What a pipeline did, week by week, also for one AE title: see pipeline_facts.py. None: there is none of this
        name."""

    def card(self, name: str) -> str | None:
        """The model card of a pipeline, Markdown; None: there is none."""

    def feedback_counts(self) -> list[dict[str, Any]]:
        """[{"pipeline", "version", "counts": {kind: number}, "dice": mean of the edited, or None}]"""
