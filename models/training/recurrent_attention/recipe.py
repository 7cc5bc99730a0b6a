"""How recurrent attention is trained on candidates of any kind; lymph nodes and nodules build theirs on it.

The defaults are the source's schedule (SGD, 0.1, a tenth of it every 25 of 200 epochs, batches of 20, as many positive
as negative candidates in each epoch) on our small feature extractor:

    --set backbone=inception-v3 --set backbone_weights=FILE.safetensors    the source's extractor, frozen
    --set attention=none                 the same LSTM without attention
    --set attention=none --set slices=1  ... on the middle slice alone
    --set network=resnet18               a 3-D ResNet-18, for comparison
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.candidate_server import VIEWS
from models.nets.candidate_net import Backbone, CandidateNet, CandidateNetConfig, probability
from models.nets.recurrent_attention import Answer, Attention, Divergence, attention_loss
from models.training.evaluation.metrics import auc
from models.training.recipe import Schedule, TrainConfig, must_be_known, sgd_or_adamw
from models.training.recurrent_attention.candidates import NEITHER, Candidates, balanced, cut

AT_ONCE = 64  # candidates, when judging


@dataclass(frozen=True)
class Config(TrainConfig):
    """See CandidateNetConfig and attention_loss for what is not explained here."""

    keep_last: ClassVar[bool] = True  # val is small: an epoch that it chooses is chosen by chance
    width: int = 16
    epochs: int = 200
    batch: int = 20
    lr: float = 0.1
    lr_floor: float = 1e-5
    weight_decay: float = 1e-4
    schedule: Schedule = "step"
    optimiser: str = "sgd"
    ema_decay: float = 0.99
    amp: bool = False  # an LSTM of eight steps is small; on a processor bfloat16 makes it no faster
    network: str = "recurrent_attention"  # or "resnet18", in 3-D, of as many parameters
    backbone: Backbone = "small-cnn"
    backbone_weights: str = ""  # published ones of inception-v3; it is then frozen
    embedding: int = 200
    hidden: int = 256
    slices: int = 9
    steps: int = 8
    variance: float = 0.1
    attention: Attention = "both"
    init_h: bool = False
    converge: float = 1.0
    diverge: float = 0.5
    divergence: Divergence = "mean"
    rating: bool = False  # learn the rating, not the class
    augment: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        must_be_known(
            self,
            {
                "optimiser": ("sgd", "adamw"),
                "network": ("recurrent_attention", "resnet18"),
                "backbone": get_args(Backbone),
                "attention": get_args(Attention),
                "divergence": get_args(Divergence),
            },
        )

    @property
    def outputs(self) -> int:
        return 1 if self.rating else 2


class CandidateRecipe:
    """Recipe of the systems that judge candidates."""

    def __init__(
        self,
        system: str,
        candidates: Candidates,
        parts: Mapping[str, Sequence[str]],
        split_sha256: str,
        config: Config,
    ) -> None:
        """parts: patients of train, val and test. Raises ValueError when train has no candidate of one class."""
        self.candidates, self.split_sha256 = candidates, split_sha256
        self.preprocessing = candidates.config.preprocessing
        found = {part: candidates.of(patients) for part, patients in parts.items()}
        self.parts = {part: rows if config.rating else in_a_class(candidates, rows) for part, rows in found.items()}
        self.weights_path = Path(config.backbone_weights) if config.backbone_weights else None
        if self.weights_path is not None:  # what is told of a training names the weights, not their place
            digest = hashlib.sha256(self.weights_path.read_bytes()).hexdigest()
            config = replace(config, backbone_weights=digest)
        self.config = config
        self.name = named(system, config)
        positive = int((candidates.labels[self.parts["train"]] == 1).sum())
        negative = len(self.parts["train"]) - positive
        if not config.rating and not (positive and negative):
            raise ValueError(f"train has {positive} positive and {negative} negative candidates: both are needed")

    def model(self) -> nn.Module:
        return built(asdict(self.config), self.weights_path)

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return built(config)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        return sgd_or_adamw(self.config.optimiser, model, self.config)

    def drawn(self, epoch: int) -> np.ndarray:
        """Indices of the candidates of an epoch: as many positive as negative ones; of ratings all."""
        random = np.random.default_rng((self.config.seed, epoch))
        train = self.parts["train"]
        if self.config.rating:
            return train[random.permutation(len(train))]
        return train[balanced(self.candidates.labels[train], random)]

    def steps(self, epoch: int) -> int:
        return len(self.drawn(epoch)) // self.config.batch

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        random = (
            np.random.default_rng((self.config.seed, epoch, 1)) if split == "train" and self.config.augment else None
        )
        drawn, size = self.drawn(epoch) if split == "train" else self.parts[split], self.config.batch
        for start in range(0, len(drawn) - size + 1, size):
            yield self.batch(drawn[start : start + size], random)

    def batch(self, indices: np.ndarray, random: np.random.Generator | None = None) -> dict[str, Tensor]:
        patches = cut(torch.from_numpy(self.candidates.patches[indices]), self.candidates.config, random)
        if self.config.rating:
            assert self.candidates.ratings is not None
            truth = torch.from_numpy(self.candidates.ratings[indices]).float()
        else:
            truth = torch.from_numpy(self.candidates.labels[indices]).long()
        return {"patches": patches, "truth": truth}

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError("recurrent attention does not learn from teachers")

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        config = self.config
        if isinstance(model, CandidateNet):
            return attention_loss(
                model.recurrent,
                model(batch["patches"]),
                batch["truth"],
                converge=config.converge,
                diverge=config.diverge,
                divergence=config.divergence,
            )
        said = model(batch["patches"])
        if config.rating:
            return 0.5 * F.mse_loss(said[:, 0], batch["truth"])
        return F.cross_entropy(said, batch["truth"])

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """AUC and negative log likelihood, or mean squared error and correlation; the score is the negative error."""
        rows = self.parts[split]
        said = self.predict(model, rows)
        if self.config.rating:
            assert self.candidates.ratings is not None
            truth = self.candidates.ratings[rows]
            error = float(np.square(said - truth).mean()) if len(rows) else float("nan")
            return {"score": -error, "mse": error}
        truth = self.candidates.labels[rows]
        chance = np.clip(np.where(truth == 1, said, 1 - said), 1e-6, 1)
        nll = float(-np.log(chance).mean()) if len(rows) else float("nan")
        return {"score": -nll, "nll": nll, "auc": auc(said, truth)}

    @torch.inference_mode()
    def predict(self, model: nn.Module, rows: np.ndarray, *, flips: bool = False) -> np.ndarray:
        """float (n,): the probability of "positive", or the rating. flips: mean over mirrored patches, as served."""
        model.eval()
        device = next(model.parameters()).device
        out = []
        for start in range(0, len(rows), AT_ONCE):
            patches = self.batch(rows[start : start + AT_ONCE])["patches"].to(device)
            out.append(answer(model, patches, flips=flips, rating=self.config.rating).cpu().numpy())
        return np.concatenate(out) if out else np.zeros(0)


def in_a_class(candidates: Candidates, rows: np.ndarray) -> np.ndarray:
    return rows[candidates.labels[rows] != NEITHER]


def answer(model: nn.Module, patches: Tensor, *, flips: bool, rating: bool) -> Tensor:
    """(B, slices, 32, 32) -> (B,)"""
    said = []
    for view in VIEWS if flips else VIEWS[:1]:
        output = model(patches.flip(view) if view else patches)
        if isinstance(output, Answer):
            said.append(output.logits[:, -1, 0].float() if rating else probability(output))
        else:
            said.append(output[:, 0].float() if rating else output.float().softmax(dim=1)[:, 1])
    return torch.stack(said).mean(dim=0)


def built(config: Mapping[str, Any], weights: Path | None = None) -> nn.Module:
    """The network of a config, with fresh weights (and an extractor with those that are given)."""
    outputs = 1 if config["rating"] else 2
    if config["network"] == "resnet18":
        return ResNet18(outputs)
    frozen = bool(config["backbone_weights"])
    return CandidateNet(CandidateNetConfig.of({**config, "outputs": outputs, "frozen": frozen}), weights)


class ResNet18(nn.Module):
    """A 3-D ResNet-18 (Hara 2018, MONAI's) with a quarter of its channels: parameters as of recurrent attention."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        from monai.networks.nets import ResNet  # takes seconds to load

        stride: Any = (1, 2, 2)  # MONAI takes three, and declares one
        channels = [16, 32, 64, 128]
        self.net = ResNet(
            "basic", [2, 2, 2, 2], channels, n_input_channels=1, conv1_t_size=3, conv1_t_stride=stride,
            no_max_pool=True, num_classes=outputs,
        )  # fmt: skip

    def forward(self, patches: Tensor) -> Tensor:
        """(B, 9, 32, 32) in [0, 1] -> logits (B, outputs)"""
        return self.net(patches[:, None])


def named(system: str, config: Config) -> str:
    """What a training's files are called: the system, and how it departs from the default."""
    if config.network == "resnet18":
        parts = [system, "resnet18"]
    else:
        flags = {
            "inception": config.backbone == "inception-v3",
            "noattention": config.attention == "none",
            f"s{config.slices}": config.slices != Config.slices,
        }
        parts = [system, *(name for name, there in flags.items() if there), f"w{config.width}"]
    return "_".join([*parts, *(["rating"] if config.rating else [])])
