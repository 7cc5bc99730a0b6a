"""Networks and pipelines. Importing this costs nothing: torch is loaded when a pipeline is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.pipeline import Pipeline

PIPELINES = {
    "lung-nodule": "models.lung_nodule.pipeline:LungNodule",
    "breast-us": "models.breast_us.pipeline:BreastUltrasound",
}


def pipeline_class(name: str, pipelines: Mapping[str, str] = PIPELINES) -> type[Pipeline]:
    """The class behind a pipeline's name. Raises KeyError for a name that is not in `pipelines`."""
    module, _, attribute = pipelines[name].partition(":")
    return getattr(import_module(module), attribute)
