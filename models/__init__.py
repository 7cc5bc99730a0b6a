"""Networks and pipelines. Importing this costs nothing: torch is loaded when a pipeline is built.

A pipeline is known by its Declaration: ours stand in PIPELINES, those of installed packages in the entry points of
group `pacs_node.pipelines`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicom_sr.changes import Comparison
    from dicom_sr.findings import Findings
    from models.options import PipelineOptions
    from models.pipeline import Card, Declaration, Pipeline, Prior

GROUP = "pacs_node.pipelines"  # of entry points, each "name = package.module:DECLARATION"
NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")  # of a pipeline: results are named by it

PIPELINES = {
    "lung-nodule": "models.lung_nodule.card:PIPELINE",
    "lymph-node": "models.lymph_node.card:PIPELINE",
    "breast-us": "models.breast_us.card:PIPELINE",
    "monai-bundle": "models.monai_bundle.card:PIPELINE",
    "command": "models.command.card:PIPELINE",
}


@dataclass(frozen=True)
class Catalogue:
    """The pipelines that are here, and the names that stand for none, each with the reason and the package."""

    declared: Mapping[str, Declaration]
    targets: Mapping[str, str]  # name -> where its declaration stands, "package.module:DECLARATION"
    broken: Mapping[str, str]

    @property
    def options(self) -> dict[str, type[PipelineOptions]]:
        """For each pipeline's name what a route may tell it."""
        return {name: declaration.options for name, declaration in self.declared.items()}

    def takes(self, name: str, options: Mapping[str, Any]) -> Card | str:
        """The card of a pipeline with these options, or why it cannot have them."""
        try:
            return self.declared[name].card_for(options)
        except Exception as error:  # noqa: BLE001  the edge of another's package, as in `catalogue`
            return (str(error).splitlines() or [type(error).__name__])[0]

    def card(self, name: str, options: Mapping[str, Any]) -> Card:
        """As `takes`. Raises BadOptions, or BadPipeline for a name that means none."""
        from models.options import BadOptions
        from models.pipeline import BadPipeline, Card

        if name not in self.declared:
            raise BadPipeline(self.broken.get(name, f"there is no pipeline '{name}'"))
        card = self.takes(name, options)
        if not isinstance(card, Card):
            raise BadOptions(f"{name}: {card}")
        return card

    @property
    def cards(self) -> list[Card]:
        """Of every pipeline that needs no options to say what it takes."""
        from models.pipeline import Card

        said = [self.takes(name, {}) for name in self.declared]
        return [card for card in said if isinstance(card, Card)]


@cache
def catalogue() -> Catalogue:
    """All pipelines, ours and installed ones. Loads no torch; a package that cannot be loaded breaks its own only."""
    targets, broken = _targets()
    declared: dict[str, Declaration] = {}
    for name, (target, package) in targets.items():
        try:
            declared[name] = declaration_at(target, name)
        except Exception as error:  # noqa: BLE001  the edge of another's package: whatever it raises, it is its own
            first = (str(error).splitlines() or [""])[0]
            broken[name] = f"pipeline '{name}' of {package} cannot be loaded: {type(error).__name__}: {first}"
    return Catalogue(declared, {name: targets[name][0] for name in declared}, broken)


def _targets() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Name -> (target, package); and name -> why it means no pipeline."""
    claims: dict[str, list[tuple[str, str]]] = {name: [(target, "pacs-node")] for name, target in PIPELINES.items()}
    for found in metadata.entry_points(group=GROUP):
        package = f"package {found.dist.name} {found.dist.version}" if found.dist else "a package without a name"
        claims.setdefault(found.name, []).append((found.value, package))
    broken = {}
    for name, claimed in claims.items():
        if len(claimed) > 1:
            owners = " and ".join(package for _, package in claimed)
            broken[name] = f"pipeline '{name}' is declared by {owners}: uninstall one, or give one another name"
        elif not NAME.fullmatch(name):
            broken[name] = f"pipeline '{name}' of {claimed[0][1]}: a name is small letters, digits and hyphens"
    return {name: claimed[0] for name, claimed in claims.items() if name not in broken}, broken


def declaration_at(target: str, name: str | None = None) -> Declaration:
    """What stands at "module:attribute". Raises BadPipeline if it declares no pipeline, or one of another name."""
    from models.pipeline import BadPipeline, Card, Declaration

    found = attribute_at(target)
    if not isinstance(found, Declaration):
        raise BadPipeline(f"{target} is a {type(found).__name__}, not a models.pipeline.Declaration")
    if name is not None and isinstance(found.card, Card) and found.card.name != name:
        raise BadPipeline(f"{target} has a card of the name '{found.card.name}', its entry point says '{name}'")
    return found


def attribute_at(target: str) -> Any:
    """Raises ImportError for a module, AttributeError for an attribute that is not there."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def comparison(declaration: Declaration) -> Callable[[Findings, Sequence[Path], Prior], Comparison] | None:
    """What compares a pipeline's findings with an earlier study; None for one that does not."""
    return attribute_at(declaration.comparison) if declaration.comparison else None


def build(declaration: Declaration, device: str, options: Mapping[str, Any] | None = None) -> Pipeline:
    """The pipeline, loaded. Raises BadOptions, WeightsError; BadPipeline when what was built is not what was declared.

    Files of weights that the card names are verified first: what is not what it says is not even opened.
    """
    from dataclasses import replace

    from models.pipeline import BadPipeline

    card = declaration.card_for(options)
    package = import_module(declaration.target.partition(":")[0])
    verify(card.weights_sha256, Path(str(package.__file__)).parent)
    pipeline: Pipeline = attribute_at(declaration.target)(device, options)
    if replace(pipeline.card, algorithm=card.algorithm, weights_sha256=card.weights_sha256) != card:
        raise BadPipeline(f"{declaration.target}: the card of what was built is not the declared one of {card.name}")
    return pipeline


def card_text(declaration: Declaration) -> str | None:
    """CARD.md beside the pipeline, as the package carries it; None: it has none, or it cannot be read."""
    try:
        found = find_spec(declaration.target.partition(":")[0])  # imports the package, and not the pipeline
        return Path(str(found.origin)).with_name("CARD.md").read_text(encoding="utf-8") if found else None
    except (ImportError, OSError, UnicodeError):
        return None


def verify(sha256: Mapping[str, str], folder: Path) -> None:
    """Hold files of weights, named from `folder`, against their SHA-256. Raises WeightsError."""
    from models.options import WeightsError

    for name, expected in sha256.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(
                f"{folder / name} cannot be read: {error.strerror}; install the package again"
            ) from error
        if found != expected.lower():
            raise WeightsError(
                f"{folder / name} has SHA-256 {found[:12]}..., the card says {expected[:12]}...: do not use it"
            )
