"""Networks and pipelines. Importing this costs nothing: torch is loaded when a pipeline is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dicom_sr.changes import Comparison
    from dicom_sr.findings import Findings
    from models.options import PipelineOptions
    from models.pipeline import Pipeline, Prior

PIPELINES = {
    "lung-nodule": "models.lung_nodule.pipeline:LungNodule",
    "breast-us": "models.breast_us.pipeline:BreastUltrasound",
}

# pipelines that compare with an earlier study -> "module:function", (findings, files, prior) -> Comparison
COMPARISONS = {"lung-nodule": "models.lung_nodule.compare:compare"}


def pipeline_options() -> dict[str, type[PipelineOptions]]:
    """For each pipeline's name what a route may tell it. Loads no torch."""
    modules = {name: target.partition(":")[0].rpartition(".")[0] for name, target in PIPELINES.items()}
    return {name: import_module(f"{module}.options").Options for name, module in modules.items()}


def comparison(name: str) -> Callable[[Findings, Sequence[Path], Prior], Comparison]:
    """What compares a pipeline's findings with an earlier study. Raises KeyError for one that does not."""
    module, _, attribute = COMPARISONS[name].partition(":")
    return getattr(import_module(module), attribute)


def pipeline_class(name: str, pipelines: Mapping[str, str] = PIPELINES) -> type[Pipeline]:
    """The class behind a pipeline's name. Raises KeyError for a name that is not in `pipelines`."""
    module, _, attribute = pipelines[name].partition(":")
    return getattr(import_module(module), attribute)
