"""Findings kept with their job come back as they were, to the last bit: the same findings make the same bytes."""

from __future__ import annotations

import dataclasses
import random
import typing
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.coding import Code

from dicom_sr import codes, encode
from dicom_sr.findings import (
    Algorithm,
    Axis,
    ComparedWith,
    Evaluation,
    Finding,
    Findings,
    ImageRef,
    Measurement,
)
from pacs_node import kept
from pacs_node.records import Stored
from tests.results import CASES, encoded

ODD = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 0.0, -0.0, 1e16, 123456.789012345, float("inf"))


def anything(jitter: random.Random) -> Findings:
    """Findings with every field filled, with odd numbers."""

    def number() -> float:
        return jitter.choice([*ODD, jitter.random(), jitter.uniform(-1e6, 1e6)])

    def code() -> Code:
        return jitter.choice([codes.LUNG, codes.LEFT, Code("1", "99X", "Größe ≥ 3", "4.0")])

    def measurement() -> Measurement:
        return Measurement(code(), number(), codes.MM, jitter.choice([None, codes.MEAN]))

    def axis() -> Axis | None:
        return jitter.choice([None, Axis(jitter.randrange(9), (number(), number()), (number(), number()))])

    def finding(n: int) -> Finding:
        shape = tuple(jitter.randrange(1, 6) for _ in range(3))
        return Finding(
            number=n,
            label=f"Nodule {n}",
            category=code(),
            type=code(),
            site=code(),
            laterality=jitter.choice([None, codes.RIGHT]),
            mask=np.array([jitter.random() < 0.5 for _ in range(int(np.prod(shape)))]).reshape(shape),
            offset_zyx=(jitter.randrange(99), jitter.randrange(99), jitter.randrange(99)),
            key_image=jitter.randrange(9),
            certainty=jitter.random(),
            long_axis=axis(),
            short_axis=axis(),
            measurements=tuple(measurement() for _ in range(jitter.randrange(3))),
            evaluations=(Evaluation(code(), code()),),
            predecessor_uid=jitter.choice([None, "1.2.3"]),
            change=jitter.choice(["", "grew by 1 mm"]),
        )

    return Findings(
        pipeline="lung-nodule",
        geometry="volume",
        images=tuple(ImageRef("1.2", f"1.2.{n}", jitter.choice([None, n + 1])) for n in range(3)),
        findings=tuple(finding(n) for n in range(1, jitter.randrange(1, 5))),
        algorithm=Algorithm("a", "0.1+12345678"),
        measurements=(measurement(),),
        evaluations=(Evaluation(code(), code()),),
        warnings=("slices are thick", "ä"),
        facts={"seconds": number(), "device": "cpu", "slices": 3},
        sought=code(),
        sought_site=jitter.choice([None, codes.LUNG]),
        compared_with=jitter.choice(
            [None, ComparedWith("1", "2", "3", "4", date(2026, 1, 2), 184, number(), 1, ("one", "two"))]
        ),
        variant='{"views": 1}',
    )


def same(one: object, other: object) -> None:
    """Equal in every value and in its type, arrays to the last element."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == typing.cast(np.ndarray, other).dtype
        np.testing.assert_array_equal(one, typing.cast(np.ndarray, other))
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(typing.cast(tuple, other))
        for mine, its in zip(one, typing.cast(tuple, other), strict=True):
            same(mine, its)
    elif isinstance(one, float):
        assert repr(one) == repr(other)
    else:
        assert one == other


@pytest.mark.parametrize("seed", range(30))
def test_what_is_kept_comes_back_as_it_was(tmp_path: Path, seed: int) -> None:
    findings = anything(random.Random(seed))
    path = tmp_path / "job" / "findings.npz"
    same(kept.keep(path, findings), findings)
    same(kept.load_kept(path), findings)
    assert [each.name for each in path.parent.iterdir()] == ["findings.npz"]


def test_numbers_of_numpy_come_back_as_they_will_the_next_time(tmp_path: Path) -> None:
    """float32 has no JSON: what a job goes on with is what was read back, so both runs write the same."""
    findings = dataclasses.replace(anything(random.Random(1)), facts={"share": np.float32(0.1), "n": np.int64(3)})
    first = kept.keep(tmp_path / "a", findings)
    same(kept.load_kept(tmp_path / "a"), first)
    assert first.facts == {"share": float(np.float32(0.1)), "n": 3}


@pytest.mark.parametrize("name", CASES)
def test_kept_findings_make_the_same_bytes(tmp_path: Path, name: str) -> None:
    case, _ = encoded(name)
    when = datetime(2026, 3, 14, 12, tzinfo=UTC)

    def written(said: Findings, name: str) -> list[bytes]:
        paths = []
        for number, each in enumerate(encode(said, case.headers, when=when)):
            each.save_as(tmp_path / f"{name}{number}", enforce_file_format=True)
            paths.append(tmp_path / f"{name}{number}")
        return [path.read_bytes() for path in paths]

    assert written(kept.keep(tmp_path / "kept", case.findings), "kept") == written(case.findings, "new")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pickle", "another form"])
def test_what_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "findings.npz"
    assert kept.load_kept(path) is None
    kept.keep(path, anything(random.Random(2)))
    whole = path.read_bytes()
    if damage == "pickle":
        np.savez(path, **{kept.TEXT: np.array([{"a": 1}], object)})
    elif damage == "another form":
        np.savez(path, **{kept.TEXT: np.frombuffer(b'{"colour": "red"}', np.uint8)})
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"not a zip " * 30}[damage])
    assert kept.load_kept(path) is None
    kept.keep(path, anything(random.Random(3)))
    same(kept.load_kept(path), anything(random.Random(3)))


def test_another_question_has_another_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    files = [Stored(tmp_path / "a"), Stored(tmp_path / "b")]
    first = kept.request_digest("lung-nodule", {"views": 1}, files)
    assert kept.request_digest("lung-nodule", {"views": 1}, files) == first
    others = [
        kept.request_digest("breast-us", {"views": 1}, files),
        kept.request_digest("lung-nodule", {"views": 2}, files),
        kept.request_digest("lung-nodule", {}, files),
        kept.request_digest("lung-nodule", {"views": 1}, files[:1]),
        kept.request_digest("lung-nodule", {"views": 1}, files[::-1]),
        kept.request_digest("lung-nodule", {"views": 1}, [*files, Stored(tmp_path / "gone")]),
        kept.request_digest("lung-nodule", {"views": 1}, [Stored(tmp_path / "a.pack", 128, 10)]),
        kept.request_digest("lung-nodule", {"views": 1}, [Stored(tmp_path / "a.pack", 266, 10)]),
    ]
    (tmp_path / "b").write_bytes(b"22")
    others.append(kept.request_digest("lung-nodule", {"views": 1}, files))
    assert len({first, *others}) == 10
