"""Settings: one TOML file in, one frozen Config out, or everything that is wrong with the file, line by line.

>>> config = load(Path("node.toml"), pipelines=catalogue())
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from config.check import Known, Problem, check
from config.schema import (
    Assemble,
    Audit,
    Config,
    Database,
    Infer,
    Jobs,
    Needs,
    Node,
    Notify,
    Oidc,
    Peer,
    Receive,
    Retention,
    Route,
    Store,
    Tls,
    Traces,
    Web,
)

__all__ = [
    "Assemble",
    "Audit",
    "Config",
    "ConfigError",
    "Database",
    "Infer",
    "Jobs",
    "Known",
    "Needs",
    "Node",
    "Notify",
    "Oidc",
    "Peer",
    "Problem",
    "Receive",
    "Retention",
    "Route",
    "Store",
    "Tls",
    "Traces",
    "Web",
    "check",
    "load",
    "problems",
]


class ConfigError(Exception):
    """The settings cannot be used. One line per problem: file, line, key, what is wrong, what would be right."""

    def __init__(self, problems: Collection[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def load(path: Path, pipelines: Known | None = None) -> Config:
    """Read a settings file; relative paths in it count from its own folder.

    pipelines: what may be named in a route (`models.catalogue()`); None leaves names and options unchecked. Raises
    ConfigError with ALL errors at once.
    """
    config, found = check(Path(path), pipelines)
    errors = [problem for problem in found if problem.severity == "error"]
    if errors or config is None:
        raise ConfigError(errors)
    return config


def problems(path: Path, pipelines: Known | None = None) -> list[Problem]:
    """Errors and warnings of a settings file, by line. Empty when there is nothing to say."""
    return check(Path(path), pipelines)[1]
