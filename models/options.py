"""What a route may tell a pipeline: the base of every pipeline's Options. No torch here: settings are checked fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class BadOptions(Exception):
    """A route tells a pipeline something it does not know; the message names it. Not retried."""


class WeightsError(Exception):
    """A checkpoint is missing, damaged, or does not fit its network; the message says which file and what now."""


class PipelineOptions(BaseModel):
    """Unknown names and values out of range are refused when the settings are read, and again when the pipeline starts.

    The defaults are those of the figures in the pipeline's card.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    starts_programs: ClassVar[bool] = False  # of other makers: the process it runs in gives up less
    runs_code: ClassVar[bool] = False  # that they name: they are changed in the settings file alone, not by the pages
    compares: ClassVar[bool] = False  # with an earlier study of the patient, if the route says `priors`

    threads: int | None = Field(default=None, ge=1)  # processor threads on the cpu; all cores when not given

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Self:
        """Raises BadOptions: a job may be older than the settings that were checked at start-up."""
        try:
            return cls.model_validate(dict(given or {}))
        except ValidationError as error:
            said = "; ".join(
                (f"'{item['loc'][0]}': " if item["loc"] else "") + item["msg"].removeprefix("Value error, ")
                for item in error.errors()
            )
            raise BadOptions(f"options that this pipeline does not take: {said}") from error
