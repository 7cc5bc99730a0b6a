"""What flows through the node. Frozen; paths, never bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from dicom_sr.findings import Findings


def moment(at: datetime, to: str = "minutes") -> str:
    """A moment as people are told it, on pages, in messages and in reasons: "2026-03-14 09:40 UTC".

    to   "minutes" or "seconds"
    """
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(' ', to)} UTC"


Of = TypeVar("Of")
To = TypeVar("To")


class WhenAsked(Mapping[str, To], Generic[Of, To]):
    """The same keys as another mapping; each value is made of the one there, once, when it is asked for."""

    def __init__(self, of: Mapping[str, Of], make: Callable[[Of], To]) -> None:
        self._of, self._make = of, make
        self._made: dict[str, To] = {}

    def __getitem__(self, key: str) -> To:
        if key not in self._made:
            self._made[key] = self._make(self._of[key])
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, key: object) -> bool:
        return key in self._of


@dataclass(frozen=True)
class Stored:
    """Where a DICOM file lies: in a file of its own, or among others in one. See pack.py."""

    path: Path
    offset: int = 0  # where it begins in the file
    size: int = 0  # bytes of it, where it is not all of the file


@dataclass(frozen=True)
class Instance:
    """One stored SOP instance, durable on disk."""

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax_uid: str
    path: Path  # of the file that it lies in: see pack.py
    size: int  # bytes of it as a DICOM file
    received_at: datetime  # UTC
    association: str  # id of the association that brought it
    calling_ae: str
    offset: int = 0  # where it begins in the file

    @property
    def stored(self) -> Stored:
        return Stored(self.path, self.offset, self.size)


@dataclass(frozen=True)
class AssociationEnd:
    """A sender is gone. `released` is the Standard's orderly A-RELEASE; otherwise abort, timeout or lost connection."""

    association: str
    calling_ae: str
    released: bool
    at: datetime


REFUSAL_KINDS = {  # what happened at receipt -> in words
    "association rejected": "the sender was not let in",
    "TLS failed": "the handshake of TLS failed; nothing was asked for yet",
    "unreadable": "the data set is cut off or cannot be read; its bytes are kept",
    "too large": "the data set is longer than largest_mb allows; nothing of it is kept",
    "wrong SOP class": "the data set is not what the command said; its bytes are kept",
    "not stored now": "it could not be stored then; the sender was asked to send it again",
    "kept aside": "another object has its SOP Instance UID; that one is used, this one is kept",
    "damaged": "a stored file could not be read at start-up; its bytes are kept",
}


@dataclass(frozen=True)
class Refusal:
    """Something that came to the door and was not taken in as an image to work with. "" is what is not known."""

    kind: str  # one of REFUSAL_KINDS
    at: datetime  # UTC
    calling_ae: str
    address: str
    reason: str
    sop_instance_uid: str = ""
    series_uid: str = ""
    file: str = ""  # below the spool folder: where the bytes are kept


@dataclass(frozen=True)
class Evidence:
    """What is known about the completeness of a series, besides its instances."""

    last_arrival: datetime
    arrived: int  # instances of the series stored so far
    open_associations: frozenset[str] = frozenset()  # those of the series' senders that are still connected
    released: bool = False  # every association that brought instances ended by A-RELEASE
    expected: int | None = None  # NumberOfSeriesRelatedInstances told by the sending peer
    expected_from: str | None = None  # that peer's name


@dataclass(frozen=True)
class Verdict:
    """Is the series fit for inference? In words."""

    fit: bool
    reason: str  # "85 axial slices, 2.5 mm apart", or "gantry tilt of 12.0 degrees"
    use: tuple[str, ...] = ()  # SOP Instance UIDs in ascending order along the normal
    set_aside: dict[str, str] = field(default_factory=dict)  # SOP Instance UID -> reason
    facts: dict[str, Any] = field(default_factory=dict)  # spacing_mm, tilt_degrees, gaps ...
    remarks: tuple[str, ...] = ()  # what a reader of the results should know of the images, in words
    # route -> its own verdict, where its pipeline requires something else; without their own
    of_routes: Mapping[str, Verdict] = field(default_factory=dict)

    def of(self, route: str) -> Verdict:
        return self.of_routes.get(route, self)

    def told(self, findings: Findings) -> Findings:
        """The findings with the remarks among their warnings."""
        return replace(findings, warnings=(*self.remarks, *findings.warnings)) if self.remarks else findings


@dataclass(frozen=True)
class Package:
    """The objects one job produced, all of one study, ready to be sent to one destination."""

    job: str
    paths: tuple[Path, ...]
    sources: Mapping[str, Stored] = field(default_factory=dict)  # by SOP Instance UID of the image
    is_ours: Callable[[], bool] = lambda: True  # False once another worker has the job: nothing more is sent
    study_uid: str = ""


@dataclass(frozen=True)
class Form:
    """One way to send what a result says: as an object of which SOP class, in which encoding."""

    name: str  # "Segmentation", "RT Structure Set"
    sop_class_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> tuple[str, str]:
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class Offer:
    """A result, and the forms it can be sent in, the best first."""

    path: Path  # the result as it was made
    sop_instance_uid: str
    forms: tuple[Form, ...]
    optional: bool = False  # no harm is done if the destination takes none of them


@dataclass(frozen=True)
class Prepared:
    """The files of one form of a result."""

    paths: tuple[Path, ...]
    note: str = ""  # what they leave out: "10 of 30 findings, the most certain"


@dataclass(frozen=True)
class Answer:
    """What a destination said to one SOP class in one transfer syntax when an association was opened."""

    sop_class_uid: str
    transfer_syntax_uid: str
    refused: str | None  # None: accepted; else the reason
    at: datetime


@dataclass(frozen=True)
class Receipt:
    """What a destination said about one object."""

    sop_instance_uid: str
    stored: bool
    status: int | None  # DIMSE status or HTTP status; None for a folder
    text: str  # "0x0000 Success", "0xB000 stored with a change: Coercion of Data Elements"
    at: datetime
    sop_class_uid: str = ""  # of the object that was sent, which may stand in place of another


# The calling AE title under which the node sends its heartbeat to itself, and the Patient ID that is in it: reserved
HEARTBEAT_AE = "PACSNODE-BEAT"
HEARTBEAT_ID = "PACSNODE-HEARTBEAT"

JOB_KINDS = ("infer", "send", "confirm", "report")

SHADOW = 9  # the priority of what a shadow route asks for: behind all others, and never owed a turn
PRIORITY_NAMES = {0: "next", 1: "STAT", 3: "high", 5: "routine", 7: "low", SHADOW: "shadow"}  # lower runs first
NEXT, STAT = 0, 1  # what a person can make of a job that waits; no route asks for NEXT
NOT_URGENT = 5  # from this number on a job waits for the hours of its route

# A job's states, and every change between them that may happen. The ledger refuses all others.
TRANSITIONS: dict[tuple[str, str], str] = {
    ("queued", "running"): "a worker takes it",
    ("waiting", "running"): "its delay is over",
    ("running", "running"): "its worker died and came back",
    ("running", "waiting"): "failed in a way that waiting may cure",
    ("running", "done"): "finished",
    ("running", "refused"): "the input is not fit; the reason is shown",
    ("running", "failed"): "trying again would not help",
    ("queued", "queued"): "taken over by a new generation",
    ("running", "queued"): "its worker is gone: taken over by a new generation",
    ("waiting", "queued"): "taken over by a new generation",
    ("queued", "failed"): "given up before it ran again",
    ("waiting", "failed"): "given up before it ran again",
    ("queued", "superseded"): "late images made a newer revision",
    ("waiting", "superseded"): "late images made a newer revision",
    ("running", "superseded"): "late images made a newer revision",
}

DURATIONS = {  # what is timed -> from when to when, and by what it is told apart
    "receive": "from the first image of a series to its last, by modality",
    "wait": "from the making of an inference to its begin, without the hours that it rests, by pipeline",
    "rest": "that of this wait the hours of its route were not, where it has hours, by pipeline",
    "infer": "inference, by pipeline",
    "encode": "writing and checking its results, by pipeline",
    "send": "a send that succeeded, by destination",
    "turnaround": "from the last image of a series until its results have arrived, without such rest, by pipeline",
}
STEPS_S = (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 14400, 86400)  # of histograms of them

BEGINNABLE = ("queued", "waiting")
OPEN_JOB_STATES = ("queued", "running", "waiting")

JOB_STATES = (*OPEN_JOB_STATES, "done", "refused", "failed", "superseded")


@dataclass(frozen=True)
class Also:
    """Who gets the results of a job as well, if a finding of a kind is among them: see kinds.py."""

    send_to: tuple[str, ...]
    kinds: tuple[str, ...] = ()  # none: of any
    min_size_mm: float = 0.0
    categories: tuple[str, ...] = ()  # none: of any, and of none


@dataclass(frozen=True)
class Needs:
    """Other series of the same study that a route waits for: of each the conditions, as a route's `match`."""

    series: tuple[Mapping[str, Any], ...]
    wait_minutes: float
    if_incomplete: str  # "skip" or "run"


LONGEST_STUDY = timedelta(minutes=10080)  # that the settings let a route wait
STUDIES = {  # how the study of a job with needs was -> in words
    "waiting": "other series of the study are waited for",
    "complete": "all series that the route needs were there",
    "incomplete": "it ran without them",
    "skipped": "it did not run, for they did not come in time",
}


@dataclass(frozen=True)
class Job:
    """One unit of durable work, by kind.

    infer: run a pipeline over a series. send: bring its results to one destination. confirm: prove that they arrived.
    report: tell the sender whose AE title is `destination` which of its instances we keep.
    """

    id: str
    kind: str
    series_uid: str
    study_uid: str
    revision: int
    pipeline: str
    route: str
    priority: int  # of PRIORITY_NAMES
    created_at: datetime
    send_to: tuple[str, ...] = ()
    also: tuple[Also, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    priors: str | None = None  # the peer to ask for earlier studies of the patient
    shadow: bool = False  # its results go nowhere
    needs: Mapping[str, Any] | None = None  # other series of the study: see Needs
    waits_until: datetime | None = None  # for these, at the latest
    study: str | None = None  # one of STUDIES, of a job with needs
    destination: str | None = None
    infer_job: str | None = None  # send: whose results
    send_job: str | None = None  # confirm: whose objects
    transaction_uid: str | None = None  # report: of the storage commitment request
    sender: str = ""  # AE title that brought the series; "" where a person asked for it to be run again
    rested_s: float | None = None  # of its wait, for the hours of its route; None: not known yet
    turn: int = 0  # among the jobs of its queue and priority, see turns.py; the ledger gives it
    state: str = "queued"
    generation: int = 1
    attempt: int = 1
    crashes: int = 0
    executor: str | None = None
    reason: str = ""
    not_before: datetime | None = None

    @property
    def counts(self) -> bool:
        """Whether it is in figures: it is neither a shadow's nor a heartbeat's."""
        return not self.shadow and self.sender != HEARTBEAT_AE

    def rests(self, closed: Collection[str]) -> bool:
        """Whether it waits for the hours of its route. closed: routes whose hours are not now."""
        return self.may_rest and self.route in closed

    @property
    def may_rest(self) -> bool:
        """Whether the hours of its route are for it."""
        return self.kind == "infer" and self.priority >= NOT_URGENT

    @property
    def destinations(self) -> frozenset[str]:
        """Every peer that its results may go to."""
        return frozenset((*self.send_to, *(name for also in self.also for name in also.send_to)))

    @property
    def asked(self) -> dict[str, Any]:
        """What makes results of one pipeline about one series different ones: its options, whether it compares, and
        whether they go anywhere: no object of a shadow ever has the UID of one that a destination holds."""
        own = ({"priors": self.priors} if self.priors else {}) | ({"shadow": True} if self.shadow else {})
        return dict(self.options) | own


@dataclass(frozen=True)
class OpenSeries:
    """A series that still receives, and what is known about its completeness."""

    series_uid: str
    study_uid: str
    evidence: Evidence
    calling_aes: tuple[str, ...]


PAUSES = {  # what can be paused -> what of it waits, in words
    "destination": "sending to {name}",
    "pipeline": "{name}",
    "device": "device {name}",
}


@dataclass(frozen=True)
class Pause:
    """Jobs of something do not begin, because a person wants it so. What runs ends."""

    kind: str  # of PAUSES
    name: str  # of a peer or pipeline; a device as the settings name it, with "@" and the host name of one machine
    since: datetime
    who: str
    reason: str = ""
    until: datetime | None = None  # None: somebody has to end it

    def holds(self, kind: str, pipeline: str, destination: str | None) -> bool:
        """Whether jobs of this kind wait for its end. Devices hold none of their own: see `device_pauses`."""
        if self.kind == "destination":
            return kind in PAUSED_WITH_DESTINATION and destination == self.name
        return self.kind == "pipeline" and kind == "infer" and pipeline == self.name

    @property
    def what(self) -> str:
        return PAUSES[self.kind].format(name=self.name)

    @property
    def words(self) -> str:
        return self.said(f" by {self.who}")

    def said(self, by: str = "") -> str:
        """For whom it may be nobody's business who has paused it."""
        end = f" until {moment(self.until)}" if self.until is not None else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.what} is paused{by} since {moment(self.since)}{end}{why}"


# a report tells a sender what we keep of its images: nothing of ours is brought there
PAUSED_WITH_DESTINATION = ("send", "confirm")


def why_held(pauses: Iterable[Pause], kind: str, pipeline: str, destination: str | None) -> str | None:
    """None, or what holds such a job, in words."""
    return next((each.words for each in pauses if each.holds(kind, pipeline, destination)), None)


def device_at(device: str, machine: str) -> str:
    """A device as pauses, pages and figures name it; machine: its host name, empty for our own."""
    return f"{device}@{machine}" if machine else device


def device_pauses(pauses: Iterable[Pause], device: str, machine: str) -> list[Pause]:
    """Those of a device of this machine."""
    names = device, device_at(device, machine)
    return [each for each in pauses if each.kind == "device" and each.name in names]


SORTS = {  # of a list of series -> in words
    "newest": "the latest first",
    "oldest": "the earliest first",
    "slowest": "those whose results took longest to arrive first",
}


@dataclass(frozen=True)
class Wanted:
    """Which series a list is of, and in which order; "" and None: any."""

    text: str = ""  # a part of the description, modality or sender; or how a Series or Study Instance UID begins
    modality: str = ""
    sender: str = ""  # AE title
    state: str = ""  # of the series
    pipeline: str = ""  # that was asked for
    job: str = ""  # the state of one of its jobs
    trouble: bool = False  # a job of it has failed and nobody has dealt with it, or is being tried again
    since: datetime | None = None  # its first image came then or later
    before: datetime | None = None  # or earlier
    sort: str = "newest"  # one of SORTS
    after: str = ""  # Series Instance UID: those that follow this one
    findings: str = ""  # "with", or "without": analysed, and there are none
    kind: str = ""  # ... of this one, as reports call it
    min_mm: float = 0.0  # ... from this size on, or of a size that is not known
    patient: str = ""  # whose they are, as Identity.sought gives it

    @property
    def narrowed(self) -> bool:
        """Whether it leaves any out."""
        return replace(self, sort="newest", after="") != EVERY


EVERY = Wanted()


@dataclass(frozen=True)
class Holding:
    """What is kept of one series, and what is known of where its results are."""

    series_uid: str
    state: str
    last_arrival: datetime
    arrived: int  # images
    size: int  # bytes of them
    committed_to: str | None = None  # AE title of a sender that asked us for storage commitment of its images
    jobs: tuple[Job, ...] = ()  # the oldest first
    stored: Mapping[str, frozenset[str]] = field(default_factory=dict)  # send job -> objects stored, by its destination
    proven: Mapping[str, frozenset[str]] = field(default_factory=dict)  # send job -> those proven to have arrived
    study_uid: str = ""


@dataclass(frozen=True)
class Notice:
    """Something that somebody is to know of, for as long as it lasts."""

    text: str
    since: datetime
    told_at: datetime | None = None  # the last time


@dataclass(frozen=True)
class Deletion:
    """Files that no row names any more, and that are to go from the disk."""

    id: int
    series_uid: str
    files: tuple[str, ...]  # and folders, below data_dir


@dataclass(frozen=True)
class Result:
    sop_instance_uid: str
    sop_class_uid: str
    path: Path
    series_uid: str = ""
    sha256: str = ""  # of the file as it is sent
    remarks: tuple[str, ...] = ()  # what the checks of the result warn of, said with its first object


@dataclass(frozen=True)
class Edition:
    """One wording of the results of a pipeline, with its options, about one series."""

    result_revision: int  # from 1; goes into the UIDs
    series_revision: int  # which images it is about
    version: str  # of the algorithm
    analysed: bool  # False: it says why the series was not run
    dated: datetime  # goes into the objects, so that writing them again gives the same bytes
    replaces: tuple[Result, ...] = ()  # earlier objects that are void from now on
    objects: tuple[Result, ...] = ()
    released_to: frozenset[str] = frozenset()  # destinations that hold it, or may hold it


@dataclass(frozen=True)
class Sent:
    """One object that a destination says it has stored."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


@dataclass(frozen=True)
class ArrivalProof:
    """Whether one object is at its destination, and how that is known."""

    sop_instance_uid: str
    arrived: bool | None  # None: nothing proves it, and nothing speaks against it
    how: str  # "storage commitment", "C-FIND", "QIDO-RS"; "" when nothing does
    text: str  # "arrived: storage commitment", "not proven: ..."
    at: datetime


@dataclass(frozen=True)
class CommitmentRequest:
    """A peer asks whether we keep these instances: N-ACTION, PS3.4 J.3.2."""

    transaction_uid: str
    calling_ae: str
    wanted: tuple[tuple[str, str], ...]  # (SOP Class UID, SOP Instance UID)


@dataclass(frozen=True)
class CommitmentReport:
    """The answer to a storage commitment request: N-EVENT-REPORT, PS3.4 J.3.3."""

    transaction_uid: str
    committed: tuple[tuple[str, str], ...]  # (SOP Class UID, SOP Instance UID)
    failed: tuple[tuple[str, str, int], ...] = ()  # and the Failure Reason (0008,1197)

    def said(self) -> dict[str, bool]:
        """SOP Instance UID -> is it committed? What is named twice is not."""
        return {uid: True for _, uid in self.committed} | {uid: False for _, uid, _ in self.failed}


@dataclass(frozen=True)
class Commitment:
    """One storage commitment that we asked a destination for."""

    transaction_uid: str
    accepted_at: datetime | None = None  # when the peer answered our N-ACTION with success
    over: str = ""  # why no report is awaited (any more); a late one is taken all the same
    again: bool = False  # an operator wants another one to be asked for
    report: CommitmentReport | None = None
    disputed: frozenset[str] = frozenset()  # SOP Instance UIDs of which a later report said something else

    @property
    def open(self) -> bool:
        return self.report is None and not self.over


FORMS = "forms"  # the folder beside results for what is made of them for a destination
FEEDBACK_KINDS = {  # what a reader can say of a finding
    "agree": "agree",
    "no-lesion": "not a lesion",
    "wrong-size": "wrong size",
    "missed": "missed one",
}


RETURNED_KINDS = {  # what an object that came back from a PACS says of a finding, or of a whole result
    "kept": "left as it was in an edited segmentation",
    "edited": "outline edited",
    "left-out": "left out of an edited segmentation",
    "added": "added by a reader",
    "rejected": "result rejected",
}


@dataclass(frozen=True)
class Feedback:
    """What a reader says of a finding, or of a lesion that the results do not have: on a page, or by an object that
    came back."""

    at: datetime
    reader: str
    series_uid: str
    job: str  # the inference whose results it is about
    kind: str  # of FEEDBACK_KINDS or RETURNED_KINDS
    finding: int | None = None  # its number; none of one that was missed or added
    label: str = ""
    place: Mapping[str, Any] | None = None  # of one that was missed: sop_instance_uid, frame, column, row, lps_mm
    object: str = ""  # SOP Instance UID of what came back; "": said on a page
    sender: str = ""  # AE title that brought it
    dice: float | None = None  # of an outline before and after: 2 |A and B| / (|A| + |B|)
    reason: str = ""  # why it was rejected, or why outlines are not compared
    made: str = ""  # when, by its maker's clock


@dataclass(frozen=True)
class SettingsVersion:
    """What a settings file was from `at` on, and how it came to be so."""

    id: int
    place: str  # the machine and the path of the file
    at: datetime
    who: str  # a user of the pages; "": whoever edited the file
    what: str  # "peer 'pacs' changed"
    difference: str  # to the one before, without secrets
    digest: str
    text: str = field(repr=False)  # all of it, with names in place of secrets: see settings_file.kept


Work = tuple[str, str, str]  # an inference as its duration is known: of a route, its pipeline, a digest of its options


@dataclass(frozen=True)
class Received:
    """A series as a route may be tried on it."""

    series_uid: str
    modality: str
    description: str
    arrived: int
    last_arrival: datetime
    fit: bool
    reason: str
    first_used: str  # SOP Instance UID; "": none was used
