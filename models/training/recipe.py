"""What a model system tells the training loop: its data, its network, its loss and how it is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

Schedule = Literal["cosine", "plateau", "step"]


@dataclass(frozen=True)
class TrainConfig:
    """Every hyper-parameter of one training. A system's own Config adds its fields to these."""

    seed: int = 2024
    width: int = 16
    epochs: int = 30
    batch: int = 32
    lr: float = 3e-4
    weight_decay: float = 1e-4
    warm_up_epochs: float = 1.0
    ema_decay: float = 0.999
    clip_norm: float = 5.0
    # with warm-up; "plateau": a tenth of the rate whenever the loss stops falling; "step": a tenth every 25 epochs
    schedule: Schedule = "cosine"
    lr_floor: float = 2e-8  # "plateau" stops here, "step" falls no lower
    amp: bool = True  # half precision where the device has it: bfloat16, else float16 with a scaled loss
    patience: int = 0  # stop after so many epochs without a better score; 0: never
    keep_last: ClassVar[bool] = False  # export the last epoch's weights instead of those of the best score
    distil: float = 0.5  # share of the loss that follows the teachers, when there are any

    def __post_init__(self) -> None:
        must_be_known(self, {"schedule": get_args(Schedule)})


def must_be_known(config: TrainConfig, known: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError when a field has none of its known values; a config from the command line holds any text."""
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{name} is {getattr(config, name)!r}, must be one of {', '.join(values)}")


def sgd_or_adamw(name: str, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """ "sgd" with momentum 0.9, or "adamw", at the config's rate and weight decay."""
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)


class Recipe(Protocol):
    """One training. Everything random in `batches` must follow from (config.seed, epoch) alone: that is what makes
    a killed training go on to the same result."""

    name: str  # file name of the exported weights, "residual_unet_w16"
    split_sha256: str  # of the stored list of patients (or images) in each split
    preprocessing: str  # version of the mapping from stored pixels to network input

    @property
    def config(self) -> TrainConfig:
        """Every hyper-parameter."""

    def model(self) -> nn.Module:
        """The network, with fresh weights."""

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """The network of a checkpoint of this system, by the config in the JSON beside it; its weights are to come."""

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """Its learning rates are the peaks of the schedule: a cosine with warm-up."""

    def steps(self, epoch: int) -> int:
        """How many batches `batches("train", epoch)` gives."""

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Batches of one epoch, augmented when split is "train"."""

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the teachers say of a batch, in the mean: soft targets that `loss` finds beside the truth."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar to descend, under autocast. A fraction config.distil follows the distillation targets, if any."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Figures of one split; "score" picks the best epoch (greater is better)."""


class RecipeModule(Protocol):
    """A system's recipe.py: a Config and the function that builds the recipe from the data's path."""

    Config: type[TrainConfig]

    def build(self, data: Any, config: Any) -> Recipe:
        """Read the data (a zip, in place) and be ready to train."""
