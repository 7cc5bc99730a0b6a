"""What the node tells its pages. Nothing of it names a path of this machine."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from models import catalogue
from pacs_node import __version__
from pacs_node.audit import KINDS, Audit, told
from pacs_node.errors import LedgerUnavailable, NodeError, Told
from pacs_node.heartbeat import Heartbeat
from pacs_node.ledger.lists import iso
from pacs_node.ledger.pages import Late
from pacs_node.off_peak import OffPeak
from pacs_node.peers import LedgerMemory
from pacs_node.pipeline_facts import PipelineFacts
from pacs_node.records import (
    BEGINNABLE,
    EVERY,
    JOB_KINDS,
    NOT_URGENT,
    PAUSES,
    PRIORITY_NAMES,
    REFUSAL_KINDS,
    Pause,
    Wanted,
    device_at,
    moment,
    why_held,
)
from pacs_node.retention import Retention
from pacs_node.settings import LiveSettings
from pacs_node.shadow import Pair, agreement, paired
from pacs_node.system import state_of
from pacs_node.viewer_facts import Viewed, ViewerFacts

OVERDUE_AFTER_S = 3600.0  # a job that has not ended an hour after its time is named by /health
RUNNING_SLACK_S = 900.0  # and so is one whose attempt runs for this much longer than its limits add up to
STANDING_S = 15.0  # or that has not begun for so long, and two sweeps, though nothing of its queue runs
AHEAD_S = 60.0  # times so far in the future were not measured by another clock: ours was set back

NUMBERS = re.compile(r"\d+(\.\d+)?")
HEALTH_EVERY_S = 5.0  # it is asked so often for open pages, however many there are

MOST_AT_ONCE = 1000  # series of a filter that one button is for
SENDERS_SHOWN = 50  # with refusals: whoever knocks can make as many as there are addresses
MOST_COMPARED = 2000  # series of a shadow and a live route, the newest
MOST_LOOKED_AT = 100_000  # messages of the audit trail, for one page

LONGEST_NAME, LONGEST_REASON = 128, 200  # characters of what is paused, and why
LONGEST_PAUSE_H = 8760

ATTENTION = 20  # jobs that /health names one by one

TASKS = {  # kind of job -> what it does, in words
    "infer": "{pipeline}",
    "send": "sending to {destination}",
    "confirm": "proving arrival at {destination}",
    "report": "reporting on storage commitment to {destination}",
}

FAILED = "has failed for good"
LATE = {
    "running": "runs for longer than it may",
    "standing": "stands still",
    "overdue": "is overdue",
    "failing": "fails and is tried again",
}
QUEUES = {**TASKS, "infer": "inference"}


def in_need(jobs: Sequence[dict[str, Any]], said: str) -> list[str]:
    """One sentence for each task that these jobs, the most telling first, are about."""
    of: dict[str, dict[str, Any]] = {}
    for job in jobs:
        of.setdefault(TASKS[job["kind"]].format(**job), job)
    return [
        f"{task} {said} ({job['of_task']} job{'' if job['of_task'] == 1 else 's'}): {job['reason'] or job['state']}"
        for task, job in of.items()
    ]


class Running(Viewed, Protocol):
    """The node whose facts these are."""

    retention: Retention
    off_peak: OffPeak
    heartbeat: Heartbeat
    started_at: datetime
    stopping: bool
    audit: Audit
    settings: LiveSettings | None
    executor: str

    def rejected(self, job_id: str) -> Path: ...
    @property
    def listening(self) -> bool: ...
    @property
    def working(self) -> bool: ...
    def trouble(self) -> list[str]: ...
    def ailing(self) -> list[str]: ...
    def inference(self) -> dict[str, Any]: ...
    def devices(self) -> list[dict[str, Any]]: ...
    def connected(self) -> frozenset[str]: ...
    def wake(self) -> None: ...
    def rerun(self, series_uid: str, route: str | None = None) -> str | None: ...


class NodeFacts(ViewerFacts, PipelineFacts):
    """What the web pages ask. Nothing of it names a path of this machine."""

    node: Running

    def __init__(self, node: Running, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.node, self.monotonic, self.since = node, monotonic, monotonic()
        self._health_asked, self._health_stamp = -math.inf, ""  # for a stamp: when, and what it came to
        self._ever_named: dict[str, str] = {}  # a job may tell of a peer that is gone

    @property
    def _named(self) -> list[tuple[str, str]]:
        """Paths of the settings, and what they are called."""
        config = self.node.config
        named = [(config.node.data_dir, "data_dir"), (Path(config.database.url.partition(":///")[2]), "the database")]
        named += [(peer.folder, f"the folder of '{peer.name}'") for peer in config.peers if peer.folder is not None]
        # the longest first: a folder of results may lie within data_dir
        self._ever_named = {**self._ever_named, **{str(path): name for path, name in named}}
        return sorted(self._ever_named.items(), key=lambda each: -len(each[0]))

    def _without_paths(self, value: Any, named: list[tuple[str, str]] | None = None) -> Any:
        """The same value, with the settings' own folders called by their names in every text."""
        named = self._named if named is None else named
        if isinstance(value, dict):
            return {key: self._without_paths(each, named) for key, each in value.items()}
        if isinstance(value, list):
            return [self._without_paths(each, named) for each in value]
        if isinstance(value, str):
            for path, name in named:
                value = value.replace(path, name) if len(path) > 1 else value
        return value

    def health(self) -> dict[str, Any]:
        """ "trouble": unfit to receive or to work. "degraded": it does both, but a job needs a person."""
        node = self.node
        trouble, needs, attention = node.trouble(), node.ailing(), []
        shadows: list[str] = []
        if node.settings is not None and node.settings.problem is not None:
            needs.append(node.settings.problem.partition("\n")[0])
        counts: dict[str, Any] = {}
        paused: list[str] = []
        try:
            counts = node.ledger.counts()
            for said, jobs in {FAILED: node.ledger.unresolved(), **self._late()}.items():
                needs += in_need(jobs, said)
                attention += jobs
            shadows = in_need(node.ledger.unresolved(shadow=True), FAILED)
            paused = [each.said() for each in node.ledger.pauses(node.now())]
            needs += [*self._no_worker(), *self._clock()]
            needs += [why for why in (node.retention.short, node.retention.away) if why is not None]
        except LedgerUnavailable as error:
            trouble.append(str(error))
        facts = {
            "status": "trouble" if trouble else "degraded" if needs else "ok",
            "reasons": [*trouble, *needs],
            "attention": attention[:ATTENTION],
            "shadow_reasons": shadows,
            "paused": paused,
            "version": __version__,
            "ae_title": node.config.node.ae_title,
            "dicom_port": node.config.node.dicom_port,
            "open_associations": len(node.connected()),
            "listening": node.listening,
            "working": node.working,
            "pipelines": sorted(catalogue().options),
            "kept_bytes": dict(node.retention.sizes),
            "free_bytes": shutil.disk_usage(node.config.node.data_dir).free,
            "full_in_days": node.retention.full_in_days,
            **counts,
        }
        return self._without_paths(facts)

    def ready(self) -> dict[str, Any]:
        """Whether senders and people should be led here now; other than health it is also about what will pass."""
        node = self.node
        health = self.health()
        reasons = list(health["reasons"]) if health["status"] == "trouble" else []
        if node.stopping:
            reasons.append("the node is stopping")
        elif not node.listening:
            reasons.append("nothing listens for senders yet")
        return {"ready": not reasons, "reasons": reasons}

    def system(self) -> dict[str, Any]:
        """What the node runs on, and how it is: see system.py."""
        return self._without_paths(state_of(self.node))

    def failed_tasks(self) -> dict[str, str]:
        """task -> that jobs of it have failed for good, in words"""
        of: dict[str, list[dict[str, Any]]] = {}
        for job in self.node.ledger.unresolved():
            of.setdefault(TASKS[job["kind"]].format(**job), []).append(job)
        return self._without_paths({task: in_need(jobs, FAILED)[0] for task, jobs in of.items()})

    def _late(self) -> dict[str, list[dict[str, Any]]]:
        """Jobs that should have come further, by what is wrong with them."""
        ledger, now = self.node.ledger, self.node.now()
        standing_s = STANDING_S + 2 * self.node.config.jobs.sweep_s
        settled = self.monotonic() - self.since > standing_s  # before that, what was left is still being taken up
        still, due = now - timedelta(seconds=standing_s), self._due()
        late = ledger.late(
            Late(
                begun=self._limits(),
                living=ledger.living(),
                unattended=still,
                standing=still if settled else None,
                made=due,
                failing=now - timedelta(seconds=self.node.config.jobs.sweep_s),
                closed_of_standing=self._closed(still),
                closed_of_made=self._closed(due["infer"]),
                held=() if self._no_device(ledger.pauses(now)) is None else ("infer",),
            )
        )
        return {words: late[each] for each, words in LATE.items()}

    def _closed(self, since: datetime) -> frozenset[str]:
        """Routes whose jobs had not all the hours since then to run in."""
        return self.node.off_peak.not_open_since(since)

    # ---- what a person has paused

    def pauses(self) -> list[dict[str, Any]]:
        now = self.node.now()
        return [
            {**asdict(each), "since": iso(each.since), "until": iso(each.until), "what": each.what, "words": each.words}
            for each in self.node.ledger.pauses(now)
        ]

    def is_paused(self, destination: str) -> bool:
        """Whether nothing is sent there now."""
        return why_held(self.node.ledger.pauses(self.node.now()), "send", "", destination) is not None

    def can_pause(self) -> dict[str, list[str]]:
        """Kind -> the names that it knows; a device may also be one of another machine."""
        config = self.node.config
        return {
            "destination": [peer.name for peer in config.peers if peer.reachable],
            "pipeline": sorted({route.pipeline for route in config.routes}),
            "device": self._all_devices(),
        }

    def _device_names(self) -> list[str]:
        return list(dict.fromkeys(each["device"] for each in self.node.devices()))

    def _all_devices(self) -> list[str]:
        """With those of workers on other machines, as a pause names them."""
        others = self.node.ledger.devices_of_others(self.node.executor)
        named = [device_at(each["device"], each["machine"]) for each in others]
        return list(dict.fromkeys([*self._device_names(), *named]))

    def pause(self, kind: str, name: str, by: str, reason: str = "", hours: float | None = None) -> str | None:
        """Jobs of it begin no more, for so long or until somebody resumes it. None, or why not."""
        known, now = self.can_pause().get(kind), self.node.now()
        if known is None:
            return f"kind is one of {', '.join(PAUSES)}, not '{kind}'"
        called = {each.partition("@")[0] for each in known} if kind == "device" else known
        if (name.partition("@")[0] if kind == "device" else name) not in called or len(name) > LONGEST_NAME:
            return f"there is no {kind} '{name}'; there are {', '.join(known) or 'none'}"
        if hours is not None and not 0 < hours <= LONGEST_PAUSE_H:
            return f"hours is a number up to {LONGEST_PAUSE_H}; without, it lasts until somebody resumes it"
        if len(reason) > LONGEST_REASON or not reason.isprintable():
            return f"reason is a text of at most {LONGEST_REASON} characters"
        until = None if hours is None else now + timedelta(hours=hours)
        pause = Pause(kind, name, now, by, reason, until)
        self.node.ledger.pause(pause)
        self.node.audit("paused", {"user": by, "what": f"{kind} {name}", "words": pause.words})
        self.node.wake()
        return None

    def resume(self, kind: str, name: str, by: str) -> bool:
        """False: it is not paused."""
        resumed = self.node.ledger.resume(kind, name, self.node.now())
        if resumed:
            self.node.audit("resumed", {"user": by, "what": f"{kind} {name}"})
            self.node.wake()
        return resumed

    def hurry(self, job_id: str, priority: int, by: str) -> str | None:
        """A job that waits is next, or STAT. None, or why not."""
        job = self.node.ledger.job(job_id)
        rested_s = self.node.off_peak.rested_s(job.route, job.created_at) if job is not None and job.may_rest else 0.0
        why_not = self.node.ledger.hurry(job_id, priority, by, self.node.now(), rested_s)
        if why_not is None and job is not None:
            before = PRIORITY_NAMES.get(job.priority, str(job.priority))
            words = f"{self.what_is(job_id)}: it was {before}, and is {PRIORITY_NAMES[priority]} from now on"
            self.node.audit("priority-changed", {"user": by, "what": f"job {job_id}", "words": words})
            self.node.wake()
        return why_not

    def _no_device(self, pauses: Sequence[Pause]) -> str | None:
        """What is paused, if no device is left for inferences; as far as this machine knows the devices."""
        mine = [each for each in pauses if each.kind == "device"]
        if not mine:
            return None
        of = [[each for each in mine if each.name.partition("@")[0] == name] for name in self._device_names()]
        return "; ".join(dict.fromkeys(each.words for one in of for each in one)) if of and all(of) else None

    def _limits(self) -> dict[str, datetime]:
        """For each kind of job: an attempt that began before this should have ended by now."""
        config = self.node.config
        own_s = config.jobs.infer_timeout_s + 2 * config.priors.timeout_s
        # where several devices share the memory, a job may wait for another to end before it begins
        own_s += config.jobs.infer_timeout_s if len(config.infer.names) > 1 else 0.0
        limits_s = {kind: RUNNING_SLACK_S + (own_s if kind == "infer" else 0.0) for kind in JOB_KINDS}
        return {kind: self.node.now() - timedelta(seconds=s) for kind, s in limits_s.items()}

    def _no_worker(self) -> list[str]:
        """Of a machine that receives for others: that none of them works."""
        node = self.node
        if node.working or not node.listening or node.ledger.living():
            return []
        last = node.ledger.last_begun(peer.name for peer in node.config.peers if peer.reachable)
        since = f"since {moment(last)}" if last is not None else "yet"
        return [f"no worker has taken work {since}, and none lives: start one, pacs-node worker, on any machine"]

    def _clock(self) -> list[str]:
        """What is said of a clock that was set back while there was work."""
        now = self.node.now()
        number, latest = self.node.ledger.of_the_future(now + timedelta(seconds=AHEAD_S))
        if latest is None:
            return []
        ahead = f"up to {(latest - now).total_seconds() / 3600:.1f} h ahead"
        return [
            f"{number} times of open series and jobs lie {ahead}: the clock was set back; they are worked on as ever"
        ]

    def _due(self) -> dict[str, datetime]:
        """For each kind of job: made before this, it should have ended by now."""
        jobs = self.node.config.jobs
        own_s = {"infer": jobs.infer_timeout_s, "send": 0.0, "confirm": jobs.await_report_s, "report": 0.0}
        return {kind: self.node.now() - timedelta(seconds=OVERDUE_AFTER_S + s) for kind, s in own_s.items()}

    def routes(self) -> list[str]:
        return [route.name for route in self.node.config.routes]

    def series_list(self, limit: int, wanted: Wanted = EVERY) -> list[dict[str, Any]]:
        return self._without_paths(self.node.ledger.series_list(limit, wanted))

    def stamp(self) -> str:
        """Another one whenever a page would show something else: of the ledger at once, of /health within seconds."""
        if self.monotonic() - self._health_asked > HEALTH_EVERY_S:
            self._health_asked = self.monotonic()  # before: one page asks for all of them
            health = self.health()
            said = json.dumps([health["status"], health["reasons"], health["paused"]])
            said = NUMBERS.sub("", said)  # how long something lasts already is no news
            self._health_stamp = f"{zlib.crc32(said.encode()):08x}"
        return f"{self.node.ledger.stamp()}-{self._health_stamp}"

    def series_count(self, wanted: Wanted) -> tuple[int, int]:
        return self.node.ledger.series_count(wanted)

    def choices(self) -> dict[str, list[str]]:
        known = self.node.ledger.senders_and_modalities()
        return {
            "modality": sorted({modality for _, modality in known} - {""}),
            "sender": sorted({sender for sender, _ in known} - {""}),
            "pipeline": sorted({route.pipeline for route in self.node.config.routes}),
            "kind": self.node.ledger.kinds_found(),
        }

    def series_uids(self, wanted: Wanted) -> list[str]:
        """The first MOST_AT_ONCE that a filter finds."""
        return self.node.ledger.series_uids_of(MOST_AT_ONCE, wanted)

    def bulk(self, do: str, series_uids: Sequence[str], by: str) -> dict[str, str | None]:
        """Each of these series retried, run again or deleted: None, or why not."""
        can: dict[str, Callable[[str], str | None]] = {
            "retry": self._retry_all,
            "rerun": self.node.rerun,
            "delete": partial(self._delete, by=by),
        }
        how = can[do]
        return self._without_paths({uid: how(uid) for uid in series_uids})

    def _retry_all(self, series_uid: str) -> str | None:
        series = self.node.ledger.series(series_uid)
        jobs = series["jobs"] if series is not None else []
        ended = [self.retry(job["id"]) for job in jobs if job["state"] in ("failed", "refused", "waiting")]
        return None if None in ended else next(iter(ended), "nothing of it has failed or waits")

    def _delete(self, series_uid: str, by: str) -> str | None:
        try:
            return self.node.retention.delete_asked(series_uid, by)
        except (NodeError, OSError) as error:  # of this one; the others may go
            return Told.of(error).words

    def series(self, uid: str) -> dict[str, Any] | None:
        """Everything about one series; of a job that waits for the hours of its route or a pause, what it waits for."""
        series = self.node.ledger.series(uid)
        waiting = [job for job in series["jobs"] if job["state"] in BEGINNABLE] if series else []
        pauses = self.node.ledger.pauses(self.node.now()) if waiting else []
        closed = self.node.off_peak.closed() if waiting else {}
        no_device = self._no_device(pauses)
        for job in waiting:
            held = why_held(pauses, job["kind"], job["pipeline"], job["destination"])
            job["paused"] = held or (no_device if job["kind"] == "infer" else None)
            not_urgent = job["kind"] == "infer" and job["priority"] >= NOT_URGENT
            job["rests"] = closed.get(job["route"]) if not_urgent else None
        return self._without_paths(series)

    def destinations(self) -> list[dict[str, Any]]:
        """Every peer that results are sent to, and what it accepted and refused."""
        config = self.node.config
        facts = []
        for peer in config.peers:
            if not peer.reachable:
                continue
            memory = LedgerMemory(self.node.ledger, peer, config.node.ae_title)
            facts.append(
                {
                    "name": peer.name,
                    "where": "a folder"
                    if peer.folder
                    else peer.dicomweb_url or f"{peer.ae_title} at {peer.host}:{peer.port}",
                    "segmentation": peer.segmentation,
                    "omit_empty_frames": peer.omit_empty_frames,
                    "key_objects": peer.key_objects,
                    "key_images": peer.key_images,
                    "answers": [
                        {
                            "sop_class_uid": answer.sop_class_uid,
                            "transfer_syntax_uid": answer.transfer_syntax_uid,
                            "refused": answer.refused,
                            "at": answer.at.isoformat(timespec="milliseconds"),
                            "asked_again_at": memory.asked_again_at(answer).isoformat(timespec="milliseconds")
                            if answer.refused is not None
                            else None,
                        }
                        for answer in memory.answers()
                    ],
                }
            )
        return facts

    def queue(self, limit: int) -> list[dict[str, Any]]:
        """What runs and what waits, each queue in its order, and why."""
        node = self.node
        closed = node.off_peak.closed()
        queues = node.ledger.queues(node.now(), limit, node.config.jobs.overtaken_s, closed)
        held = self._no_device(node.ledger.pauses(node.now()))
        for queue in queues if held else ():
            if queue["kind"] == "infer":
                waits = {"place": None, "why": held}
                queue["jobs"] = [job if job["state"] == "running" else {**job, **waits} for job in queue["jobs"]]
        return self._without_paths([{**queue, "what": QUEUES[queue["kind"]].format(**queue)} for queue in queues])

    def inference(self) -> dict[str, Any]:
        """The devices, and in which form each network is served."""
        return self._without_paths(self.node.inference())

    def refusals(self, limit: int, kind: str = "", sender: str = "") -> dict[str, Any]:
        counts = self.node.ledger.refusal_counts()
        return {
            "counts": {kind: {**count, "means": REFUSAL_KINDS.get(kind, "")} for kind, count in counts.items()},
            "senders": self.node.ledger.refusals_by_sender(SENDERS_SHOWN),
            "refusals": self.node.ledger.refusals(limit, kind, sender),
        }

    def audit(self, limit: int, before: str, wanted: Mapping[str, str]) -> dict[str, Any]:
        """The audit trail, the newest first."""
        found = islice(self._audited(before, wanted), limit)
        return {"kinds": list(KINDS), "events": [self._without_paths(event) for event in found]}

    def _audited(self, before: str, wanted: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        who = wanted.get("who", "").casefold()
        for line in islice(self.node.audit.trail.backwards(), MOST_LOOKED_AT):
            event = told(line)
            if event is None or (before and event["at"] >= before):
                continue
            names = "\n".join((*event["who"], *event["from"])).casefold()
            if (
                wanted.get("event") in (None, "", event["event"])
                and who in names
                and wanted.get("study") in (None, "", *event["about"])
            ):
                yield event

    def what_is(self, job_id: str) -> str:
        """A job in words: what it does, of which series, and its state now; "": there is none."""
        job = self.node.ledger.job(job_id)
        if job is None:
            return ""
        task = TASKS[job.kind].format(pipeline=job.pipeline, destination=job.destination)
        return f"{task}, of series {job.series_uid}, which was {job.state}"

    def retry(self, job_id: str) -> str | None:
        ledger = self.node.ledger
        if not ledger.run_again(job_id, self.node.now()):
            job = ledger.job(job_id)
            gone = ledger.why_gone(job.series_uid) if job is not None else None
            return gone or "no such job, or it cannot be run again in its state"
        self.node.wake()
        return None

    def dismiss(self, job_id: str) -> bool:
        return self.node.ledger.dismiss(job_id, self.node.now())

    def rerun(self, series_uid: str) -> str | None:
        return self._without_paths(self.node.rerun(series_uid))

    def rerun_many(self, route: str | None, since: datetime | None) -> dict[str, str | None]:
        """Series Instance UID -> None, or why it is not run again.

        since   every closed series whose last image came then or later; without it, every series `route` has taken
        route   only what this one asks for
        """
        ledger, wanted = self.node.ledger, []
        if since is not None:
            wanted = ledger.series_since(since)
        elif route is not None:
            wanted = ledger.series_of_route(route)
        return self._without_paths({uid: self.node.rerun(uid, route) for uid in wanted})

    def shadows(self) -> list[dict[str, Any]]:
        """Every shadow route that there is or was: what became of its inferences, and which live routes took the same
        series."""
        ledger, states = self.node.ledger, self.node.ledger.shadow_states()
        now = {route.name: route for route in self.node.config.routes if route.shadow}
        return [
            {
                "route": name,
                "pipeline": now[name].pipeline if name in now else "",
                "in_force": name in now,
                "states": states.get(name, {}),
                "beside": ledger.live_beside(name),
            }
            for name in sorted({*now, *states})
        ]

    def compared(
        self, route: str, live: str, since: datetime | None = None, before: datetime | None = None
    ) -> dict[str, Any]:
        """A shadow route and a live one on the same series: `agreement`, and each series with what differs."""
        rows = self.node.ledger.compared(route, live, since, before, MOST_COMPARED)
        pairs = [paired(row["series_uid"], row["live"], row["shadow"]) for row in rows]
        series = [_compared(row, pair) for row, pair in zip(rows, pairs, strict=True)]
        told = {"route": route, "live": live, "most": len(rows) == MOST_COMPARED, **agreement(pairs)}
        return self._without_paths({**told, "each": series})

    def rejected(self, job_id: str) -> dict[str, Path]:
        job = self.node.ledger.job(job_id)
        if job is None or job.state != "failed" or job.kind != "infer" or job.shadow:
            return {}
        folder = self.node.rejected(job_id)
        return {path.name: path for path in sorted(folder.glob("*.dcm"))}


def _compared(row: Mapping[str, Any], pair: Pair) -> dict[str, Any]:
    """One series, in figures."""
    live, shadow = pair.alone
    return {
        **{name: row[name] for name in ("series_uid", "modality", "description", "first_arrival")},
        "live_state": pair.live["state"],
        "shadow_state": pair.shadow["state"],
        "live_job": pair.live["job"],
        "shadow_job": pair.shadow["job"],
        "both": len(pair.both),
        "live_alone": live,
        "shadow_alone": shadow,
        "size_differences_mm": [round(b - a, 2) for a, b in pair.sizes_mm],
        "classes": [{"live": a, "shadow": b} for a, b in pair.classes],
        "live_seconds": pair.live["seconds"],
        "shadow_seconds": pair.shadow["seconds"],
        "differs": pair.differs(),
    }
