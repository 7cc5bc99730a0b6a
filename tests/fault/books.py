"""Who keeps the books: senders that note what they were told, destinations that keep what they get, and the balance.

Nothing of the node is asked here: only what a hospital would see from outside.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pydicom
from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from tests.fault.cheap import figure_in, figure_of, image, images_of
from tests.harness import Receiver
from tests.parrot import ASSOCIATE_AC, Parrot
from tests.unit.receive.conftest import encoded


@dataclass(frozen=True)
class Image:
    """As its sender has it."""

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    data_set: bytes
    pixels: bytes

    @classmethod
    def of(cls, dataset: Dataset) -> Image:
        uids = (str(dataset[name].value) for name in ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID"))
        return cls(*uids, encoded(dataset), dataset.PixelData)


@dataclass
class Books:
    """What was sent, what of it was answered with 0x0000, and what the honest destination has got."""

    sent: dict[str, Image] = field(default_factory=dict)
    told: dict[str, Image] = field(default_factory=dict)
    refused: int = 0
    broken: int = 0

    def send(self, port: int, images: list[Image], *, tries: int, wait: Callable[[float], Any]) -> bool:
        """As a PACS does: whatever was not answered with 0x0000 is sent again, on a new association."""
        left = list(images)
        for _ in range(tries):
            with suppress(OSError, AssertionError, KeyError):
                self._send_once(port, left)
            if not left:
                return True
            self.broken += 1
            wait(0.3)
        return False

    def _send_once(self, port: int, left: list[Image]) -> None:
        with Parrot(port, timeout_s=30) as parrot:
            if parrot.associate("SENDER", "PACSNODE", left[0].sop_class_uid)[0] != ASSOCIATE_AC:
                return
            while left:
                each = left[0]
                self.sent[each.sop_instance_uid] = each
                status = parrot.store(each.sop_instance_uid, each.data_set, each.sop_class_uid)
                if status != 0:
                    self.refused += 1
                    return
                self.told[each.sop_instance_uid] = each
                left.pop(0)
            parrot.release()

    # ---- the balance

    def missing(self, arrivals: Mapping[str, Arrived]) -> list[str]:
        """Images that were answered with 0x0000 and that no report is about."""
        reported = frozenset[str]().union(*(each.images for each in arrivals.values()))
        return sorted(self.told.keys() - reported)

    def duplicates(self, arrivals: Mapping[str, Arrived]) -> list[str]:
        """Reports beside another one that say the same of the same images, or that nothing has replaced."""
        of_series: dict[str, list[Arrived]] = defaultdict(list)
        for each in arrivals.values():
            of_series[self.sent[min(each.images)].series_uid].append(each)
        found: set[str] = set()
        for reports in of_series.values():
            replaced = {uid for report in reports for uid in report.replaces}
            found.update([report.uid for report in reports if report.uid not in replaced][1:])
            about = {report.images: report.uid for report in reversed(reports)}
            found.update(report.uid for report in reports if about[report.images] != report.uid)
        return sorted(found)

    def differing(self, arrivals: Mapping[str, Arrived]) -> list[str]:
        """Objects that came twice as two, and reports that say another thing than is true of the images."""
        return sorted(
            uid
            for uid, each in arrivals.items()
            if len(each.contents) > 1 or each.figure != figure_of(self.sent[image].pixels for image in each.images)
        )


@dataclass
class Arrived:
    """A report, as often as it came."""

    uid: str
    images: frozenset[str]
    figure: float
    replaces: frozenset[str]
    contents: set[str] = field(default_factory=set)
    times: int = 0
    first: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, report: Dataset) -> Arrived:
        before = {
            str(reference.ReferencedSOPInstanceUID)
            for study in report.get("PredecessorDocumentsSequence", ())
            for series in study.ReferencedSeriesSequence
            for reference in series.ReferencedSOPSequence
        }
        return cls(str(report.SOPInstanceUID), images_of(report), figure_in(report), frozenset(before))


class Honest(Receiver):
    """A PACS that keeps the books of what it has got. It may be down."""

    def __init__(self, aet: str = "HONEST") -> None:
        super().__init__(aet, commits=True)
        self._ae.dimse_timeout = 2  # pynetdicom's reactor may have taken the answer to our report, and nobody waits
        self.reports: dict[str, Arrived] = {}

    def _store(self, event: evt.Event) -> int:
        content = event.request.DataSet.getvalue()
        report = event.dataset
        with self._lock:
            self.arrivals.append(Dataset())
            self.arrivals[-1].SOPInstanceUID = report.SOPInstanceUID  # for storage commitment
            known = self.reports.setdefault(str(report.SOPInstanceUID), Arrived.of(report))
            known.contents.add(hashlib.sha256(content).hexdigest())
            known.times += 1
        return 0x0000

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        super().stop()
        for association in list(self._ae.active_associations):
            with suppress(Exception):
                association.abort()

    def start(self) -> Receiver:
        while True:
            with suppress(OSError):  # its port is not free yet
                return super().start()


class Lying(Receiver):
    """A PACS that says what is not so: keeps nothing, answers twice, or half, or when it likes, or not at all."""

    def __init__(self, seed: str, aet: str = "LYING") -> None:
        super().__init__(aet)
        self.dice, self.lies = random.Random(seed), defaultdict[str, int](int)

    def _store(self, event: evt.Event) -> int:
        lie = self.dice.choice(("nothing kept", "twice", "half", "slow", "cut off"))
        self.lies[lie] += 1
        if lie == "twice":
            event.assoc.dimse.send_msg(_response(event), event.context.context_id)
        elif lie == "half":
            event.assoc.dul.socket.send(b"\x04\x00\x00\x00\x00\x50\x00\x00")
            event.assoc.dul.socket.close()
        elif lie == "slow":
            threading.Event().wait(self.dice.uniform(1, 4))
        elif lie == "cut off":
            event.assoc.dul.socket.close()
        return 0x0000


def _response(event: evt.Event) -> C_STORE:
    response = C_STORE()
    response.MessageIDBeingRespondedTo = event.request.MessageID
    response.AffectedSOPClassUID = event.request.AffectedSOPClassUID
    response.AffectedSOPInstanceUID = event.request.AffectedSOPInstanceUID
    response.Status = 0x0000
    return response


def series_of(name: str, numbers: range, *, size: int = 64) -> list[Image]:
    return [Image.of(image(name, number, size=size)) for number in numbers]


def is_up(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def read(content: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(content))
