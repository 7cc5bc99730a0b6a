"""What every destination promises, and what an answer to C-STORE means for the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Protocol

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from pacs_node.association import named
from pacs_node.errors import GiveUp, TakenOver, TryAgain
from pacs_node.records import Answer, Form, Offer, Package, Prepared, Receipt

Now = Callable[[], datetime]


class Destination(Protocol):
    """Where results go. Delivering the same package again does no harm."""

    name: str

    def deliver(self, package: Package, now: Now) -> list[Receipt]:
        """Hand over every object; one Receipt each, all of them stored.

        Raises Deferred when trying again may help, else Undeliverable; TakenOver as soon as the package is another
        worker's. All carry the receipts gained so far.
        """


class Deferred(TryAgain):
    """The destination is down, full or busy."""


class Undeliverable(GiveUp):
    """The destination will not take it, however often it is sent."""


class Forms(Protocol):
    """In which forms a package can be sent, and their files."""

    def offers(self, package: Package) -> Iterator[Offer]:
        """Each result of the package, in sending order. Raises Undeliverable for a file that is not DICOM."""

    def prepare(self, package: Package, offer: Offer, form: Form, sent: Mapping[Path, Sequence[Path]]) -> Prepared:
        """The files of one form of a result, made now if they were not before; the same bytes each time.

        sent: what was sent in place of the results before this one, for what it refers to.
        Raises GiveUp with the reason when the result cannot be said so; TryAgain when the disk is full.
        """


class Memory(Protocol):
    """What a destination accepted and refused before."""

    def refusals(self, now: datetime) -> Mapping[tuple[str, str], str]:
        """(SOP class, transfer syntax) -> the reason; only refusals so recent that it need not be asked again."""

    def remember(self, answers: Sequence[Answer]) -> None: ...


class Verbatim:
    """Every file is sent as it is, or not at all."""

    def offers(self, package: Package) -> Iterator[Offer]:
        for path in package.paths:
            sop_class_uid, sop_instance_uid, transfer_syntax_uid = file_meta(path)
            form = Form(named(sop_class_uid, transfer_syntax_uid), sop_class_uid, transfer_syntax_uid)
            yield Offer(path, sop_instance_uid, (form,))

    def prepare(self, package: Package, offer: Offer, form: Form, sent: Mapping[Path, Sequence[Path]]) -> Prepared:
        return Prepared((offer.path,))


class NoMemory:
    """Remembers nothing: everything is asked each time."""

    def refusals(self, now: datetime) -> Mapping[tuple[str, str], str]:
        return {}

    def remember(self, answers: Sequence[Answer]) -> None:
        pass


@dataclass
class Choice:
    """The forms of one result that are still possible, and why the better ones are not."""

    offer: Offer
    left: list[Form] = field(init=False)
    why_not: dict[Form, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = list(self.offer.forms)

    def give_up(self, form: Form, reason: str) -> None:
        self.left.remove(form)
        self.why_not[form] = reason

    def cannot_be(self, form: Form, reason: str) -> None:
        """Give up a form in every encoding."""
        for same in [other for other in self.left if other.name == form.name]:
            self.give_up(same, reason)

    def in_place_of(self, sent: Form, note: str) -> str:
        """ "; RT Structure Set in place of Segmentation: the SOP class is not supported", or nothing to say."""
        better = self.offer.forms[: self.offer.forms.index(sent)]
        reasons = {form.name: self.why_not[form] for form in better if form.name != sent.name}
        if reasons:
            (best, why), *others = reasons.items()
            said = [f"{sent.name} in place of {best}: {why}", *(f"{name}: {why}" for name, why in others)]
        else:
            said = [f"in {UID(sent.transfer_syntax_uid).name}: {self.why_not[form]}" for form in better]
        return "".join(f"; {words}" for words in (*said, *([note] if note else [])))

    def refusal(self) -> str:
        """Why none of its forms can be sent."""
        reasons = {form.name: why for form, why in self.why_not.items()}
        return "; ".join(f"{name} not accepted: {why}" for name, why in reasons.items())


def must_be_ours(package: Package, receipts: Sequence[Receipt]) -> None:
    """Before each object. Raises TakenOver."""
    if not package.is_ours():
        raise TakenOver(f"another worker has taken it over; {len(receipts)} objects had been stored", receipts)


def file_meta(path: Path) -> tuple[str, str, str]:
    """SOP Class, SOP Instance and Transfer Syntax UID of a file. Raises Undeliverable when it is no DICOM file."""
    try:
        meta = read_file_meta_info(path)
        return meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
    except (InvalidDicomError, AttributeError, EOFError, FileNotFoundError) as error:
        raise Undeliverable(f"{path.name} is no DICOM file: {error}") from error


class Outcome(Enum):
    STORED = "stored"
    CHANGED = "stored with a change"
    AGAIN = "not now"
    NEVER = "refused"


# first status, last status, outcome, meaning
STATUSES: tuple[tuple[int, int, Outcome, str], ...] = (
    (0x0000, 0x0000, Outcome.STORED, "Success"),  # PS3.4 Table B.2-1, as all without another cite
    (0xB000, 0xB000, Outcome.CHANGED, "Coercion of Data Elements"),
    (0xB006, 0xB006, Outcome.CHANGED, "Elements Discarded"),
    (0xB007, 0xB007, Outcome.CHANGED, "Data Set does not match SOP Class"),
    (0xA700, 0xA7FF, Outcome.AGAIN, "Refused: Out of Resources"),
    (0xA900, 0xA9FF, Outcome.NEVER, "Error: Data Set does not match SOP Class"),
    (0xC000, 0xCFFF, Outcome.NEVER, "Error: Cannot understand"),
    (0x0110, 0x0110, Outcome.AGAIN, "Processing failure"),  # PS3.7 C.5.16
    (0x0111, 0x0111, Outcome.STORED, "Duplicate SOP Instance: it is there already"),  # PS3.7 C.5.5
    (0x0117, 0x0117, Outcome.NEVER, "Invalid SOP Instance"),  # PS3.7 C.5.9
    (0x0122, 0x0122, Outcome.NEVER, "Refused: SOP Class not supported"),  # PS3.7 C.5.6
    (0x0124, 0x0124, Outcome.NEVER, "Refused: Not authorized"),  # PS3.7 C.5.24
    (0x0210, 0x0210, Outcome.AGAIN, "Duplicate invocation"),  # PS3.7 C.5.7
    (0x0211, 0x0211, Outcome.NEVER, "Unrecognized operation"),  # PS3.7 C.5.23
    (0x0212, 0x0212, Outcome.NEVER, "Mistyped argument"),  # PS3.7 C.5.15
    (0x0213, 0x0213, Outcome.AGAIN, "Resource limitation"),  # PS3.7 C.5.20
)


def outcome_of(status: int) -> tuple[Outcome, str]:
    """What a C-STORE status means, and its name. An unknown failure is tried again: the job's attempts are limited."""
    for first, last, outcome, meaning in STATUSES:
        if first <= status <= last:
            return outcome, meaning
    if 0xB000 <= status <= 0xBFFF:  # Warning: PS3.7 C.3
        return Outcome.CHANGED, "a warning that PS3.4 does not list"
    return Outcome.AGAIN, "a failure that PS3.4 does not list"


def first_possible(
    forms: Forms, package: Package, choice: Choice, sent: Mapping[Path, Sequence[Path]]
) -> tuple[tuple[Path, ...], str]:
    """For what takes everything: the files of the best form that can be made, and the words of why not a better."""
    while choice.left:
        form = choice.left[0]
        try:
            prepared = forms.prepare(package, choice.offer, form, sent)
        except GiveUp as error:
            choice.cannot_be(form, str(error))
            continue
        return tuple(prepared.paths), choice.in_place_of(form, prepared.note)
    if choice.offer.optional:
        return (), ""
    raise Undeliverable(choice.refusal())
