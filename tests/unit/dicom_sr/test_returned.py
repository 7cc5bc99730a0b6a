"""What others made of our results is read element by element: one that cannot be read hides no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from dicom_sr import attributes, returned
from tests.results import encoded


def sequences(dataset: Dataset) -> Iterator[Dataset]:
    """The data set, and all items in it."""
    yield dataset
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            yield from sequences(item)


def spoilt(dataset: Dataset, vr: str | None, value: bytes) -> Iterator[Dataset]:
    """Each element of it, at every depth, in the place of one that cannot be decoded; and back again."""
    for item in sequences(dataset):
        for tag in list(item.keys()):
            kept = item._dict[tag]
            item._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
            yield dataset
            item._dict[tag] = kept


@pytest.mark.parametrize(("vr", "value"), [("'\"", b"??"), ("DS", b"1,5"), ("SQ", b"\xfe\xff\x00\xe0"), ("US", b"1")])
@pytest.mark.parametrize("modality", ["SEG", "SR"])
def test_whatever_cannot_be_read_the_rest_is(modality: str, vr: str, value: bytes) -> None:
    [dataset, *_] = [each for each in encoded("ct_two")[1] if each.Modality == modality]
    whole, ends = returned.named(dataset), 0
    assert whole.instances
    for damaged in spoilt(dataset, vr, value):
        named = returned.named(damaged)
        assert len(named.instances - whole.instances) <= 1, "but for the damaged one"
        returned.rejection(damaged), returned.rejected(damaged), returned.author(damaged)
        try:
            list(damaged.iterall())
        except (*attributes.UNREADABLE, OSError):
            ends += 1
    assert ends > 0 or vr in ("DS", "SQ"), "iterating ends at what cannot be read"
