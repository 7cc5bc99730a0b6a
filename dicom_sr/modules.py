"""Modules, attributes and their types (PS3.3), as highdicom carries them out of the Standard: the rules' own source.

highdicom's tables are made from the Standard's DocBook; ours would be made by hand. They hold what every IOD shares;
functional groups and content items, whose rules depend on other values, are checked in `rules/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicom_sr.copies import ALWAYS_COPIED, COPIED_IF_PRESENT

# What is inside them is the source's own and copied as it is: not ours to refuse.
AS_THE_SOURCE_HAS_IT = {*ALWAYS_COPIED, *COPIED_IF_PRESENT}
# Their types depend on value type or on shared and per-frame groups; see `rules/`.
CONDITIONAL_THROUGHOUT = {"sr-document-content", "segmentation-multi-frame-functional-groups"}


@dataclass
class _Attribute:
    type: str = "3"
    inside: dict[str, _Attribute] = field(default_factory=dict)


def mandatory(sop_class_uid: str) -> list[str]:
    """The modules an object of this class always has, by highdicom's names: "patient", "segmentation-image" ..."""
    return [
        module["key"]
        for module in _modules(sop_class_uid)
        if module["usage"] == "M" and module["key"] not in CONDITIONAL_THROUGHOUT
    ]


def demands(module: str) -> bool:
    """Whether it has an attribute that must be there, or be there with a value, whatever the others say."""
    return any(attribute.type in ("1", "1C", "2", "2C") for attribute in _attributes(module).values())


def missing(dataset: Dataset, module: str) -> Iterator[str]:
    """What the module wants and the object does not have: types 1 and 2, at every depth, PS3.5 7.4."""
    yield from _missing(dataset, _attributes(module), "")


def strangers(dataset: Dataset) -> list[str]:
    """Attributes that no module of the object's IOD knows."""
    known = {keyword for module in _modules(dataset.SOPClassUID) for keyword in _attributes(module["key"])}
    return [element.keyword or str(element.tag) for element in dataset if element.keyword not in known]


def _missing(dataset: Dataset, attributes: dict[str, _Attribute], path: str) -> Iterator[str]:
    for keyword, attribute in attributes.items():
        if keyword not in dataset:
            if attribute.type in ("1", "2"):
                yield f"{path}{keyword} is missing (type {attribute.type})"
            continue
        element = dataset[keyword]
        if element.is_empty and attribute.type in ("1", "1C"):
            yield f"{path}{keyword} has no value (type {attribute.type})"
        if element.VR == "SQ" and keyword not in AS_THE_SOURCE_HAS_IT:
            for number, item in enumerate(element.value, 1):
                yield from _missing(item, attribute.inside, f"{path}{keyword}[{number}].")


@cache
def _attributes(module: str) -> dict[str, _Attribute]:
    tree: dict[str, _Attribute] = {}
    for row in _rows(module):
        inside = tree
        for keyword in row["path"]:
            inside = inside.setdefault(keyword, _Attribute()).inside
        inside.setdefault(row["keyword"], _Attribute()).type = row["type"]
    return tree


def _modules(sop_class_uid: str) -> list[dict[str, str]]:
    return _table("iod_module_map")[_table("sop_class_iod_map")[sop_class_uid]]


def _rows(module: str) -> list[dict[str, Any]]:
    """Of the one table that is large: 22 MB of text, 70 MB once read, of which ours take a hundredth."""
    start, end = _places()[module]
    with _file("module_attribute_map").open("rb") as file:
        file.seek(start)
        rows, _ = json.JSONDecoder().raw_decode(file.read(end - start).decode())
        return rows


@cache
def _places() -> dict[str, tuple[int, int]]:
    """Where in the large table the rows of each module begin, and where the next one's name does."""
    content = _file("module_attribute_map").read_bytes()
    # a module's name has small letters, as no keyword has; only "path", within a row, looks like one
    names = [m for m in re.finditer(rb'"([a-z0-9-]+)"\s*:\s*(?=\[)', content) if m[1] != b"path"]
    ends = [*(name.start() for name in names[1:]), len(content)]
    return {name[1].decode(): (name.end(), end) for name, end in zip(names, ends, strict=True)}


@cache
def _table(name: str) -> Any:
    return json.loads(_file(name).read_text(encoding="utf-8"))


def _file(name: str) -> Path:
    return Path(str(files("highdicom"))) / "_standard" / f"{name}.json"
