"""Which object is which of those that come back, whatever their headers say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import Dataset

from pacs_node.node import utc_now
from pacs_node.records import Instance
from pacs_node.returned import Returned
from pacs_node.stages import Unread


def instance(number: int) -> Instance:
    uids = (f"1.2.{number}", "1.2.840.10008.5.1.4.1.1.66.4", "1.2", "1.1", "1.2.840.10008.1.2.1")
    return Instance(*uids, Path(f"/{number}"), 1, utc_now(), "a", "PACS")


@pytest.mark.parametrize("said", [None, "", "1.2.999", "1.2.1"])
def test_a_header_that_names_another_instance_or_none_is_of_the_file_it_was_read_from(said: str | None) -> None:
    instances, files = [instance(1), instance(2), instance(3)], [Path("a"), Path("b"), Path("c")]
    wrong, right = Dataset(), Dataset()
    right.SOPInstanceUID = "1.2.3"
    if said is not None:
        wrong.SOPInstanceUID = said
    returned = Returned.__new__(Returned)
    headers = [wrong, right, Unread(instances[0], "cut off", None)]  # those that can be read come first
    returned.stages = SimpleNamespace(headers=lambda some, where: headers)  # type: ignore[assignment]
    told = list(returned._headers(instances, files))
    assert [(header, each, file) for header, each, file in told] == [
        (wrong, instances[1], files[1]),
        (right, instances[2], files[2]),
    ]
