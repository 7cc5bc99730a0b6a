"""What came back of our results from a PACS: edited segmentations and rejections, recognised by UID and counted.

    a series of Segmentations or Key Objects closes -> which results does it name? -> what does it say? -> feedback

It is kept as any other series is, starts no pipeline (route.py), and nothing waits for it: what could not be looked at
now is looked at later.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from pydicom import Dataset

from dicom_sr import attributes, returned
from dicom_sr.reading import read_header
from pacs_node.errors import LedgerUnavailable, StoreAway, Told, TryAgain
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.program import answer_of, started
from pacs_node.records import Feedback, Instance
from pacs_node.route import OURS
from pacs_node.stages import Unread, WiredStages

log = structlog.get_logger()

PROGRAM = Path(__file__).with_name("returned_process.py")
LOOK_EVERY_S = 5.0
AT_ONCE = 20  # series of one look
LONGEST_S = 120.0  # that one comparison may take
MOST_IMAGES = 500  # named by one segmentation: whose series are looked up
LONGEST_NAME = 80  # characters of who made it, as the ledger keeps it


class NotCompared(Exception):
    """Why an edited segmentation is not held against ours, in words."""


class Returned:
    """Looks at what came, in a loop of its own. confined: the process that compares gives up what it does not need."""

    def __init__(self, ledger: Ledger, stages: WiredStages, now: Callable[[], datetime], *, confined: bool) -> None:
        self.ledger, self.stages, self.now, self.confined = ledger, stages, now, confined
        self.loop = Loop("returned", self.look, LOOK_EVERY_S)

    def look(self) -> None:
        """Raises LedgerUnavailable; TryAgain where images or results are not at hand now."""
        for series_uid in self.ledger.returned_waiting(AT_ONCE):
            self._look_at(series_uid)

    def _look_at(self, series_uid: str) -> None:
        """One that cannot be read holds up no other, and says so."""
        instances = [each for each in self.ledger.instances(series_uid) if each.sop_class_uid in returned.CLASSES]
        said: list[Feedback] = []
        try:
            words = self._read(series_uid, instances, said)
        except (LedgerUnavailable, TryAgain, StoreAway):
            raise
        except Exception as error:  # noqa: BLE001 - the edge of one series: whatever it holds, it is its own
            told = Told.of(error)
            log.error("returned object unreadable", series=series_uid, error=told.words, trace=told.trace)
            said.clear()
            words = "whether it says something of our results cannot be read"
        self.ledger.note_returned(series_uid, [each.sop_instance_uid for each in instances], said, words, self.now())

    def _read(self, series_uid: str, instances: Sequence[Instance], said: list[Feedback]) -> str:
        with ExitStack() as stack:
            name = f"returned-{hashlib.sha256(series_uid.encode()).hexdigest()[:16]}.{os.getpid()}"
            files = stack.enter_context(self.stages.unpacked(name, [each.stored for each in instances]))
            for header, instance, file in self._headers(instances, files):
                said += self._of_one(header, instance, file)
        return _in_words(said)

    def _headers(
        self, instances: Sequence[Instance], files: Sequence[Path]
    ) -> Iterator[tuple[Dataset, Instance, Path]]:
        """Of those that can be read. A header may name another instance than it was sent as, or none."""
        headers = self.stages.headers(instances, files)
        unread = {header.SOPInstanceUID for header in headers if isinstance(header, Unread)}
        read = [header for header in headers if not isinstance(header, Unread)]
        those = [
            (each, file) for each, file in zip(instances, files, strict=True) if each.sop_instance_uid not in unread
        ]
        for header, (instance, file) in zip(read, those, strict=True):
            yield header, instance, file

    def _of_one(self, header: Dataset, instance: Instance, file: Path) -> list[Feedback]:
        if self.ledger.is_object_of_ours(instance.sop_instance_uid):
            return []  # as we sent it
        if instance.sop_class_uid in returned.SEGMENTATIONS:
            return self._edited(header, instance, file)
        reason = returned.rejection(header)
        if reason is None or attributes.text(header, "Manufacturer").casefold() == OURS:
            return []  # a note of our own rejects what we have replaced ourselves
        jobs = self.ledger.jobs_named(returned.rejected(header), ())
        return [self._feedback(header, instance, job, uid, kind="rejected", reason=reason) for job, uid, _ in jobs]

    def _edited(self, header: Dataset, instance: Instance, file: Path) -> list[Feedback]:
        """Of each result that it names, or whose lesions it goes on with; of one series the latest of those."""
        names = returned.named(header)
        ours = {
            job: (uid, self._segmentation(job))
            for job, uid, named in self.ledger.jobs_named(names.instances, names.series | self._series_of(names))
            if named or self._tracks(job, names.tracking)
        }
        latest: dict[str, str] = {}
        for job, (uid, path) in ours.items():
            if path is not None:
                latest.setdefault(uid, job)
        paths = {job: path for uid, job in latest.items() if (path := ours[job][1]) is not None}
        if not paths:
            return []
        try:
            compared = self._compared(file, paths)
        except NotCompared as why:
            said = {"kind": "edited", "reason": str(why)}
            return [self._feedback(header, instance, job, ours[job][0], **said) for job in paths]
        return [
            self._feedback(
                header, instance, job, ours[job][0], kind=edit["kind"], finding=edit["number"],
                label=edit["label"][:64], dice=edit["dice"], reason=edit["why_not"],
            )
            for job, edits in compared.items()
            for edit in edits
        ]  # fmt: skip

    def _series_of(self, names: returned.Named) -> set[str]:
        """Series of the images that it names one by one; of very many the first."""
        return {each.series_uid for each in self.ledger.kept_instances(sorted(names.instances)[:MOST_IMAGES])}

    def _segmentation(self, job: str) -> Path | None:
        classes = returned.SEGMENTATIONS
        return next((each.path for each in self.ledger.results(job) if each.sop_class_uid in classes), None)

    def _tracks(self, job: str, tracking: frozenset[str]) -> bool:
        from dicom_sr.read import segments_described  # 30 MB, for who gets one back

        path = self._segmentation(job)
        if path is None or not tracking:
            return False
        with self.stages.here([path]) as [here]:
            return here.is_file() and any(s.tracking_uid in tracking for s in segments_described(read_header(here)))

    def _compared(self, file: Path, ours: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
        """What became of each segment of each result. Raises NotCompared."""
        with ExitStack() as stack:
            here = {job: stack.enter_context(self.stages.here([path]))[0] for job, path in ours.items()}
            gone = [path for path in here.values() if not path.is_file()]
            if gone:
                raise NotCompared("the result that it is of is not here any more")
            asked = {
                "path": sys.path,
                "confine": self.confined,
                "theirs": str(file),
                "ours": {job: str(path) for job, path in here.items()},
            }
            return self._run(json.dumps(asked))

    def _run(self, asked: str) -> dict[str, list[dict[str, Any]]]:
        process = started(PROGRAM)
        try:
            answer = answer_of(process, asked, LONGEST_S)
        except subprocess.TimeoutExpired as error:
            raise NotCompared(f"it took longer than {LONGEST_S:g} s to compare") from error
        if process.returncode != 0:
            raise NotCompared("its pixels cannot be read")
        edits: dict[str, list[dict[str, Any]]] = json.loads(answer)["edits"]
        return edits

    def _feedback(self, header: Dataset, instance: Instance, job: str, series_uid: str, **said: Any) -> Feedback:
        return Feedback(
            instance.received_at,
            returned.author(header)[:LONGEST_NAME],
            series_uid,
            job,
            object=instance.sop_instance_uid,
            sender=instance.calling_ae,
            made=returned.made_at(header),
            **said,
        )


def _in_words(said: Sequence[Feedback]) -> str:
    """For the timelines; without who said it."""
    if not said:
        return ""
    sender = said[0].sender
    if any(each.kind == "rejected" for each in said):
        return f"{sender} rejects results of {_count({each.job for each in said}, 'inference')}: {said[0].reason}"
    kinds = {kind: sum(each.kind == kind for each in said) for kind in ("kept", "edited", "left-out", "added")}
    words = ", ".join(f"{number} {kind.replace('-', ' ')}" for kind, number in kinds.items() if number)
    return f"{sender} sent an edited segmentation: {words}"


def _count(things: set[str], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
