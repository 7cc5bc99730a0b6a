"""Networks and pipelines. Importing this costs nothing: torch is loaded when a pipeline is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.options import PipelineOptions
    from models.pipeline import Pipeline

PIPELINES = {
    "lung-nodule": "models.lung_nodule.pipeline:LungNodule",
    "breast-us": "models.breast_us.pipeline:BreastUltrasound",
}


def pipeline_options() -> dict[str, type[PipelineOptions]]:
    """For each pipeline's name what a route may tell it. Loads no torch."""
    modules = {name: target.partition(":")[0].rpartition(".")[0] for name, target in PIPELINES.items()}
    return {name: import_module(f"{module}.options").Options for name, module in modules.items()}


def pipeline_class(name: str, pipelines: Mapping[str, str] = PIPELINES) -> type[Pipeline]:
    """The class behind a pipeline's name. Raises KeyError for a name that is not in `pipelines`."""
    module, _, attribute = pipelines[name].partition(":")
    return getattr(import_module(module), attribute)
