"""What a route may tell monai-bundle."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from models.labels import LabelledOptions, Labels

SUFFIXES = (".json", ".yaml", ".yml")  # of a bundle's configuration


class Options(LabelledOptions):
    runs_code: ClassVar[bool] = True  # expressions of its configuration

    bundle: str  # absolute path of the bundle's folder, which holds configs/ and models/
    labels: Labels = Field(min_length=1)  # what each label of its map is: [route.options.labels.1]
    modality: Literal["CT", "MR"] = "CT"  # of the volumes that it was made for
    body_part: list[str] = Field(default=[])  # values of BodyPartExamined that it was made for; none: any
    configuration: str = "inference"  # the file of configs/ that is run, without its suffix

    @field_validator("bundle")
    @classmethod
    def is_there(cls, bundle: str) -> str:
        if not Path(bundle).is_absolute():
            raise ValueError(f"'{bundle}' must be an absolute path: the inference process has a folder of its own")
        if not (Path(bundle) / "configs").is_dir():
            raise ValueError(f"{bundle} is no MONAI bundle: it has no folder 'configs'")
        return bundle
