"""What the viewer and the pages of findings are told, and what readers say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from pydicom.filereader import read_file_meta_info

from config import Config
from pacs_node.errors import NodeError, StoreAway, TryAgain
from pacs_node.identity import Identity
from pacs_node.ledger import Ledger
from pacs_node.patients import Patients
from pacs_node.records import FEEDBACK_KINDS, FORMS, RETURNED_KINDS, Feedback
from pacs_node.shadow import WORDS
from pacs_node.stages import WiredStages
from pacs_node.viewing import PARTS, Asked, Made, Viewing

WHOLE = (".nii.gz", ".bin")  # how files end that hold all images of a series
NEEDED_S = 20.0  # that a program waits for the findings, a picture or the answer to what a reader says
Place = tuple[int, float, float]  # image, counted from 0 as results count them; column and row, from 0


class Viewed(Protocol):
    """The node whose series are looked at."""

    config: Config
    ledger: Ledger
    now: Callable[[], datetime]
    stages: WiredStages
    viewing: Viewing
    patients: Patients

    @property
    def identity(self) -> Identity: ...


class ViewerFacts:
    """Of one node. Nothing of it names a patient, or a path of this machine."""

    node: Viewed

    def _asked(self, series_uid: str) -> Asked | None:
        """The images in use, and the results in force; None: there is no such series."""
        ledger = self.node.ledger
        series = ledger.series(series_uid)
        if series is None:
            return None
        jobs = results_in_force(series["jobs"])
        instances = {each.sop_instance_uid: each.stored for each in ledger.instances(series_uid)}
        verdicts = [ledger.verdict(series_uid, route) for route in dict.fromkeys(job["route"] for job in jobs)]
        uses = [verdict.use for verdict in verdicts if verdict is not None and verdict.fit]
        # one route may set aside what another one uses: the most that lies together
        used = [uid for uid in max(uses, key=len, default=()) if uid in instances]
        images = tuple(instances[uid] for uid in used or sorted(instances))
        results = {job["id"]: tuple(each.path for each in ledger.results(job["id"])) for job in jobs}
        return Asked(series_uid, images, results)

    def findings(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        """{"state": "ready" | "preparing" | "refused" | "none", "why", "results": ...}; None: no such series. "none":
        there are no results."""
        asked = self._asked(series_uid)
        if asked is None:
            return None
        if not asked.results:
            return {"state": "none", "why": "there are no results yet", "results": []}
        told = {"results": [], **self._told(asked, "findings", wait_s)}
        shadows = self.node.ledger.shadows_among(asked.results)
        return {**told, "results": [_marked(each, each["job"] in shadows) for each in told["results"]]}

    def volume(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        """As `findings`, of the series as one volume."""
        asked = self._asked(series_uid)
        if asked is None:
            return None
        told = self._told(asked, "volume", wait_s)
        return {**told, "outlines": self._shadows_named(asked, told["outlines"])} if "outlines" in told else told

    def earlier(self, series_uid: str, wait_s: float = 0.0) -> dict[str, Any] | None:
        """As `volume`, of the study that its results were compared with, and the way to it from this one. "none": there
        is none, or its images are not here."""
        known = self.findings(series_uid, wait_s)
        if known is None or known["state"] != "ready":
            return None if known is None else {"state": known["state"], "why": known["why"]}
        compared = _compared_with(known)
        if compared is None:
            return {"state": "none", "why": "its results were compared with no earlier study"}
        asked = self._asked_earlier(series_uid, known)
        if asked is None:
            return {"state": "none", "why": "the images of the earlier study are not kept here, or were deleted since"}
        uids = {"series_uid": asked.series_uid, "study_uid": compared["study_uid"], "days": compared["days"]}
        told = self._told(asked, "earlier", wait_s)
        named = {"findings": self._shadows_named(asked, told["findings"])} if "findings" in told else {}
        return {**uids, **told, **named}

    def _shadows_named(self, asked: Asked, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of a shadow by another name, as in `findings`."""
        shadows = self.node.ledger.shadows_among(asked.results)
        return [{**each, "label": _shadow_name(each["label"])} if each["job"] in shadows else each for each in findings]

    def _asked_earlier(self, series_uid: str, known: dict[str, Any]) -> Asked | None:
        """The series here whose report the findings were compared with. What is made lies with it, and goes with it."""
        compared, present = _compared_with(known), self._asked(series_uid)
        if compared is None or present is None:
            return None
        jobs = self.node.ledger.jobs_named({compared["sop_instance_uid"]}, ())
        earlier = self._asked(jobs[0][1]) if jobs and jobs[0][1] != series_uid else None
        return replace(earlier, beside=present.images) if earlier is not None and earlier.images else None

    def _told(self, asked: Asked, part: str, wait_s: float = 0.0) -> dict[str, Any]:
        made = self._made(asked, part, wait_s)
        told = made.told(part)
        return {**told, "why": self._without_paths(told["why"])}

    def _made(self, asked: Asked, part: str, wait_s: float) -> Made:
        if not asked.images:
            return Made("refused", why="its images are not here any more")
        try:
            return self.node.viewing.wait(asked, part, wait_s)
        except OSError as error:  # gone between two looks, or the disk does not give it
            return Made("refused", why=f"it cannot be read: {error.strerror}")

    def _without_paths(self, value: Any) -> Any:
        raise NotImplementedError  # of NodeFacts

    def view_file(self, series_uid: str, name: str) -> Path | None:
        """A file that was made for who looks at this series: a picture, the volume, the masks."""
        asked = self._asked(series_uid)
        if asked is None or not asked.images or Path(name).name != name:
            return None
        part = "volume" if name.endswith(WHOLE) else "findings"
        if name.startswith("earlier"):
            earlier = self._asked_earlier(series_uid, self.findings(series_uid, NEEDED_S) or {"results": []})
            if earlier is None:
                return None
            asked, part = earlier, "earlier"
        made = self._made(asked, part, NEEDED_S)
        path = None if made.folder is None else made.folder / name
        return path if path is not None and path.is_file() and name not in PARTS.values() else None

    def result_file(self, job_id: str, name: str) -> bytes | None:
        """A result of an inference as it was made, or what was made of it and sent; of a send what it sent. name: its
        SOP Instance UID and .dcm. None of a shadow, and of what is not here."""
        ledger, uid = self.node.ledger, name.removesuffix(".dcm")
        made_by = ledger.made_by(job_id)
        if made_by is None or ledger.shadows_among([made_by]):
            return None
        results = ledger.results(made_by)
        path = next((each.path for each in results if each.sop_instance_uid == uid), None)
        try:
            if path is not None:
                with self.node.stages.here([path]) as [here]:
                    return here.read_bytes()
            if uid in ledger.sent_besides(made_by):
                return _form_of(dict.fromkeys(each.path.parent for each in results), uid)
        except (OSError, NodeError):  # deleted, or the store does not answer
            return None
        return None

    def results_of(self, series_uid: str) -> list[dict[str, str]]:
        """The results in force of a series, and what was made of them and sent: "job", "pipeline", "sop_class_uid",
        "sop_instance_uid"."""
        series = self.node.ledger.series(series_uid)
        jobs = [job for job in results_in_force(series["jobs"] if series else []) if not job["shadow"]]
        return [
            {"job": job["id"], "pipeline": job["pipeline"], "sop_class_uid": of, "sop_instance_uid": uid}
            for job in jobs
            for uid, of in (
                {each["sop_instance_uid"]: each["sop_class_uid"] for each in job["results"]}
                | self.node.ledger.sent_besides(job["id"])
            ).items()
        ]

    def viewer_address(self, study_uid: str, series_uid: str) -> str | None:
        """Of the hospital's own viewer; None: the settings name none."""
        url = self.node.config.web.viewer_url
        return url.format(study=quote(study_uid, safe=""), series=quote(series_uid, safe="")) if url else None

    # ---- who the patient is, for readers

    def sought(self, said: str) -> str:
        """What a list of the series of a patient is asked by. Raises NotSought."""
        return self.node.identity.sought(said)

    def patient(self, series_uid: str) -> dict[str, str] | None:
        """{"name", "patient_id", "issuer", "birth_date", "accession_number"}; None: its images are not at hand."""
        try:
            return self.node.patients.shown(series_uid)
        except (StoreAway, TryAgain, OSError):
            return None

    # ---- what readers say

    def note_feedback(
        self, series_uid: str, reader: str, job: str, kind: str, finding: int | None, place: Place | None
    ) -> str | None:
        """None, or why it is not noted."""
        known = self.findings(series_uid, NEEDED_S)
        if known is None:
            return "no such series"
        if known["state"] != "ready":
            return f"its findings cannot be read now: {known['why'] or 'they are being prepared'}"
        result = next((each for each in known["results"] if each["job"] == job), None)
        if result is None or result["why_not"]:
            return "no such result of this series; load the page again"
        label, where = "", None
        if kind == "missed":
            if place is None or not 0 <= place[0] < len(known["images"]):
                return f"say on which image the missed one is: 1 to {len(known['images'])}"
            where = _place(known, place)
            if where is None:
                return "that place is not on the image"
        else:
            found = next((each for each in result["findings"] if each["number"] == finding), None)
            if found is None:
                return "no such finding; load the page again"
            label = found["label"]
        said = Feedback(
            self.node.now(), reader, series_uid, job, kind, None if kind == "missed" else finding, label, where
        )
        return None if self.node.ledger.note_feedback(said) else "no such result of this series; load the page again"

    def feedback_of(self, series_uid: str) -> list[dict[str, Any]]:
        """What has been said of the findings of a series, the oldest first."""
        return self.node.ledger.feedback_of(series_uid)

    def feedback(self) -> Iterator[dict[str, Any]]:
        """All that has been said, the oldest first."""
        after = 0
        while some := self.node.ledger.feedback(after):
            yield from some
            after = some[-1]["id"]

    def feedback_counts(self) -> list[dict[str, Any]]:
        """For each pipeline and version of its algorithm how often each kind was said, and the mean Dice of outlines
        that came back edited."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for pipeline, version, kind, number, dice in self.node.ledger.feedback_counts():
            none = {"counts": dict.fromkeys((*FEEDBACK_KINDS, *RETURNED_KINDS), 0), "dice": None}
            row = rows.setdefault((pipeline, version), {"pipeline": pipeline, "version": version, **none})
            row["counts"][kind] = number
            if kind == "edited" and dice is not None:
                row["dice"] = dice
        return list(rows.values())


def _form_of(folders: Iterable[Path], uid: str) -> bytes | None:
    """What was made of results in one of these folders, where this machine has made it. Raises OSError."""
    for folder in folders:
        for path in sorted(folder.glob(f"{FORMS}/*/*.dcm")):
            if str(read_file_meta_info(path).MediaStorageSOPInstanceUID) == uid:
                return path.read_bytes()
    return None


def results_in_force(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each route and pipeline the last inference that has results; those of shadows behind all others. jobs: of a
    series, the oldest first."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for job in jobs:
        if job["kind"] == "infer" and job["results"] and job["state"] in ("done", "refused"):
            last[job["route"], job["pipeline"]] = job
    return sorted(last.values(), key=lambda job: bool(job["shadow"]))


def _marked(result: dict[str, Any], shadow: bool) -> dict[str, Any]:
    """What a shadow says is never taken for a result: it stands beside it, and in the name of each finding."""
    if not shadow:
        return {**result, "shadow": False}
    named = [{**each, "label": _shadow_name(each["label"])} for each in result["findings"]]
    return {**result, "shadow": True, "warnings": [WORDS, *result["warnings"]], "findings": named}


def _compared_with(known: dict[str, Any]) -> dict[str, Any] | None:
    """Of the first result that says so."""
    return next((each["compared_with"] for each in known["results"] if each["compared_with"]), None)


def _shadow_name(label: str) -> str:
    return f"{label} (shadow)"


def _place(known: dict[str, Any], place: Place) -> dict[str, Any] | None:
    """Where something was missed; in patient coordinates, too, where there are some. None: it is beyond the image."""
    index, column, row = place
    image = known["images"][index]
    if not (0 <= column < image["columns"] and 0 <= row < image["rows"]):
        return None
    affine, at = known["affine_lps_mm"], (float(index), row, column, 1.0)
    lps_mm = affine and [round(sum(a * b for a, b in zip(line, at, strict=True)), 1) for line in affine[:3]]
    return {
        "sop_instance_uid": image["sop_instance_uid"],
        "frame": image["frame"],
        "column": column,
        "row": row,
        "lps_mm": lps_mm,
    }
