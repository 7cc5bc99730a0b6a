"""C-STORE to a DICOM peer: propose only what is sent, read what was accepted, record every status."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import structlog
from pydicom.dataset import Dataset
from pynetdicom import _config, evt
from pynetdicom.association import Association

from pacs_node.association import (
    SUCCESS,
    Context,
    Peer,
    Rejected,
    association,
    contexts_of,
    named,
    why_not_accepted,
)
from pacs_node.association import NoneAccepted as NoContext
from pacs_node.deliver.destination import (
    Choice,
    Deferred,
    Forms,
    Memory,
    NoMemory,
    Now,
    Outcome,
    Undeliverable,
    Verbatim,
    file_meta,
    must_be_ours,
    outcome_of,
)
from pacs_node.errors import GiveUp, TryAgain, Unreachable
from pacs_node.records import Answer, Package, Receipt

log = structlog.get_logger(__name__)

_config.STORE_SEND_CHUNKED_DATASET = True  # the file's bytes as they are; pynetdicom would decode and re-encode them

VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 A.4
MOST_CONTEXTS = 128  # context ids are the odd numbers 1 to 255: PS3.8 9.3.2.2
SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6
NOT_AUTHORIZED = 0x0124  # PS3.7 C.5.24; another form would be no more welcome


@dataclass(frozen=True)
class Outgoing:
    """A file to send, by what its file meta information says."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> Context:
        return self.sop_class_uid, self.transfer_syntax_uid

    @classmethod
    def load(cls, path: Path) -> Outgoing:
        """Raises Undeliverable when it is no DICOM file."""
        return cls(path, *file_meta(path))


class NoneAccepted(Undeliverable):
    """Not one of the proposed presentation contexts was accepted; `why` of each."""

    def __init__(self, message: str, why: Mapping[Context, str]) -> None:
        super().__init__(message)
        self.why = why


class _BrokeOff(Exception):
    """No answer to a C-STORE."""


class _AskAgain(Exception):
    """Nothing is left to send a result as, but a form was left out because it was refused earlier."""


class DimseDestination:
    """A PACS that takes results by C-STORE. One association per package.

    Each result is proposed in all its forms, less those that were refused lately; of what is accepted the best is sent,
    and the receipt says in place of what, and why.
    """

    def __init__(self, peer: Peer, forms: Forms | None = None, memory: Memory | None = None) -> None:
        self.peer = peer
        self.name = peer.name
        self.forms: Forms = forms or Verbatim()
        self.memory: Memory = memory or NoMemory()

    def deliver(self, package: Package, now: Now) -> list[Receipt]:
        """See Destination."""
        refused = self.memory.refusals(now())
        if refused:
            try:
                return self._deliver(package, refused, now)
            except _AskAgain:
                log.info("destination.asked-again", destination=self.name)
        return self._deliver(package, {}, now)

    def _deliver(self, package: Package, refused: Mapping[Context, str], now: Now) -> list[Receipt]:
        """Raises _AskAgain, and has sent nothing, when a result can only go in a form that is among `refused`."""
        choices = [Choice(offer) for offer in self.forms.offers(package)]
        _leave_out(choices, refused)
        expected = self._make_ready(package, choices)
        _may_go_on(choices, refused)
        contexts = {form.context for choice in choices for form in choice.left}
        if not contexts:
            raise Undeliverable(f"{self.peer}: {'; '.join(choice.refusal() for choice in choices)}")
        answers: list[tuple[Receipt, Outcome | None]] = []
        try:
            with _association(self.peer, contexts) as opened:
                accepted = _accepted(opened)
                why_not = dict.fromkeys(contexts - accepted, "no answer to this one") | why_not_accepted(opened)
                self._heed(accepted & contexts, why_not, choices, refused, now)
                numbers, sent = count(1), dict[Path, tuple[Path, ...]]()
                must_be_ours(package, ())
                for choice in choices:
                    for answer in self._send(package, choice, sent, opened, numbers, now):
                        answers.append(answer)  # one by one: what was sent before it broke off counts
                        must_be_ours(package, _receipts(answers))
        except NoneAccepted as error:
            self._heed(set(), error.why, choices, refused, now)
            raise
        except _BrokeOff as error:
            raise Deferred(_broke_off(self.peer, len(answers), expected), _receipts(answers)) from error
        except TryAgain as error:
            raise Deferred(str(error), _receipts(answers)) from error
        return self._concluded(answers)

    def _heed(
        self,
        accepted: set[Context],
        why_not: Mapping[Context, str],
        choices: Sequence[Choice],
        refused: Mapping[Context, str],
        now: Now,
    ) -> None:
        """Remember what was negotiated and leave out what was not accepted. Raises _AskAgain when nothing is left."""
        self._remember(accepted, why_not, now)
        _leave_out(choices, why_not)
        _may_go_on(choices, refused)

    def _concluded(self, answers: Sequence[tuple[Receipt, Outcome | None]]) -> list[Receipt]:
        """The receipts. Raises Deferred or Undeliverable, which carry them, when one of them says so."""
        receipts, outcomes = _receipts(answers), {outcome for _, outcome in answers}
        refusals = "; ".join(receipt.text for receipt in receipts if not receipt.stored)
        if Outcome.AGAIN in outcomes:
            raise Deferred(f"{self.peer}: {refusals}", receipts)
        if Outcome.NEVER in outcomes:
            raise Undeliverable(f"{self.peer}: {refusals}", receipts)
        return receipts

    def _make_ready(self, package: Package, choices: Sequence[Choice]) -> int:
        """Make the files that will probably be sent, so that nobody waits for them on the line; how many they are."""
        files, sent = 0, dict[Path, tuple[Path, ...]]()
        for choice in choices:
            while choice.left:
                form = choice.left[0]
                try:
                    sent[choice.offer.path] = self.forms.prepare(package, choice.offer, form, sent).paths
                except GiveUp as error:
                    choice.cannot_be(form, str(error))
                    continue
                files += len(sent[choice.offer.path])
                break
        return files

    def _send(
        self,
        package: Package,
        choice: Choice,
        sent: dict[Path, tuple[Path, ...]],
        opened: Association,
        numbers: Iterator[int],
        now: Now,
    ) -> Iterator[tuple[Receipt, Outcome | None]]:
        """Send one result in its best form. The outcome is None where the refusal of one form leads to another."""
        while choice.left:
            form = choice.left[0]
            try:
                prepared = self.forms.prepare(package, choice.offer, form, sent)
            except GiveUp as error:
                choice.cannot_be(form, str(error))
                continue
            if choice.offer.optional and sent.get(choice.offer.path) == prepared.paths:
                return  # it went in the place of its original
            instead = choice.in_place_of(form, prepared.note)
            refusal = None
            for path in prepared.paths:
                each = Outgoing.load(path)
                status = _c_store(opened, each, next(numbers))
                receipt, outcome = _receipt(each, status.Status, status.get("ErrorComment", ""), now)
                if status.Status == SOP_CLASS_NOT_SUPPORTED:
                    self._remember(set(), {form.context: receipt.text}, now)
                others = [other for other in choice.left if other.name != form.name]
                if outcome is Outcome.NEVER and others and status.Status != NOT_AUTHORIZED:
                    refusal = receipt.text
                    yield receipt, None
                    break
                needed = outcome is not Outcome.NEVER or not choice.offer.optional
                yield replace(receipt, text=receipt.text + instead), outcome if needed else None
            if refusal is None:
                sent[choice.offer.path] = prepared.paths
                return
            choice.cannot_be(form, refusal)
        left_out = "; it is left out, it is not needed" if choice.offer.optional else ""
        words = choice.refusal() + left_out
        yield (
            Receipt(choice.offer.sop_instance_uid, False, None, words, now(), choice.offer.forms[0].sop_class_uid),
            None if choice.offer.optional else Outcome.NEVER,
        )

    def _remember(self, accepted: set[Context], refused: Mapping[Context, str], now: Now) -> None:
        answers = {**dict.fromkeys(accepted, None), **refused}
        at = now()
        self.memory.remember([Answer(*context, reason, at) for context, reason in sorted(answers.items())])


def send(
    paths: Iterable[Path],
    host: str,
    port: int,
    calling_ae: str,
    called_ae: str,
    now: Now,
    progress: Callable[[Receipt, int, int], None] | None = None,
) -> list[Receipt]:
    """Send files, and all files below folders, in as few associations as their presentation contexts allow.

    progress: told each receipt, how many are done, and of how many. Files that are not DICOM are passed over with a
    warning. Raises Deferred or Undeliverable when no association comes about or one breaks; they carry the receipts.
    """
    peer = Peer(called_ae, called_ae, host, port, calling_ae)
    outgoing = list(_readable(paths))
    receipts: list[Receipt] = []
    for batch in _batches(outgoing):
        try:
            for receipt, _ in _store_all(batch, peer, now):
                receipts.append(receipt)
                if progress:
                    progress(receipt, len(receipts), len(outgoing))
        except (Deferred, Undeliverable) as error:
            raise type(error)(str(error), receipts) from error
    return receipts


def echo(peer: Peer) -> str:
    """C-ECHO: "answered in 3 ms". Raises Deferred or Undeliverable with the reason why not."""
    with _association(peer, {(VERIFICATION, "1.2.840.10008.1.2")}) as opened:
        began = time.monotonic()
        status = opened.send_c_echo()
        if "Status" not in status:
            raise Deferred(f"{peer} did not answer C-ECHO within {peer.timeout_s:g} s")
        if status.Status != SUCCESS:
            raise Undeliverable(f"{peer} answered C-ECHO with 0x{status.Status:04X}")
        return f"answered in {(time.monotonic() - began) * 1000:.0f} ms"


def _store_all(outgoing: Sequence[Outgoing], peer: Peer, now: Now) -> Iterator[tuple[Receipt, Outcome]]:
    """Send each object over one association. Raises Deferred, with the receipts, when the association breaks."""
    receipts: list[Receipt] = []
    with _association(peer, {each.context for each in outgoing}) as opened:
        accepted, why_not = _accepted(opened), why_not_accepted(opened)
        for number, each in enumerate(outgoing, start=1):
            if each.context not in accepted:
                why = why_not.get(each.context, "no answer to this one")
                receipt, outcome = _not_accepted(each, why, now), Outcome.NEVER
            else:
                try:
                    status = _c_store(opened, each, number)
                except _BrokeOff as error:
                    raise Deferred(_broke_off(peer, len(receipts), len(outgoing)), receipts) from error
                receipt, outcome = _receipt(each, status.Status, status.get("ErrorComment", ""), now)
            receipts.append(receipt)
            yield receipt, outcome


def _c_store(opened: Association, each: Outgoing, number: int) -> Dataset:
    """Send one file; the status set. Raises _BrokeOff when there is no answer."""
    if not opened.is_established:
        raise _BrokeOff
    status = opened.send_c_store(each.path, msg_id=number % 0xFFFF)
    if "Status" not in status:
        raise _BrokeOff
    return status


def _receipts(answers: Sequence[tuple[Receipt, Outcome | None]]) -> list[Receipt]:
    return [receipt for receipt, _ in answers]


def _broke_off(peer: Peer, done: int, of: int) -> str:
    return f"{peer} broke off after {done} of {of} objects, or did not answer within {peer.timeout_s:g} s"


def _accepted(opened: Association) -> set[Context]:
    return {(str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in opened.accepted_contexts}


def _leave_out(choices: Iterable[Choice], refused: Mapping[Context, str]) -> None:
    for choice in choices:
        for form in [form for form in choice.left if form.context in refused]:
            choice.give_up(form, refused[form.context])


def _may_go_on(choices: Iterable[Choice], refused: Mapping[Context, str]) -> None:
    if refused and any(not choice.left and not choice.offer.optional for choice in choices):
        raise _AskAgain


def _receipt(each: Outgoing, status: int, comment: str, now: Now) -> tuple[Receipt, Outcome]:
    outcome, meaning = outcome_of(status)
    words = {Outcome.CHANGED: f"stored with a change: {meaning}"}.get(outcome, meaning)
    text = f"0x{status:04X} {words}" + (f" ({comment})" if comment else "")
    stored = outcome in (Outcome.STORED, Outcome.CHANGED)
    return Receipt(each.sop_instance_uid, stored, status, text, now(), each.sop_class_uid), outcome


def _not_accepted(each: Outgoing, why: str, now: Now) -> Receipt:
    words = f"{named(*each.context)} not accepted: {why}"
    return Receipt(each.sop_instance_uid, False, None, words, now(), each.sop_class_uid)


@contextmanager
def _association(
    peer: Peer, contexts: set[Context], handlers: Sequence[evt.EventHandlerType] = ()
) -> Iterator[Association]:
    """An association with the presentation contexts (SOP class, transfer syntax), released at the end.

    Raises Deferred or Undeliverable when it does not come about.
    """
    try:
        with association(peer, contexts_of(contexts), handlers=handlers) as opened:
            yield opened
    except (Deferred, Undeliverable, NoneAccepted):
        raise
    except NoContext as error:
        raise NoneAccepted(str(error), error.why) from error
    except Rejected as error:
        raise Undeliverable(str(error)) from error
    except Unreachable as error:
        raise Deferred(str(error)) from error


def _readable(paths: Iterable[Path]) -> Iterator[Outgoing]:
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            try:
                yield Outgoing.load(file)
            except GiveUp as error:
                log.warning("send.passed-over", file=str(file), reason=str(error))


def _batches(outgoing: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """In order, cut where one association would need more than 128 presentation contexts."""
    batch: list[Outgoing] = []
    contexts: set[Context] = set()
    for each in outgoing:
        if each.context not in contexts and len(contexts) == MOST_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.append(each)
        contexts.add(each.context)
    if batch:
        yield batch
