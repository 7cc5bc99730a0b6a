"""Weights of the breast-us triple as files: what they are judged on, and how A and C are put beside B."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from models.breast_us.letterbox import PREPROCESSING
from models.training.breast_us.data import Labelled, Strategy, parts
from models.training.breast_us.hospitals import split_of_busi
from models.training.export import note
from models.training.files import replacing
from models.weights import WeightsError, load


def parts_for(
    weights: Sequence[Path], images: Sequence[Labelled], strategy: str | None = None
) -> dict[str, list[Labelled]]:
    """data.parts of images that weights are to be judged on; the strategy is that of their training if none is given.

    Images of which the stored split knows none are "unseen" to weights of that split. Raises WeightsError when the
    weights learnt on another split, and may know the images of any part of this one.
    """
    chosen = strategy_of(weights) if strategy is None else cast(Strategy, strategy)
    of_busi, of_both = split_of_busi()
    if all(load(path).about.get("split_sha256") == of_both for path in weights):  # trained on two hospitals
        return parts(images, "stored", anew=False, stored=of_busi)[0]
    stored, stored_sha256 = parts(images, chosen, anew=False)
    if all(load(path).about.get("split_sha256") == stored_sha256 for path in weights):
        return stored
    found, split_sha256 = parts(images, chosen)
    for path in weights:
        load(path, PREPROCESSING, split_sha256)
    return found


def strategy_of(weights: Sequence[Path]) -> Strategy:
    """How images were split for the training of these weights. Raises WeightsError when they contradict each other."""
    stated = {str(load(path).about.get("config", {}).get("split", "stored")) for path in weights}
    if len(stated) > 1:
        raise WeightsError(f"these weights learnt on splits made in other ways: {', '.join(sorted(stated))}")
    return cast(Strategy, stated.pop())


def attach(part: Path, to: Path, field: str) -> None:
    """Put A or C beside B and name it in B's JSON; field: "segmentation" or "fusion"."""
    for source in (part, part.with_suffix(".json")):
        if source.parent.resolve() != to.parent.resolve():
            with replacing(to.parent / source.name) as new:
                shutil.copyfile(source, new)
    note(to, {field: part.stem})
