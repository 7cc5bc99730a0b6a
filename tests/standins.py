"""What stands in the place of a part of the node, where a test is of something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NoInference:
    """In the place of the child processes: all that the node asks of them but what they find."""

    def version(self, pipeline: str, options: Mapping[str, Any]) -> str:
        return ""

    def prepare(self, pipelines: Any) -> None:
        pass

    def warm(self, pipelines: Any) -> None:
        pass

    def heed(self, pauses: Any, machine: str) -> int:
        return 1

    def trouble(self) -> list[str]:
        return []

    def facts(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        pass
