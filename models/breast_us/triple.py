"""The networks that answer together, read from their files: B, and beside it A and C when B's JSON names them.

"segmentation": "breast_segmentation_plain_w64"    the mask is that network's, not that of B's own decoder
"fusion": "breast_fusion_small"                    the classes are C's
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from models.breast_us.data import PREPROCESSING, Labelled, Strategy, parts
from models.files import replacing, write_text
from models.nets.breast_triple import FUSIONS, ClassificationNet, Triple, TripleConfig, segmentation_net
from models.weights import WeightsError, load


@dataclass(frozen=True, eq=False)
class ReadTriple:
    net: Triple
    about: Mapping[str, Any]  # the JSON beside B
    sha256: Mapping[str, str]  # name of each file of weights -> its digest, B first


def read_triple(path: Path, preprocessing: str, fusion: bool = True) -> ReadTriple:
    """The networks that belong to the weights of B at `path`; without `fusion` no C.

    Raises WeightsError when one is missing, damaged, or was trained beside others.
    """
    b = load(path, preprocessing)
    net = Triple(ClassificationNet(TripleConfig.of(b.about["config"])))
    b.into(net.b)
    digests = {b.name: b.sha256}
    if named := b.about.get("segmentation"):
        a = load(path.with_name(f"{named}.safetensors"), preprocessing)
        must_be(a.name, a.sha256, b.name, b.about["config"].get("start_sha256"))
        net.a = segmentation_net(TripleConfig.of(a.about["config"]))
        a.into(net.a)
        digests[a.name] = a.sha256
    if fusion and (named := b.about.get("fusion")):
        c = load(path.with_name(f"{named}.safetensors"), preprocessing)
        config = c.about["config"]
        must_be(b.name, b.sha256, c.name, config.get("start_sha256"))
        used = [digest for name, digest in digests.items() if name != b.name]
        must_be("the network whose mask is used", used[0] if used else "", c.name, config.get("masks_sha256", ""))
        net.c = FUSIONS[config["fusion"]](config.get("softmax_out", False))
        c.into(net.c)
        digests[c.name] = c.sha256
    return ReadTriple(net.eval().requires_grad_(False), b.about, digests)


def parts_for(
    weights: Sequence[Path], images: Sequence[Labelled], strategy: str | None = None
) -> dict[str, list[Labelled]]:
    """data.parts of images that weights are to be judged on; the strategy is that of their training if none is given.

    Images of which the stored split knows none are "unseen" to weights of that split. Raises WeightsError when the
    weights learnt on another split, and may know the images of any part of this one.
    """
    chosen = strategy_of(weights) if strategy is None else cast(Strategy, strategy)
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


def must_be(name: str, found: str, whose: str, expected: str | None) -> None:
    """Raises WeightsError when `whose` was trained beside other weights than these."""
    if found != expected:
        raise WeightsError(
            f"{whose} was trained beside weights {(expected or 'none')[:12]}, {name} is {found[:12] or 'none'};"
            " train it again on these, or take the part out of the JSON"
        )


def attach(part: Path, to: Path, field: str) -> None:
    """Put A or C beside B and name it in B's JSON; field: "segmentation" or "fusion"."""
    for source in (part, part.with_suffix(".json")):
        if source.parent.resolve() != to.parent.resolve():
            with replacing(to.parent / source.name) as new:
                shutil.copyfile(source, new)
    note(to, {field: part.stem})


def note(weights: Path, fields: Mapping[str, Any]) -> None:
    """Add fields to the JSON beside weights, whole or not at all."""
    sidecar = weights.with_suffix(".json")
    about = {**json.loads(sidecar.read_text("utf-8")), **fields}
    write_text(sidecar, json.dumps(about, indent=2) + "\n")
