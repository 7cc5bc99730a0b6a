"""What the labels of a mask are called: the table that a route gives a model that knows only numbers. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydicom.sr.coding import Code

from dicom_sr import codes
from models.options import PipelineOptions

Measured = Literal["volume", "diameters", "intensity"]

VR_SH, VR_LO = 16, 64  # characters of a code's value and scheme, and of its meaning: PS3.5 6.2
LATERALITIES = {"right": codes.RIGHT, "left": codes.LEFT, "both": codes.BILATERAL}
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def _a_code(words: list[str]) -> list[str]:
    for text, most, what in zip(words, (VR_SH, VR_SH, VR_LO), ("value", "scheme", "meaning"), strict=True):
        if not 0 < len(text) <= most or text != text.strip() or not text.isprintable() or "\\" in text:
            raise ValueError(f"its {what} '{text}' must be 1 to {most} printable characters")
    if words[1] == "SRT":
        raise ValueError("SRT is retired; give the SNOMED CT number with the scheme SCT")
    return words


CodeWords = Annotated[list[str], Field(min_length=3, max_length=3), AfterValidator(_a_code)]  # value, scheme, meaning


class Label(BaseModel):
    """What one label marks, what it is called, and what is measured of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=48)  # of the segment and of its measurements: "Spleen"
    type: CodeWords  # what it is, for example ["78961009", "SCT", "Spleen"]
    category: CodeWords = Field(default=[*codes.ANATOMICAL_STRUCTURE[:3]])
    site: CodeWords | None = None  # where it lies; an anatomical structure lies where it is
    laterality: Literal["right", "left", "both"] | None = None
    colour: str | None = None  # "#9d6ca2"; none: the node's own
    measure: list[Measured] = Field(default=["volume"])
    separate: bool = False  # each connected part is a finding of its own: lesions, not organs

    @model_validator(mode="after")
    def is_somewhere(self) -> Self:
        if self.site is None and self.category[:2] != [*codes.ANATOMICAL_STRUCTURE[:2]]:
            raise ValueError(f"'{self.name}' is no anatomical structure: say with 'site' where it lies")
        if self.colour is not None and not COLOUR.fullmatch(self.colour):
            raise ValueError(f"colour '{self.colour}' of '{self.name}' must be like \"#9d6ca2\"")
        return self

    @property
    def type_code(self) -> Code:
        return Code(*self.type)

    @property
    def category_code(self) -> Code:
        return Code(*self.category)

    @property
    def site_code(self) -> Code:
        return Code(*(self.site or self.type))

    @property
    def laterality_code(self) -> Code | None:
        return None if self.laterality is None else LATERALITIES[self.laterality]

    @property
    def rgb(self) -> tuple[int, int, int] | None:
        if self.colour is None:
            return None
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


def check_labels(labels: Mapping[str, Label]) -> Mapping[str, Label]:
    """Raises ValueError when a key is no label, or two have one name."""
    for key in labels:
        if not key.isdecimal() or not key.isascii() or key != str(int(key)):
            raise ValueError(f"'{key}' is no label; labels are whole numbers: [route.options.labels.1]")
    names = [label.name for label in labels.values()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two labels are called '{twice}'; each needs a name of its own")
    return labels


def by_number(labels: Mapping[str, Label]) -> dict[int, Label]:
    return {int(key): labels[key] for key in sorted(labels, key=int)}


def measured_kinds(labels: Mapping[str, Label]) -> dict[str, bool]:
    """Type of finding -> whether it is given a size in millimetres: `finds` of a card."""
    return {
        label.type_code.meaning: any(
            "diameters" in each.measure for each in labels.values() if each.type_code == label.type_code
        )
        for label in labels.values()
    }


Labels = Annotated[dict[str, Label], AfterValidator(check_labels)]


class LabelledOptions(PipelineOptions):
    """Options of a pipeline whose masks are named by a table: [route.options.labels.1], and so on."""

    labels: Labels = Field(default={})

    @property
    def by_number(self) -> dict[int, Label]:
        return by_number(self.labels)
