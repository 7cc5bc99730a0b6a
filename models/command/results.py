"""results.json: what a command says in numbers and codes, beside its masks or without any. No torch here.

Everything in it is checked when it is read; an unknown name is an error, so that no spelling mistake loses a result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydicom.sr.coding import Code

from dicom_sr.findings import Evaluation, Measurement
from models.labels import CodeWords, Labels
from models.pipeline import BadOutput

NAME = "results.json"
MOST_BYTES = 10_000_000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _in_order(ends: list[int]) -> list[int]:
    if ends[0] > ends[1]:
        raise ValueError(f"first {ends[0]}, last {ends[1]}: the first must come first")
    return ends


Range = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


class Number(_Part):
    """One measurement: its concept, its value, its unit in UCUM."""

    name: CodeWords
    value: float
    unit: CodeWords
    derivation: CodeWords | None = None  # mean, standard deviation ...


class Statement(_Part):
    """One coded statement, as "Finding: present"."""

    name: CodeWords
    value: CodeWords


class Said(_Part):
    """What is said of the mask of one label, beyond what the node measures itself.

    With `file` a finding of its own that has no mask: a box on one image or several, or the image alone that it is on.
    """

    label: int = Field(ge=0)
    file: str | None = None  # of the folder of images: "00012.dcm"
    last_file: str | None = None  # of a box that reaches over several slices
    frame: int | None = Field(default=None, ge=1)  # of a multi-frame image
    last_frame: int | None = Field(default=None, ge=1)
    rows: Range | None = None  # first and last, from 0
    columns: Range | None = None
    certainty: float | None = Field(default=None, ge=0, le=1)
    measurements: list[Number] = Field(default=[])
    evaluations: list[Statement] = Field(default=[])

    @model_validator(mode="after")
    def is_somewhere(self) -> Self:
        if (self.rows is None) != (self.columns is None):
            raise ValueError("a box needs both 'rows' and 'columns'")
        if self.file is None and any((self.last_file, self.frame, self.last_frame, self.rows)):
            raise ValueError("a box or a frame needs the 'file' that it is on")
        if self.rows is None and (self.last_file is not None or self.last_frame is not None):
            raise ValueError("only a box, with 'rows' and 'columns', reaches to a 'last_file' or 'last_frame'")
        return self


class Results(_Part):
    labels: Labels = Field(default={})  # as in the route's options; where both name a label, the route's counts
    findings: list[Said] = Field(default=[])
    measurements: list[Number] = Field(default=[])  # of the series as a whole
    evaluations: list[Statement] = Field(default=[])
    warnings: list[str] = Field(default=[], max_length=20)  # in words, for readers of the report


def read_results(folder: Path) -> Results | None:
    """None where the command wrote none. Raises BadOutput."""
    path = folder / NAME
    if path.is_symlink() or not path.is_file():
        return None
    if path.stat().st_size > MOST_BYTES:
        raise BadOutput(f"{NAME} is larger than {MOST_BYTES / 1e6:g} MB")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        results = Results.model_validate(given)
    except (ValueError, RecursionError) as error:
        raise BadOutput(f"{NAME} of the command cannot be used: {_told(error)}") from error
    numbers = [one.label for one in results.findings if one.file is None]
    if twice := next((number for number in numbers if numbers.count(number) > 1), None):
        raise BadOutput(f"{NAME} of the command speaks of the mask of label {twice} twice in 'findings'")
    return results


def measurements(numbers: Iterable[Number]) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(
            Code(*one.name), one.value, Code(*one.unit), None if one.derivation is None else Code(*one.derivation)
        )
        for one in numbers
    )


def evaluations(statements: Iterable[Statement]) -> tuple[Evaluation, ...]:
    return tuple(Evaluation(Code(*one.name), Code(*one.value)) for one in statements)


def _told(error: Exception) -> str:
    """Places and rules, not values: these may be of a patient."""
    if isinstance(error, ValidationError):
        places = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors(include_input=False)]
        said = "; ".join(f"'{place}': {words.removeprefix('Value error, ')}" for place, words in places[:3])
        return said + (f"; and {len(places) - 3} more" if len(places) > 3 else "")
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error.msg} in line {error.lineno}"
    return type(error).__name__
