"""Secrets that do not stand in the settings file: in a file of their own, or in the environment.

    dicomweb_token_file = "archive.token"      a file that holds the value of dicomweb_token, and nothing else
    dicomweb_token = "${ARCHIVE_TOKEN}"        an environment variable

Both hold for every setting that has a `..._file` beside it, and for no other: what everybody may see is in one place.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin
from urllib.parse import quote

from pydantic import BaseModel

Place = tuple[str | int, ...]
Models = Mapping[str, type[BaseModel]]

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
LONGEST = 65_536  # bytes of a file that holds one secret
UNKNOWN = "unknown"  # in place of what cannot be read, so that nothing else is said of it
UNKNOWN_ADDRESS = "json://unknown"  # the same in a list, which is of addresses


def names(model: type[BaseModel]) -> list[str]:
    """The settings of a table that are secret."""
    return [name for name in model.model_fields if f"{name}_file" in model.model_fields]


def places(raw: Mapping[str, Any], models: Models) -> Iterator[tuple[Place, dict[str, Any], type[BaseModel]]]:
    """Every well-formed table of a settings file, where it stands, and its model."""
    for name, model in models.items():
        table = raw.get(name)
        if isinstance(table, dict):
            yield (name,), table, model
        elif isinstance(table, list):
            yield from (((name, i), each, model) for i, each in enumerate(table) if isinstance(each, dict))


def filled(raw: dict[str, Any], models: Models, folder: Path) -> tuple[dict[str, Any], list[tuple[Place, str]]]:
    """The same settings with every secret in its place, and what is wrong, in words that quote none of them.

    folder   relative paths count from it
    """
    raw, wrong = copy.deepcopy(raw), list[tuple[Place, str]]()
    for place, table, model in places(raw, models):
        for name in names(model):
            try:
                _fill(table, name, folder)
                if _several(model, name) and isinstance(table.get(name), str):
                    table[name] = [table[name]]
            except ValueError as error:
                at = f"{name}_file" if table.get(f"{name}_file") else name
                wrong.append(((*place, at), str(error)))
                if model.model_fields[name].annotation is str:  # it has a default, which will do for what else is said
                    table.pop(name, None)
                else:
                    table[name] = [UNKNOWN_ADDRESS] if _several(model, name) else UNKNOWN
    return raw, wrong


def _fill(table: dict[str, Any], name: str, folder: Path) -> None:
    """Raises ValueError: why not."""
    file, value = table.get(f"{name}_file"), table.get(name)
    if file and value:
        raise ValueError(f"{name} and {name}_file are both given; keep one of them")
    if file and isinstance(file, str):
        table[name] = read(folder / Path(file).expanduser())
    elif isinstance(value, str):
        table[name] = _with_variables(value)
    elif isinstance(value, list):
        table[name] = [_with_variables(each) if isinstance(each, str) else each for each in value]


def _with_variables(value: str) -> str:
    """Raises ValueError."""
    whole = VARIABLE.fullmatch(value) is not None
    quoted = "://" in value and not whole  # a part of an address: a password may hold any character
    return VARIABLE.sub(lambda found: _variable(found[1], quoted=quoted), value)


def _several(model: type[BaseModel], name: str) -> bool:
    """Is the setting a list of secrets? One alone may stand without brackets."""
    return get_origin(model.model_fields[name].annotation) is tuple


def read(file: Path) -> str:
    """The secret that a file holds; the end of its line is none of it. Raises ValueError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LONGEST + 1)
        text = content.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError) as error:  # ValueError: a path that is none
        raise ValueError(f"{file} does not hold text in UTF-8") from error
    if not text.strip() or len(content) > LONGEST or "\n" in text or "\0" in text:
        raise ValueError(f"{file} is to hold the secret alone, in one line; it is empty, or holds more")
    return text


# what holds a secret in the environment: of a bucket, where the settings name none; and whatever settings have named
_of_secrets = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


def environment_without_secrets() -> dict[str, str]:
    """For programs that need none: networks and files of other makers run in them."""
    return {name: value for name, value in os.environ.items() if name not in _of_secrets}


def _variable(name: str, *, quoted: bool) -> str:
    _of_secrets.add(name)
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(f"the environment has no variable {name}, or it is empty; set it where the node is started")
    return quote(value, safe="") if quoted else value


def taken_literally(raw: Mapping[str, Any], models: Models) -> Iterator[tuple[Place, str]]:
    """Where a variable is meant, and none is put in place."""
    for place, table, model in places(raw, models):
        for name, value in table.items():
            if name not in names(model) and isinstance(value, str) and VARIABLE.search(value):
                yield (*place, name), f"'{name}' is no secret: {value!r} is taken as it stands, without the variable"
