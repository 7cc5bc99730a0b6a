"""Everything that can go wrong, and what the node does about it.

NodeError
├── ReceiveError            answered to the sender as a DIMSE status
│   ├── SpoolFull           0xA700  Refused: Out of Resources      PS3.4 Table B.2-1
│   ├── LedgerUnavailable   0xA700  the row cannot be written now; elsewhere: try the whole thing again
│   ├── NotReadable         0xC000  Error: Cannot understand       PS3.4 Table B.2-1
│   └── WrongSopClass       0xA900  Error: Data Set does not match SOP Class
├── JobError                what the job does next
│   ├── Refused             the job ends "refused": the input is not fit; the reason is shown
│   ├── TryAgain            the job waits and runs again (destination down, device out of memory)
│   │   └── Await           the job waits for something that wakes it, at the latest until a stated time
│   ├── GiveUp              the job ends "failed": trying again would not help
│   ├── NotOffered          the peer has no such service: the job goes on without it
│   └── Interrupted         the node is stopping: the job is put back as if it had not begun
├── EditionChanged          a destination got earlier results meanwhile: the new ones are written once more
└── StartError              start-up stops, with a sentence that says what to do
    ├── LedgerTooOld        the database was written by a newer node
    └── AlreadyRunning      another worker holds this data folder
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pacs_node.records import Receipt


class NodeError(Exception):
    """Root of the tree. The message says what, which, and what now."""


class ReceiveError(NodeError):
    status = 0xC000
    kept: Path | None = None  # where the bytes that were refused are kept
    series_uid = ""  # of the data set that was refused, if it was found


class SpoolFull(ReceiveError):
    status = 0xA700  # Refused: Out of Resources, PS3.4 Table B.2-1


class LedgerUnavailable(ReceiveError):
    status = 0xA700  # the sender keeps its copy and tries again


class NotReadable(ReceiveError):
    status = 0xC000  # Error: Cannot understand, PS3.4 Table B.2-1


class WrongSopClass(ReceiveError):
    status = 0xA900  # Error: Data Set does not match SOP Class, PS3.4 Table B.2-1


class JobError(NodeError):
    """`receipts`: what the destination had answered before things went wrong."""

    def __init__(self, message: str, receipts: Sequence[Receipt] = ()) -> None:
        super().__init__(message)
        self.receipts = tuple(receipts)


class Refused(JobError):
    pass


class TryAgain(JobError):
    pass


class Await(TryAgain):
    """Not a failure: there is nothing to do before `until`, unless what is awaited comes first."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class GiveUp(JobError):
    pass


class NotOffered(JobError):
    pass


class Interrupted(JobError):
    pass


class EditionChanged(NodeError):
    pass


class StartError(NodeError):
    pass


class LedgerTooOld(StartError):
    pass


class AlreadyRunning(StartError):
    pass
