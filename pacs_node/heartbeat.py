"""The heartbeat: now and then the node sends itself a phantom, and sees whether its results arrive where they should.

    a phantom under the reserved Patient ID -> C-STORE to our own listener -> route, model, delivery -> proof of arrival

It goes every step of the way that the images of patients go, so that somebody hears of a broken step before they come.
What it is at is a mark in the ledger: it goes on after a restart. What is a heartbeat is decided in pulse.py.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import structlog
from pydicom.uid import generate_uid

from config import Config
from pacs_node.deliver.destination import Deferred, Undeliverable
from pacs_node.deliver.dimse import send
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.records import HEARTBEAT_AE, HEARTBEAT_ID, OPEN_JOB_STATES, moment, why_held

log = structlog.get_logger()

LOOK_EVERY_S = 5.0
MARK = "heartbeat"  # of the ledger: the last one
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to call what listens everywhere
PHANTOM_SLICES, PHANTOM_SIZE, PHANTOM_SPACING_MM = 60, 256, (4.0, 1.4, 1.4)  # of a CT


def own_address(config: Config) -> str:
    """Where the node calls itself, and so from where a heartbeat comes."""
    return EVERY_ADDRESS.get(config.node.dicom_host, config.node.dicom_host)


class Heartbeat:
    """Sends the next when its time has come, and looks how far the last one is.

    modality: of the pipeline of a route. delete: makes a series go, whatever is proven of it.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        now: Callable[[], datetime],
        modality: Callable[[str], frozenset[str]],
        delete: Callable[[str], str | None],
    ) -> None:
        self.config, self.ledger, self.now, self.modality, self.delete = config, ledger, now, modality, delete
        self.loop = Loop("heartbeat", self.look, LOOK_EVERY_S)

    # ---- what is said of it

    def state(self) -> dict[str, Any] | None:
        """Of the last one: "state" ("under way", "arrived", "failed", "paused"), "series", "began_at", "seconds" and
        "why". None: there is none, or none is wanted."""
        if not self.config.heartbeat.every_minutes:
            return None
        mark = self.ledger.marks().get(MARK)
        return {"began_at": mark["at"], **json.loads(mark["text"])} if mark is not None else None

    def trouble(self) -> str | None:
        """None, or what is wrong with the way, in words."""
        last = self.state()
        if last is None:
            return None
        if last["state"] == "failed":
            return f"the heartbeat of {moment(last['began_at'])} failed: {last['why']}"
        missed = timedelta(minutes=3 * self.config.heartbeat.every_minutes + self.config.heartbeat.late_minutes)
        if last["state"] == "arrived" and self.now() - last["began_at"] > missed:
            return f"there has been no heartbeat since {moment(last['began_at'])}"
        return None

    # ---- what it does

    def look(self) -> None:
        """Raises LedgerUnavailable."""
        settings, now = self.config.heartbeat, self.now()
        last = self.state()
        if last is not None and last["state"] == "under way":
            self._follow(last, now)
        elif settings.every_minutes and (
            last is None or now - last["began_at"] >= timedelta(minutes=settings.every_minutes)
        ):
            self._beat(last, now)

    def _beat(self, last: Mapping[str, Any] | None, now: datetime) -> None:
        """Send one. What is paused is asked nothing: it would be late."""
        if self._held():
            return
        self._clear_away(last)
        with tempfile.TemporaryDirectory(prefix="heartbeat-", ignore_cleanup_errors=True) as made:
            folder = Path(made)
            series_uid = phantom(folder, self.modality(self.config.heartbeat.route))
            self._note(now, "under way", series_uid)  # before: it is followed, and goes, whatever becomes of us
            node = self.config.node
            try:
                receipts = send(
                    [folder], own_address(self.config), node.dicom_port, HEARTBEAT_AE, node.ae_title, self.now
                )
            except (Deferred, Undeliverable) as error:
                self._ended("failed", now, series_uid, f"the listener does not take it: {error}")
                return
            refused = next((each.text for each in receipts if not each.stored), None)
            if refused is not None:
                self._ended("failed", now, series_uid, f"the listener does not take it: {refused}")

    def _follow(self, last: Mapping[str, Any], now: datetime) -> None:
        series = self.ledger.series(last["series"])
        state, why = how_far(series)
        late = now - last["began_at"] > timedelta(minutes=self.config.heartbeat.late_minutes)
        if state == "under way" and not late:
            return
        if state == "under way":
            held = self._held()
            state, why = ("paused", held) if held else ("failed", f"it is late: {why}")
            self._give_up(last["series"], why)
        self._ended(state, last["began_at"], last["series"], why, (now - last["began_at"]).total_seconds())

    def _held(self) -> str | None:
        """What of its way is paused."""
        settings, pauses = self.config.heartbeat, self.ledger.pauses(self.now())
        pipeline = next((each.pipeline for each in self.config.routes if each.name == settings.route), "")
        return why_held(pauses, "send", "", settings.to) or why_held(pauses, "infer", pipeline, None)

    def _ended(self, state: str, began_at: datetime, series: str, why: str, seconds: float | None = None) -> None:
        self._note(began_at, state, series, why, None if seconds is None else round(seconds, 1))
        (log.warning if state == "failed" else log.info)(
            "heartbeat", state=state, series=series, seconds=seconds, why=why
        )

    def _note(self, began_at: datetime, state: str, series: str, why: str = "", seconds: float | None = None) -> None:
        self.ledger.mark(MARK, began_at, json.dumps({"state": state, "series": series, "why": why, "seconds": seconds}))

    def _give_up(self, series_uid: str, why: str) -> None:
        """Nothing of it is sent when nobody waits for it any more."""
        for job in self.ledger.open_jobs_of(series_uid):
            self.ledger.give_up(job, f"the heartbeat is over: {why}", self.now())

    def _clear_away(self, last: Mapping[str, Any] | None) -> None:
        """The one before: of each there are images and results, which nobody looks for."""
        why_not = self.delete(last["series"]) if last is not None and last["series"] else None
        if why_not is not None:
            log.info("heartbeat kept", series=last["series"] if last else "", why=why_not)


def how_far(series: Mapping[str, Any] | None) -> tuple[str, str]:
    """("under way" | "arrived" | "failed", why) of a series as the ledger tells it."""
    if series is None or series["state"] == "receiving":
        return "under way", "the series is not closed yet"
    jobs = series["jobs"]
    if not jobs:
        said = "; ".join(f"{rule['rule']}: {rule['why_not']}" for rule in series["rules"]) or "there are no rules"
        return "failed", f"no rule matches: {said}"
    for job in jobs:
        if job["state"] in ("failed", "refused", "superseded"):
            return "failed", f"{job['kind']}: {job['reason']}"
    for job in jobs:
        if job["state"] in OPEN_JOB_STATES:
            return "under way", f"{job['kind']} is {job['state']}" + (f": {job['reason']}" if job["reason"] else "")
    proofs = [proof["text"] for job in jobs for proof in job["arrivals"]]
    if not any(job["kind"] == "send" for job in jobs):
        return "failed", "nothing was sent"
    return "arrived", min(proofs) if proofs else "sent; the destination is not asked whether it arrived"


def phantom(folder: Path, modality: frozenset[str]) -> str:
    """Write images of a phantom that a pipeline of this modality takes, under UIDs of their own and the reserved
    Patient ID; the Series Instance UID."""
    from models.phantoms import breast_ultrasound, chest_ct  # 10 MB, for nodes that have a heartbeat

    if "US" in modality:
        breast_ultrasound(folder, seed=1, patient_id=HEARTBEAT_ID)
    else:
        chest_ct(
            folder, seed=1, slices=PHANTOM_SLICES, size=PHANTOM_SIZE, spacing_mm=PHANTOM_SPACING_MM, nodules=2,
            patient_id=HEARTBEAT_ID,
        )  # fmt: skip
    study, series, frame = (str(generate_uid(prefix=None)) for _ in range(3))
    for path in folder.rglob("*.dcm"):
        image = pydicom.dcmread(path)
        image.PatientName, image.StudyDescription = "HEARTBEAT^PACS NODE", "heartbeat of pacs-node, a phantom"
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        if "FrameOfReferenceUID" in image:
            image.FrameOfReferenceUID = frame
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(prefix=None)
        image.save_as(path, enforce_file_format=True)
    return series
