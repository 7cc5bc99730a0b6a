"""The tables against pydicom's decoders and against lists written by hand from the Standard."""

from ipaddress import ip_address

import pytest
from pydicom.pixels import get_decoder
from pydicom.uid import UID, AllTransferSyntaxes

from dicom_sr.modalities import IMAGE_CLASSES, MR_CLASSES
from pacs_node.receive.accept import (
    DECODED,
    FURTHER_SOP_CLASSES,
    KEPT_ONLY,
    LOSSY,
    STORAGE_SOP_CLASSES,
    TRANSFER_SYNTAXES,
    Callers,
    Rejection,
    accepted_for,
    most_per_peer,
    preferred,
    why_no_room,
)
from pacs_node.receive.address import resolved

# PS3.6 Table A-1, read by hand: every transfer syntax but JPIP, JPEG 2000 Part 2, SMPTE ST 2110 and retired JPEGs
FROM_PS3_6 = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.10008.1.2.8.1",
    *(f"1.2.840.10008.1.2.4.{end}" for end in (110, 111, 112)),
    *(f"1.2.840.10008.1.2.4.{end}" for end in range(100, 109)),
    *(f"1.2.840.10008.1.2.4.{end}.1" for end in range(100, 107)),
}
BY_THE_NODE = {"1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"}  # their frames are native ones
TOO_NEW_FOR_PYDICOM = {"1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage"}  # PS3.6 2025a
BY_HAND_LOSSY = {
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
    *("1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112"),
    *(f"1.2.840.10008.1.2.4.{end}" for end in range(100, 109)),
    *(f"1.2.840.10008.1.2.4.{end}.1" for end in range(100, 107)),
}
EXPLICIT, RLE, JPEG, MPEG, JPEG_XL = (f"1.2.840.10008.1.2.{end}" for end in ("1", "5", "4.50", "4.102", "4.110"))


def decodable(uid: str) -> bool:
    try:
        return get_decoder(uid).is_available
    except NotImplementedError:
        return False


def test_every_transfer_syntax_said_to_be_decoded_can_be_read() -> None:
    assert [uid for uid in DECODED if not decodable(uid) and uid not in BY_THE_NODE] == []
    assert not any(decodable(uid) for uid in KEPT_ONLY)


def test_every_transfer_syntax_that_can_be_read_is_accepted() -> None:
    assert {str(uid) for uid in AllTransferSyntaxes if decodable(uid)} | BY_THE_NODE == set(DECODED)
    assert set(DECODED) | set(KEPT_ONLY) == set(TRANSFER_SYNTAXES)


def test_the_list_is_the_one_of_the_standard() -> None:
    assert set(TRANSFER_SYNTAXES) == FROM_PS3_6


def test_the_lossy_ones() -> None:
    assert LOSSY == BY_HAND_LOSSY


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ([EXPLICIT, RLE], [EXPLICIT, RLE]),
        ([RLE, EXPLICIT], [RLE, EXPLICIT]),
        ([JPEG, EXPLICIT], [EXPLICIT, JPEG]),
        ([MPEG, JPEG], [JPEG, MPEG]),
        ([JPEG_XL, JPEG], [JPEG, JPEG_XL]),
        ([RLE, RLE], [RLE]),
        ([MPEG], [MPEG]),
        (["1.2.3"], []),
    ],
)
def test_preference(proposed: list[str], chosen: list[str]) -> None:
    assert preferred(proposed) == chosen


def test_what_other_modalities_bring_is_what_the_verdict_knows() -> None:
    assert {modality: set(classes) for modality, classes in FURTHER_SOP_CLASSES.items()} == {
        modality: set(map(str, classes)) for modality, classes in IMAGE_CLASSES.items() if modality not in ("CT", "US")
    }
    assert accepted_for(["CT", "US", "XA"]) == STORAGE_SOP_CLASSES
    assert accepted_for(["MR"]).keys() - STORAGE_SOP_CLASSES.keys() == set(map(str, MR_CLASSES))
    for classes in FURTHER_SOP_CLASSES.values():
        for uid, name in classes.items():
            assert f"{name.replace(' Image - ', ' Image Storage - ')} Storage".startswith(UID(uid).name)


@pytest.mark.parametrize("uid", STORAGE_SOP_CLASSES)
def test_names_are_those_of_the_registry(uid: str) -> None:
    def plain(name: str) -> str:
        return name.replace("-", " ").replace(" Storage", "").lower()

    registered = UID(uid)
    if registered.is_retired:
        assert STORAGE_SOP_CLASSES[uid].endswith("(retired)")
        assert plain(STORAGE_SOP_CLASSES[uid].removesuffix(" (retired)")) == plain(registered.name.split(" (")[0])
    else:
        assert plain(STORAGE_SOP_CLASSES[uid]) == plain(TOO_NEW_FOR_PYDICOM.get(uid, registered.name))


@pytest.mark.parametrize(
    ("calling", "called", "expected"),
    [
        ("ME", "NODE", None),
        ("ME  ", " NODE", None),
        ("me", "NODE", (1, 1, 3)),  # AE titles are case sensitive
        ("OTHER", "NODE", (1, 1, 3)),
        ("", "NODE", (1, 1, 3)),
        ("ME", "NOD", (1, 1, 7)),
        ("OTHER", "NOD", (1, 1, 7)),
    ],
)
def test_callers(calling: str, called: str, expected: tuple[int, int, int] | None) -> None:
    rejection = Callers("NODE", frozenset({"ME"})).why_rejected(calling, called, "10.0.0.5")
    assert codes(rejection) == expected
    if rejection:
        assert repr(calling.strip()) in rejection.words


def test_nobody_may_send_when_nobody_is_listed() -> None:
    assert codes(Callers("NODE", frozenset()).why_rejected("ME", "NODE", "10.0.0.5")) == (1, 1, 3)


PLACES = {  # where a call comes from -> is it one of the hosts below?
    "10.0.0.5": True,
    "::ffff:10.0.0.5": True,  # as a socket of both families writes it
    "2001:db8::5": True,
    "2001:DB8:0:0::5": True,
    "fe80::1%eth0": True,
    "10.0.0.6": False,
    "::ffff:10.0.0.6": False,
    "110.0.0.5": False,
    "2001:db8::50": False,
    "": False,
    "not an address": False,
}
HOSTS = {  # what the settings name -> whether that can be compared now
    "nothing": ((), True),
    "addresses": (("10.0.0.5", "2001:db8::5", "fe80::1"), True),
    "mapped": (("::ffff:10.0.0.5", "2001:db8:0::5", "fe80::1"), True),
    "a name": (("pacs.example",), True),
    "a name that does not resolve": (("gone.example",), False),
    "that and an address": (("gone.example", "10.0.0.5", "2001:db8::5", "fe80::1"), False),
    "two names": (("other.example", "pacs.example"), True),
}
NAMES = {
    "pacs.example": {"10.0.0.5", "2001:db8::5", "fe80::1"},
    "other.example": {"10.1.1.1"},
    "gone.example": set[str](),
}


@pytest.mark.parametrize("calling", ["ME", "ME ", "OTHER", "STRANGER"])
@pytest.mark.parametrize(("hosts", "sure"), HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize(("address", "there"), PLACES.items())
def test_a_title_counts_only_at_its_hosts(
    calling: str, hosts: tuple[str, ...], sure: bool, address: str, there: bool
) -> None:
    """Title known or not, address right, wrong or not to be compared now, setting on or off."""
    callers = Callers(
        "NODE",
        frozenset({"ME", "OTHER"}),
        {"ME": hosts, "STRANGER": ("10.0.0.5",)},
        lambda name: frozenset(map(ip_address, NAMES[name])),
    )
    rejection = callers.why_rejected(calling, "NODE", address)
    if calling == "STRANGER":
        expected: tuple[int, int, int] | None = (1, 1, 3)
    elif calling == "OTHER" or not hosts or (there and hosts != ("gone.example",)):
        expected = None
    else:
        expected = (1, 1, 3) if sure else (2, 1, 1)
    assert codes(rejection) == expected
    if rejection and calling != "STRANGER":
        assert f"calls from {address}, not from {' or '.join(hosts)}" in rejection.words
        assert ("cannot be resolved now" in rejection.words) is not sure
    assert codes(callers.why_rejected(calling, "NOBODY", address)) == (1, 1, 7)


def test_names_are_those_of_this_machine() -> None:
    assert ip_address("127.0.0.1") in resolved("localhost")
    assert resolved("no.such.name.invalid") == resolved("a" * 300) == resolved("..") == frozenset()


def test_room() -> None:
    me, you = ("ME", "10.0.0.1"), ("YOU", "10.0.0.2")
    assert why_no_room(me, [you], 2, 2, draining=False) is None
    assert codes(why_no_room(me, [you, you], 2, 2, draining=False)) == (2, 3, 2)
    assert codes(why_no_room(me, [], 2, 2, draining=True)) == (2, 3, 1)


@pytest.mark.parametrize(
    ("caller", "words"),
    [
        (("ME", "10.0.0.1"), "2 associations of 'ME' are open, 2 are allowed"),
        (("ME", "10.0.0.9"), "2 associations of 'ME' are open, 2 are allowed"),
        (("YOU", "10.0.0.1"), "2 associations from 10.0.0.1 are open, 2 are allowed"),
        (("YOU", "10.0.0.9"), None),
    ],
)
def test_one_peer_has_a_limit_of_its_own_by_title_and_by_address(caller: tuple[str, str], words: str | None) -> None:
    rejection = why_no_room(caller, [("ME", "10.0.0.1")] * 2, 10, 2, draining=False)
    assert (rejection.words if rejection else None) == words
    assert codes(rejection) == (None if words is None else (2, 3, 2))


def test_what_one_peer_may_hold() -> None:
    """One that is alone all; of several none the last, if there are two."""
    for most in range(1, 60):
        assert most_per_peer(0, most, {"ME"}) == most
        left = most - most_per_peer(0, most, {"ME", "YOU"})
        assert left >= most / 5 or most == 1
        assert left < most
        assert left == 0 or left < most / 5 + 1
    assert most_per_peer(0, 10, {"ME", "YOU"}) == 8
    assert [most_per_peer(asked, 10, {"ME", "YOU"}) for asked in (1, 9, 10, 99)] == [1, 9, 10, 10]
    assert most_per_peer(3, 10, {"ME"}) == 3


def codes(rejection: Rejection | None) -> tuple[int, int, int] | None:
    return rejection and (rejection.result, rejection.source, rejection.reason)
