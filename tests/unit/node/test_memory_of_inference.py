"""What an inference is expected to take is never less than it takes, and nothing is believed of a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacs_node.memory import Peaks, free_bytes, machine_bytes, size_class

MB = 1 << 20
SIZES = st.integers(1, 5000)


@given(st.integers(64, 4000), st.floats(0, 20), st.lists(SIZES, min_size=1, max_size=8), SIZES)
def test_a_job_takes_no_more_than_is_expected_of_it(base: int, each: float, measured: list[int], asked: int) -> None:
    """Of whatever grows with the files no faster than their number."""

    def takes(files: int) -> int:
        return int((base + each * files) * MB)

    peaks = Peaks()
    for files in measured:
        peaks.note("p", files, takes(files))
    expected = peaks.expected("p", asked)
    assert expected is not None
    assert expected.main >= takes(asked)
    assert expected.main <= 1.2 * takes(max(asked, *measured)) * max(1, asked / min(measured))


def test_what_was_never_run_is_not_known() -> None:
    peaks = Peaks()
    peaks.note("one", 10, 100 * MB)
    assert peaks.expected("another", 10) is None


def test_what_ran_out_is_said_of_all_that_are_as_large_until_one_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "inference" / "memory.json"
    peaks = Peaks(path)
    peaks.note("p", 10, 100 * MB, 7 * MB)
    peaks.note_ran_out("p", 100, "main")
    again = Peaks(path)
    small, same, larger = (again.expected("p", files) for files in (10, 100, 3000))
    assert (small and small.ran_out, same and same.ran_out, larger and larger.ran_out) == ("", "main", "main")
    again.note("p", 100, 500 * MB)
    grown = Peaks(path).expected("p", 100)
    assert grown is not None
    assert (grown.ran_out, grown.main >= 500 * MB) == ("", True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"p": {"x": {}}}', '{"p": {"1": {"no": 1}}}', "\0\xff", "7"])
def test_a_damaged_file_says_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(content)
    peaks = Peaks(path)
    assert peaks.expected("p", 1) is None
    peaks.note("p", 1, 100 * MB)
    assert Peaks(path).expected("p", 1) is not None


def test_a_full_disk_costs_no_inference(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    peaks = Peaks(tmp_path / "file" / "memory.json")  # no folder can be made there
    peaks.note("p", 1, 100 * MB)
    assert peaks.expected("p", 1) is not None


@given(SIZES)
def test_a_class_holds_sizes_up_to_twice_each_other(files: int) -> None:
    assert 2 ** size_class(files) >= files > 2 ** size_class(files) / 2 or files == 1


def test_this_machine_has_memory() -> None:
    assert 0 < free_bytes() <= machine_bytes() * 2
