"""The networks that answer together, read from their files: B, and beside it A and C when B's JSON names them.

"segmentation": "breast_segmentation_plain_w64"    the mask is that network's, not that of B's own decoder
"fusion": "breast_fusion_small"                    the classes are C's
"suitability": "breast_triple_lite0_w16_suitability"    what pictures look like that B can be asked about
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def must_be(name: str, found: str, whose: str, expected: str | None) -> None:
    """Raises WeightsError when `whose` was trained beside other weights than these."""
    if found != expected:
        raise WeightsError(
            f"{whose} was trained beside weights {(expected or 'none')[:12]}, {name} is {found[:12] or 'none'};"
            " train it again on these, or take the part out of the JSON"
        )
