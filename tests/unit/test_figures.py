"""Figures and where they come from: every file of figures names weights, data, commit and command, and every figure of
a card is in a file.

Held against the files are intervals (a value with its two ends must be one entry of a file), and single numbers of
two or more decimals, which must be in a file that the card names. A number that no file holds is called (not
recorded).
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from models import weights
from models.training.evaluation.provenance import NOT_RECORDED, digests, faults, of_trainings, write_figures
from models.training.export import git_sha

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
OF_NO_NETWORK = {"fuzz.json", "reliability.json"}  # of the node: each entry names its commit and machine
FILES = sorted([*RESULTS.glob("*.json"), *(ROOT / "models").glob("*/figures*.json")])
FIGURES = [path for path in FILES if path.name not in OF_NO_NETWORK]
CARDS = sorted((ROOT / "models").glob("*/CARD.md"))
# of weights that are not served: former ones, those of one hospital alone; what others measured of both
NOT_SERVED = {
    "breast_us_hospitals_former.json",
    "breast_us_hospitals_second.json",
    "breast_us_hospitals_third.json",
    "breast_us_hospitals_rio.json",
    "independent.json",
    "lung_baselines.json",
}
OF_ITEMS = {"scores", "nodules", "labels", "patients"}  # lists of single nodules: any number is in one
NUMBER = r"-?\d+\.\d+"
UNITS = ("%", "mm", "mm3", "ml", "HU", "s", "ms", "MB", "GB", "pixels")
UNIT = rf"(?: ?(?:{'|'.join(UNITS)}))?"  # of a value, and of the ends, which may repeat it
INTERVAL = re.compile(
    rf"({NUMBER}){UNIT}\**,? ?\(({NUMBER}){UNIT} to ({NUMBER}){UNIT}\)|(?<!\()({NUMBER}), ({NUMBER}) to ({NUMBER})"
)
SINGLE = re.compile(r"(?<![\w.-])-?\d+\.\d{2,}(?!\w|\.\d)")
SET = re.compile(rf"by {NUMBER} to {NUMBER}\b")  # hyper-parameters: scaled by 0.85 to 1.15


@cache
def document(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def parts(value: Any) -> Iterator[Any]:
    """A value and all that is in it, but for lists of single items."""
    yield value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        if name not in OF_ITEMS:
            yield from parts(one)


def numbers(path: Path) -> set[float]:
    return {float(one) for one in parts(document(path)) if isinstance(one, int | float)}


@cache
def intervals() -> list[tuple[float, ...]]:
    entries = [one for path in FILES for one in parts(document(path))]
    ends = [tuple(one[key] for key in ("value", "low", "high")) for one in entries if is_interval(one)]
    return [*ends, *(tuple(100 * end for end in each) for each in ends)]  # in percent, too


def is_interval(entry: Any) -> bool:
    return isinstance(entry, dict) and {"value", "low", "high"} <= set(entry)


def rounds_to(value: float, text: str) -> bool:
    return abs(value - float(text)) <= 0.5 * 10 ** -len(text.split(".")[1]) + 1e-9


def is_of(three: list[str], ends: tuple[float, ...]) -> bool:
    return all(rounds_to(value, text) for value, text in zip(ends, three, strict=True))


def prose(card: Path) -> str:
    """A card on one line, without its commands, names and titles of papers."""
    text = re.sub(r"(?m)^    .*$", "", card.read_text("utf-8"))
    line = re.sub(r"\s+", " ", re.sub(r"doi \S+|`[^`]*`", "", text))
    return SET.sub("", line)


def named(card: Path) -> list[Path]:
    """The files in docs/results that a card names, the JSON of a page too, and the JSON beside its weights."""
    text = card.read_text("utf-8")
    stems = set(re.findall(r"([a-z0-9_]+)\.(?:json|md|csv|svg|png)`", text))
    files = [path for path in RESULTS.glob("*.*") if path.stem in stems and path.suffix in (".json", ".md", ".csv")]
    return [*files, *card.parent.glob("*.json")]


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_a_file_of_figures_names_weights_data_commit_and_command(path: Path) -> None:
    assert list(faults(document(path))) == []


def test_a_figure_that_is_called_served_is_of_the_weights_that_are_shipped() -> None:
    shipped = {json.loads(path.read_text("utf-8"))["sha256"] for path in sidecars()}
    looked = 0
    for path in FIGURES:
        said = document(path).get("provenance", {}).get("weights_sha256")
        if isinstance(said, dict) and path.name not in NOT_SERVED:
            assert set(said.values()) <= shipped, path.name
            looked += 1
    assert looked >= 9


def sidecars() -> list[Path]:
    return [path.with_suffix(".json") for path in Path(weights.__file__).parent.rglob("*.safetensors")]


@pytest.mark.parametrize("card", [*CARDS, ROOT / "docs" / "systems.md"], ids=lambda path: path.parent.name)
def test_every_interval_of_a_card_is_an_entry_of_a_file(card: Path) -> None:
    found = [[text for text in match.groups() if text] for match in INTERVAL.finditer(prose(card))]
    missing = [three for three in found if not any(is_of(three, ends) for ends in intervals())]
    assert len(found) > 10
    assert missing == []


@pytest.mark.parametrize("bold", ["", "**"])
@pytest.mark.parametrize("unit", ["", *(space + unit for unit in UNITS for space in ("", " "))])
@pytest.mark.parametrize("ends", ["({0} to {1})", "({0}{unit} to {1}{unit})", "({0} to {1}{unit})"])
def test_an_interval_is_seen_however_its_unit_is_written(bold: str, unit: str, ends: str) -> None:
    for three in (("1.06", "0.71", "1.28"), ("-0.6", "-3.1", "0.25"), ("0.50", "0.49", "0.51")):
        text = f"longer by {bold}{three[0]}{unit}{bold} {ends.format(*three[1:], unit=unit)} in the median"
        (match,) = INTERVAL.finditer(text)
        assert [one for one in match.groups() if one] == [*three]


@pytest.mark.parametrize("cut", range(9))
def test_an_interval_is_seen_wherever_its_line_breaks(cut: int, tmp_path: Path) -> None:
    words = ["and", "it", "is", "1.06", "mm", "(0.71", "to", "1.28)", "longer"]
    (tmp_path / "CARD.md").write_text(" ".join(words[:cut]) + "\n" + " ".join(words[cut:]))
    (match,) = INTERVAL.finditer(prose(tmp_path / "CARD.md"))
    assert match.groups()[:3] == ("1.06", "0.71", "1.28")


AROUND = ["{} of theirs", "falls to {}.", "({})", "{}, and", "**{}**", "| {} |", "{} mm", "{}%"]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("number", ["0.94", "-0.25", "1.060", "12.34"])
def test_a_number_of_two_decimals_is_seen_wherever_it_stands(around: str, number: str) -> None:
    assert [match[0] for match in SINGLE.finditer(f"a volume {around.format(number)} beside")] == [number]


@pytest.mark.parametrize("words", ["version 0.3.0", "v0.31", "TIFF 6.0", "w12.34x"])
def test_versions_are_no_figures(words: str) -> None:
    assert not SINGLE.search(words)


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_every_number_of_a_card_is_in_a_file_that_it_names(card: Path) -> None:
    files = named(card)
    known = {value for path in files if path.suffix == ".json" for value in numbers(path)}
    words = {word for path in files if path.suffix != ".json" for word in re.findall(NUMBER, path.read_text("utf-8"))}
    text = prose(card)
    missing = [
        match[0]
        for match in SINGLE.finditer(text)
        if match[0] not in words
        and not any(rounds_to(value, match[0]) for value in known)
        and f"({NOT_RECORDED})" not in text[match.end() : match.end() + 90]
    ]
    assert missing == []


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_a_card_says_what_of_its_figures_was_not_recorded(card: Path) -> None:
    paragraph = card.read_text("utf-8").split("### Provenance", 1)[1].split("\n#", 1)[0]
    lacking = {path.name for path in named(card) if path in FIGURES and NOT_RECORDED in str(document(path))}
    assert {name for name in lacking if f"`{name}`" not in paragraph} == set()
    assert NOT_RECORDED in paragraph or not lacking


def looks() -> list[dict[str, str]]:
    return [*csv.DictReader((RESULTS / "looks.csv").read_text("utf-8").splitlines())]


def told_looks(text: str) -> Counter[str]:
    """How many looks a card says of each system: "**Looks at test** (...): 9 of `nodulenet`, 7 of `ccfam_fpn`." """
    said = re.search(r"\*\*Looks at test\*\*.*?: (.*?)\.(?:\s|$)", text, re.DOTALL)
    return Counter({name: int(count) for count, name in re.findall(r"(\d+)\s+of\s+`(\w+)`", said[1] if said else "")})


def test_cards_say_how_often_each_system_was_looked_at() -> None:
    """All of them together, so that no system of the list is left out and none is told of twice."""
    told = [told_looks(card.read_text("utf-8")) for card in CARDS]
    assert sum(told, Counter()) == Counter(look["system"] for look in looks())
    assert sum(len(one) for one in told) == len({look["system"] for look in looks()})


@pytest.mark.parametrize("number", range(12))
def test_one_look_more_or_less_is_seen(number: int) -> None:
    assert told_looks(f"**Looks at test** (`looks.csv`, some later): {number} of `a`,\n12\nof `b`. 3 of `c`.") == {
        "a": number,
        "b": 12,
    }


def test_a_look_says_when_what_and_why() -> None:
    for look in looks():
        assert None not in look, look
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", look["date"]), look
        assert re.fullmatch(r"[0-9a-f]{7,8}", look["commit"]), look
        assert min(len(look["system"]), len(look["split"]), len(look["why"])) > 3, look
    assert [look["date"] for look in looks()] == sorted(look["date"] for look in looks())


def test_what_is_written_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.zip").write_bytes(b"images")
    data = digests([tmp_path / "data"])
    assert data == {"a.zip": hashlib.sha256(b"images").hexdigest()} == digests([tmp_path / "data" / "a.zip"])
    write_figures(tmp_path / "x.json", {"AP": 0.5}, {"net": "0" * 64}, data)
    written = json.loads((tmp_path / "x.json").read_text())
    assert list(faults(written)) == []
    assert (written["AP"], written["provenance"]["commit"]) == (0.5, git_sha())
    assert written["provenance"]["command"].startswith("python ")
    assert str(tmp_path) not in written["provenance"]["command"]


def test_of_trainings_named_are_their_weights_and_the_commit_that_trained_them(tmp_path: Path) -> None:
    for seed, commit in (("1", "a" * 40), ("2", "b" * 40)):
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "row.safetensors").write_bytes(b"")
        (tmp_path / seed / "row.json").write_text(json.dumps({"sha256": seed * 64, "git_sha": commit}))
    said = of_trainings(tmp_path, {"a.zip": "0" * 64})
    assert said["weights_sha256"] == {f"{seed}/row.safetensors": seed * 64 for seed in "12"}
    assert said["commit"] == f"{'a' * 40}, {'b' * 40}"
    assert list(faults({"provenance": said})) == []
    (tmp_path / "none").mkdir()
    assert of_trainings(tmp_path / "none", {})["weights_sha256"].startswith(NOT_RECORDED)


WHOLE = {
    "weights_sha256": {"net": "0" * 64},
    "data_sha256": "none but phantoms",
    "commit": "0123456",
    "command": "python -m x",
}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"weights_sha256": {"net": "0" * 63}}, "weights_sha256 net: " + "0" * 63),
        ({"data_sha256": None}, "data_sha256 : nothing"),
        ({"data_sha256": {}}, "data_sha256 : nothing"),
        ({"commit": "unknown"}, "commit : unknown"),
        ({"command": "by hand"}, "command : by hand"),
    ],
)
def test_what_is_missing_is_told(changes: dict[str, Any], fault: str) -> None:
    assert list(faults({"provenance": WHOLE})) == []
    assert list(faults({"provenance": WHOLE | changes})) == [fault]
    rows = {"first": {"provenance": WHOLE}, "second": {"provenance": WHOLE | changes}}
    assert list(faults(rows)) == [f"second: {fault}"]
    assert len(list(faults({"figures": {}}))) == 4
