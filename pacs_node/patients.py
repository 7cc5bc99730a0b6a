"""Whose each series is: hashes of what came before there were any, and the patient for a reader who asks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import structlog
from pydicom import Dataset

from pacs_node.errors import LedgerUnavailable, StoreAway, Told, TryAgain
from pacs_node.identity import Identity, shown
from pacs_node.ledger import Ledger
from pacs_node.loop import Loop
from pacs_node.records import Instance
from pacs_node.stages import Unread, WiredStages, header_of

log = structlog.get_logger()

AT_ONCE = 20  # series of one look
SOON_S = 0.2  # until the next look, while there are more
LOOK_EVERY_S = 300.0


class Patients:
    """Looks at closed series that nobody has looked at, a few at a time, in a loop of its own."""

    def __init__(
        self, identity: Callable[[], Identity], ledger: Ledger, stages: WiredStages, now: Callable[[], datetime]
    ) -> None:
        self.identity, self.ledger, self.stages, self.now = identity, ledger, stages, now
        self.loop = Loop("patients", self.look, LOOK_EVERY_S)
        self._after = ""  # this series, in order of UIDs

    def begin(self) -> None:
        """Hashes under a key that is not ours any more find nobody. Raises CannotStart, OSError, LedgerUnavailable."""
        if not self.ledger.patients_under(self.identity().name, self.now()):
            log.info("patients are hashed anew")

    def look(self) -> float | None:
        """The seconds until the next look, if it is to come soon. Raises LedgerUnavailable; TryAgain and StoreAway
        where images are not at hand now."""
        some = self.ledger.without_patient(self._after, AT_ONCE)
        for series_uid in some:
            self._look_at(series_uid)
            self._after = series_uid
        if not some:
            self._after = ""
        return SOON_S if some else None

    def _look_at(self, series_uid: str) -> None:
        """One that cannot be read is found by nobody, and holds up no other."""
        try:
            with self.header(series_uid) as header:
                passes = isinstance(header, Unread) and header.passing is not None
                if header is not None and not passes:
                    self.ledger.note_patient(series_uid, self.identity().of_header(header))
        except (LedgerUnavailable, TryAgain, StoreAway):
            raise
        except Exception as error:  # noqa: BLE001 - the edge of one series: whatever it holds, it is its own
            log.error("patient unreadable", series=series_uid, error=type(error).__name__, trace=Told.of(error).trace)
            self.ledger.note_patient(series_uid, ())

    def shown(self, series_uid: str) -> dict[str, str] | None:
        """Who the patient is, as the series says it now. None: there is none, or its images are not at hand."""
        with self.header(series_uid) as header:
            return None if header is None or isinstance(header, Unread) else shown(header)

    @contextmanager
    def header(self, series_uid: str) -> Iterator[Dataset | None]:
        """Of the image that stands for a series; None: it has none here."""
        image = self._image(series_uid)
        if image is None:
            yield None
            return
        name = f"patient-{uuid.uuid4().hex[:16]}.0"  # two may ask at the same time
        with self.stages.unpacked(name, [image.stored]) as [file]:
            yield header_of(image, file)

    def _image(self, series_uid: str) -> Instance | None:
        received = self.ledger.tried_on(series_uid)
        return None if received is None else self.ledger.an_image_of(received)
