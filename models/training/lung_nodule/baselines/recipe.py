"""How the baselines of NoduleNet are trained: other networks, the very same crops. Nothing of theirs is served.

    python -m models.training.train nodule_baseline --data FOLDER --out runs/retinanet --set network=retinanet
    python -m models.training.train nodule_baseline --data FOLDER --out runs/unet --set network=unet

FOLDER is whatever models.training.lung_nodule.data.scans.Scans reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.grid import box_at, box_of
from models.lung_nodule.detections import AROUND_MM
from models.lung_nodule.nodulenet.preprocess import OUTSIDE, PREPROCESSING, network_input, prepare
from models.runtime import Runtime
from models.training.lung_nodule.baselines.retinanet import NoduleRetinaNet
from models.training.lung_nodule.baselines.unet import NoduleUNet
from models.training.lung_nodule.data.scans import Scan
from models.training.lung_nodule.nodulenet import recipe as nodulenet
from models.training.lung_nodule.nodulenet.evaluate import Mark, curve, without_voxels
from models.training.recipe import TrainConfig, must_be_known

Network = Literal["retinanet", "unet"]
Baseline = NoduleRetinaNet | NoduleUNet
NETWORKS: Mapping[str, type[Baseline]] = {"retinanet": NoduleRetinaNet, "unet": NoduleUNet}


@dataclass(frozen=True)
class Config(TrainConfig):
    network: Network = "retinanet"
    width: int = 16  # 3.3 and 2.0 million parameters; NoduleNet at its width of 12 has 4.7
    epochs: int = 10
    batch: int = 4  # this and what follows: see models.training.lung_nodule.nodulenet.recipe.Config
    lr: float = 1e-3
    ema_decay: float = 0.99
    crop: int = 64
    crops: int = 400
    background_fraction: float = 0.25
    degrade_prob: float = 0.5
    val_scans: int = 6
    cache: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_known(self, {"network": get_args(Network)})


class BaselineRecipe:
    """Recipe of `models.training.train nodule_baseline`; crops and optimiser are those of NoduleNet's recipe."""

    preprocessing = PREPROCESSING

    def __init__(self, data: Path, config: Config) -> None:
        names = {field.name for field in fields(nodulenet.Config)} - {"width"}
        alike = {name: value for name, value in asdict(config).items() if name in names}
        self.nodulenet = nodulenet.build(data, nodulenet.Config(**alike))
        self.split_sha256 = self.nodulenet.split_sha256
        self.config = config
        self.name = f"nodule_{config.network}_w{config.width}"

    def model(self) -> nn.Module:
        return self.network(asdict(self.config))

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return NETWORKS[config["network"]](config["width"])

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        return self.nodulenet.optimiser(model)

    def steps(self, epoch: int) -> int:
        return self.nodulenet.steps(epoch)

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        return self.nodulenet.batches(split, epoch)

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError("a baseline learns from no teachers: leave out --teacher")

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(model, Baseline)
        return model.loss(batch)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """By whole scans, with the rule of marks that is best on them: CPM, which is the score, sensitivity at 1 false
        positive a chest, marks a scan. Of "val" the first val_scans with a lesion."""
        assert isinstance(model, Baseline)
        scans: Iterator[Scan] = map(self.nodulenet.scans.load, self.nodulenet.scans.split[split])
        if split == "val":
            scans = itertools.islice((scan for scan in scans if scan.lesions), self.config.val_scans)
        found: dict[str, list[list[Mark]]] = {}
        judged = []
        for scan in scans:
            for rule, marks in search(model, scan).items():
                found.setdefault(rule, []).append(marks)
            judged.append(without_voxels(scan))
        curves = {rule: curve(marks, judged, rounds=1) for rule, marks in found.items()}
        rule, best = max(curves.items(), key=lambda one: one[1].cpm.value)
        return {
            "score": best.cpm.value,
            "cpm": best.cpm.value,
            "sensitivity_at_1": best.at[1.0].value,
            "marks": sum(map(len, found[rule])) / len(judged),
        }


@torch.inference_mode()
def search(model: Baseline, scan: Scan) -> dict[str, list[Mark]]:
    """Marks in a scan by the rule that made them, in its voxels of 1 mm. The lungs and AROUND_MM are seen in one piece,
    as NoduleNet's first look sees them."""
    near = box_of(scan.lungs, AROUND_MM) or box_at((0, 0, 0), scan.hu.shape)
    grey = torch.from_numpy(prepare(scan.hu[near], scan.lungs[near]))
    ends = [side for n in reversed(grey.shape) for side in (0, -n % model.multiple)]
    runtime = Runtime.choose(str(next(model.parameters()).device))
    image = network_input(F.pad(grey, ends, value=OUTSIDE))[None, None]
    with runtime.precision():
        found = model.eval().answers(runtime.take(image))
    start = np.array([part.start for part in near])
    return {rule: [moved(one, start) for one in marks] for rule, marks in found.items()}


def moved(one: Mark, by_zyx: np.ndarray) -> Mark:
    z, y, x = (one.centre_zyx + by_zyx).tolist()
    return Mark((z, y, x), one.score)


def build(data: Path, config: Config) -> BaselineRecipe:
    return BaselineRecipe(data, config)
