"""Our dataclasses as plain values and arrays, and back by their declared types: for files and pipes, without pickle.

Whatever comes back is of a type that is declared: no name in what is read chooses a class, and nothing of it runs.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.sr.coding import Code


class WrongType(ValueError):
    """What is read is not of its declared type; the message says where."""


def plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """What JSON can say of a value, arrays by their place in the list. A value of another kind is left as it is."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return f"mask{len(arrays) - 1}"
    if isinstance(value, Code):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), arrays) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each, arrays) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each, arrays) for each in value]
    if isinstance(value, frozenset):
        return sorted(plain(each, arrays) for each in value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def made(kind: Any, told: Any, arrays: Mapping[str, np.ndarray], where: str = "") -> Any:
    """The value of a declared type that `plain` has told. Raises WrongType."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return told
    if origin in (types.UnionType, typing.Union):
        return _one_of(inner, told, arrays, where)
    if origin is typing.Literal:
        return _checked(told, isinstance(told, str) and told in inner, kind, where)
    if origin is tuple:
        return _tuple(inner, told, arrays, where)
    if origin is frozenset:
        _checked(told, isinstance(told, list), kind, where)
        return frozenset(made(inner[0], each, arrays, where) for each in told)
    if origin is not None and issubclass(origin, Mapping):
        _checked(told, isinstance(told, dict), kind, where)
        return {key: made(inner[1], each, arrays, f"{where}[{key[:40]!r}]") for key, each in told.items()}
    if is_dataclass(kind):
        return _dataclass(kind, told, arrays, where)
    return _single(kind, told, arrays, where)


def _single(kind: Any, told: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
    if kind in SCALARS:
        return _checked(told, type(told) in SCALARS[kind], kind, where)
    if kind is np.ndarray:
        return arrays[_checked(told, isinstance(told, str) and told in arrays, kind, where)]
    if kind is Code:
        three = isinstance(told, list) and len(told) in (3, 4) and all(isinstance(each, str) for each in told[:3])
        return Code(*_checked(told, three and isinstance(told[-1], str | None), kind, where))
    _checked(told, isinstance(told, str), kind, where)
    try:
        if kind is date:
            return date.fromisoformat(told)
        if kind is Path and "\0" not in told:
            return Path(told)
    except ValueError as error:
        raise WrongType(f"{where} is no {kind.__name__}") from error
    raise WrongType(f"{where} is of a type that cannot be read")


SCALARS: dict[Any, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (float, int)}


def _checked(told: Any, good: bool, kind: Any, where: str) -> Any:
    if not good:
        raise WrongType(f"{where} is a {type(told).__name__}, not a {getattr(kind, '__name__', kind)}")
    return told


def _one_of(inner: tuple[Any, ...], told: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
    if told is None and types.NoneType in inner:
        return None
    kinds = [kind for kind in inner if kind is not types.NoneType]
    if len(kinds) == 1:
        return made(kinds[0], told, arrays, where)
    scalars = {type_ for kind in kinds for type_ in SCALARS[kind]} | {bool}
    return _checked(told, type(told) in scalars, " or ".join(kind.__name__ for kind in kinds), where)


def _tuple(inner: tuple[Any, ...], told: Any, arrays: Mapping[str, np.ndarray], where: str) -> tuple[Any, ...]:
    _checked(told, isinstance(told, list), tuple, where)
    kinds = [inner[0]] * len(told) if inner[-1] is Ellipsis else inner
    if len(kinds) != len(told):
        raise WrongType(f"{where} has {len(told)} values, not {len(kinds)}")
    return tuple(
        made(kind, each, arrays, f"{where}[{place}]")
        for place, (kind, each) in enumerate(zip(kinds, told, strict=True))
    )


def _dataclass(kind: Any, told: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
    where = where or kind.__name__
    _checked(told, isinstance(told, dict), kind, where)
    declared = {field.name: field for field in fields(kind)}
    if unknown := sorted(told.keys() - declared.keys()):
        raise WrongType(f"{where} has no {unknown[0][:40]!r}")
    needed = {name for name, field in declared.items() if field.default is field.default_factory is MISSING}
    if missing := sorted(needed - told.keys()):
        raise WrongType(f"{where} lacks {missing[0]}")
    hints = _hints(kind)
    values = {name: made(hints[name], each, arrays, f"{where}.{name}") for name, each in told.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise WrongType(f"{where}: {error}") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
