"""What a route may tell command."""

from __future__ import annotations

import shutil
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from dicom_sr.modalities import IMAGE_CLASSES, VOLUME_CLASSES
from models.labels import LabelledOptions

INPUT, OUTPUT = "{input}", "{output}"  # in the words of the command: its two folders


class Options(LabelledOptions):
    starts_programs: ClassVar[bool] = True
    runs_code: ClassVar[bool] = True

    command: list[str] = Field(min_length=1)  # word by word, no shell: ["/opt/tool/run", "{input}", "{output}"]
    name: str = Field(min_length=1, max_length=48)  # of the tool, in every result
    version: str = Field(min_length=1, max_length=32)  # of the tool: another version gives results of its own
    modality: list[str] = Field(default=["CT"], min_length=1)  # that it takes
    body_part: list[str] = Field(default=[])  # values of BodyPartExamined that it takes; none: any
    volume: bool = True  # it takes one evenly spaced stack of slices; false: any images, and no masks come back
    min_slices: int = Field(default=1, ge=1)  # of a volume
    timeout_s: float = Field(default=600.0, gt=0)  # after which it is ended, with all that it started
    memory_gb: float | None = Field(default=None, gt=0)  # of it and all that it started together; none: no limit
    device: bool = False  # whether it may use the GPU
    network: Literal["none", "own"] = "none"  # none: taken away from it; own: it looks after that itself (a container)
    environment: dict[str, str] = Field(default={})  # beside PATH, HOME, LANG and TMPDIR; nothing else is handed on

    @field_validator("command")
    @classmethod
    def can_be_run(cls, command: list[str]) -> list[str]:
        for folder in (INPUT, OUTPUT):
            if not any(folder in word for word in command):
                raise ValueError(f"no word of it holds {folder}, the folder that it {FOLDERS[folder]}")
        if "/" in command[0] and not command[0].startswith("/"):
            raise ValueError(f"'{command[0]}' must be an absolute path: the command runs in a folder of its own")
        if shutil.which(command[0]) is None:
            raise ValueError(f"there is no program '{command[0]}' on this machine")
        return command

    @model_validator(mode="after")
    def is_of_modalities(self) -> Self:
        known = VOLUME_CLASSES if self.volume else IMAGE_CLASSES
        for modality in self.modality:
            if modality not in known:
                raise ValueError(
                    f"modality '{modality}' is none of {', '.join(known)}"
                    + ("; volume = false for images that are no slices" if modality in IMAGE_CLASSES else "")
                )
        return self


FOLDERS = {INPUT: "reads the images from", OUTPUT: "writes its results to"}
