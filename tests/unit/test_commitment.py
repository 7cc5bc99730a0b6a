"""Storage commitment as data sets, PS3.4 Annex J: what is asked and told survives the way over the wire."""

from __future__ import annotations

import itertools
import random
import re
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filereader import read_dataset
from pynetdicom.dsutils import decode, encode

from pacs_node.commitment import (
    Malformed,
    action_information,
    event_information,
    judge_request,
    read_report,
    read_request,
    reason_words,
)
from pacs_node.records import CommitmentReport
from tests.fuzz.conversations import odd_reference
from tests.fuzz.wire import Encoding, garbled

UID = re.compile(r"[0-9.]{1,64}")

uids = st.from_regex(r"\A[12]\.[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,4}\Z")
wanted = st.lists(st.tuples(uids, uids), min_size=1, max_size=6, unique_by=lambda each: each[1])


def over_the_wire(dataset: Dataset, implicit: bool) -> Dataset:
    return decode(BytesIO(encode(dataset, implicit, True)), implicit, True)


@settings(max_examples=40, deadline=None)
@given(uids, wanted, st.booleans())
def test_a_request_is_read_as_it_was_written(transaction: str, objects: list, implicit: bool) -> None:
    asked = over_the_wire(action_information(transaction, objects), implicit)
    assert read_request(asked) == (transaction, tuple(objects))


@settings(max_examples=40, deadline=None)
@given(uids, wanted, st.data(), st.booleans())
def test_a_report_names_each_instance_once_and_survives(
    transaction: str, objects: list, data: st.DataObject, implicit: bool
) -> None:
    held = {uid: data.draw(st.sampled_from([sop_class, "1.2.3.4"])) for sop_class, uid in data.draw(subset(objects))}
    report = judge_request(transaction, objects, held)
    kind, told = event_information(report)
    assert kind == (2 if report.failed else 1)
    assert read_report(over_the_wire(told, implicit)) == report
    assert sorted([*report.committed, *((c, i) for c, i, _ in report.failed)]) == sorted(objects)
    for sop_class, uid in objects:
        assert ((sop_class, uid) in report.committed) == (held.get(uid) == sop_class)


def subset(objects: list) -> st.SearchStrategy:
    return st.lists(st.sampled_from(objects), unique=True)


def test_the_reasons_are_those_of_the_standard() -> None:
    """PS3.3 C.14.1.1, read by hand."""
    report = judge_request("1.2", [("1.1", "1.5"), ("1.1", "1.6")], {"1.6": "1.9"})
    assert report.failed == (("1.1", "1.5", 0x0112), ("1.1", "1.6", 0x0119))
    assert reason_words(0x0112) == "0x0112 No such object instance"
    assert reason_words(0x0119) == "0x0119 Class/Instance conflict"
    assert reason_words(0x9999) == "0x9999 a reason that PS3.3 does not list"


@pytest.mark.parametrize("spoil", ["transaction", "long transaction", "sequence", "empty", "class", "instance"])
def test_what_is_no_request_is_refused_in_words(spoil: str) -> None:
    asked = action_information("1.2.3", [("1.1", "1.5")])
    match spoil:
        case "transaction":
            del asked.TransactionUID
        case "long transaction":
            asked.TransactionUID = "1." + "2" * 63
        case "sequence":
            del asked.ReferencedSOPSequence
        case "empty":
            asked.ReferencedSOPSequence = []
        case "class":
            del asked.ReferencedSOPSequence[0].ReferencedSOPClassUID
        case "instance":
            asked.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = ""
    with pytest.raises(Malformed, match=r"Transaction|Referenced"):
        read_request(asked)


def test_a_failure_without_a_reason_is_still_a_failure() -> None:
    _, told = event_information(CommitmentReport("1.2", (), (("1.1", "1.5", 0x0112),)))
    del told.FailedSOPSequence[0].FailureReason
    assert read_report(told).failed == (("1.1", "1.5", 0x0110),)


@pytest.mark.parametrize("number", range(300))
def test_whatever_a_peer_says_is_read_or_called_malformed(number: int) -> None:
    """Sequences that are none, UIDs that are texts, items without end: no other error, and only UIDs come of it."""
    rng = random.Random(number)
    encoding = Encoding(implicit=rng.random() < 0.5)
    content = encoding.data_set(odd_reference(rng, 1))
    content = garbled(rng, content) if rng.random() < 0.5 else content
    try:
        told = read_dataset(BytesIO(content), encoding.implicit, True)
    except Exception:  # noqa: BLE001 - pydicom's own, told apart where the data set is decoded
        return
    with suppress(Malformed):
        report = read_report(told)
        assert all(UID.fullmatch(uid) for pair in report.committed for uid in pair)
        assert all(0 <= reason <= 0xFFFF for *_, reason in report.failed)
    with suppress(Malformed):
        transaction, wanted = read_request(told)
        assert wanted
        assert all(UID.fullmatch(uid) for uid in (transaction, *itertools.chain(*wanted)))
