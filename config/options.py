"""What a command line tells a pipeline: `key=value`, checked as a route's options are."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from config.check import hint, option_problems


class BadOption(ValueError):
    """The message names the pipeline or option, what is wrong with it, and the nearest right one."""


def options_given(pipeline: str, given: Sequence[str], pipelines: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The options of a pipeline from texts like "views=1" or 'purpose="screening"'. Raises BadOption.

    A value is written as in a settings file; a word that is no TOML value is a text.
    """
    if pipeline not in pipelines:
        raise BadOption(f"no pipeline '{pipeline}'; {hint(pipeline, pipelines)}")
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadOption(f"'{text}' is not key=value, for example threads=2")
        if key in options:
            raise BadOption(f"option '{key}' is given twice")
        options[key] = _value(value)
    problems = [
        f"option '{key}' of {pipeline} {words}" if key else words
        for key, words in option_problems(options, pipelines[pipeline])
    ]
    if problems:
        raise BadOption("\n".join(problems))
    return options


def _value(text: str) -> Any:
    try:
        told = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return told["value"] if told.keys() == {"value"} else text
