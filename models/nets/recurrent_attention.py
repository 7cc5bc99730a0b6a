"""Spatial-temporal recurrent attention: whether a candidate on nine slices is what is looked for.

A recurrent network looks at the slices in turns. Each turn it chooses a place on the slice (a Gaussian over 8 x 8
cells, the same on all slices) and slices (a mixture of three Gaussians, symmetric about the middle), and its memory
takes in what lies there. Every reading that the source leaves open is a default of RecurrentAttentionConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 8  # along a side of the feature maps
BLOCK = 2  # cells along a side of what the encoder reads at once
SCALE = 10.0  # of the Gaussians before the softmax: with 1 the weights would be almost even
SPIRAL = (  # (row, column) of the 4 x 4 blocks, clockwise from the upper left corner to the middle
    (0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1), (3, 0), (2, 0), (1, 0), (1, 1), (1, 2),
    (2, 2), (2, 1),
)  # fmt: skip

Attention = Literal["both", "none"]
Divergence = Literal["mean", "per_step"]


@dataclass(frozen=True)
class RecurrentAttentionConfig:
    """The defaults are the source's network, read as docs/decisions.md says.

    features    channels of the feature maps; 1280 is Mixed_7a of Inception-V3
    embedding   channels that they are brought to
    hidden      of both layers of both LSTMs; the source does not say
    slices      of a candidate, odd; 1: no choice of slices
    steps       turns
    variance    of the Gaussians, in the square of a slice's or the sequence's length
    attention   "none": the mean over cells and slices at every step, for the ablation
    init_h      the encoder's last output starts the second layer's, too, not its cell state alone
    outputs     of each step: 2 classes, or 1, a rating
    """

    features: int = 1280
    embedding: int = 200
    hidden: int = 256
    slices: int = 9
    steps: int = 8
    variance: float = 0.1
    attention: Attention = "both"
    init_h: bool = False
    outputs: int = 2

    def __post_init__(self) -> None:
        if self.slices % 2 == 0:
            raise ValueError(
                f"slices={self.slices}: an odd number is needed, the candidate is on the one in the middle"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From the JSON beside weights, which holds more."""
        return cls(**{one.name: config[one.name] for one in fields(cls) if one.name in config})


class Answer(NamedTuple):
    """logits (B, steps, outputs); spatial (B, steps, 64), temporal (B, steps, slices): weights of a step sum to one"""

    logits: Tensor
    spatial: Tensor
    temporal: Tensor


class RecurrentAttention(nn.Module):
    """Feature maps of the slices of a candidate -> what each step says of it; the last step's answer counts."""

    places: Tensor  # (64, 2) of the cells: x, y from 0 to 1
    times: Tensor  # (slices,) from 0 to 1

    def __init__(self, config: RecurrentAttentionConfig) -> None:
        super().__init__()
        self.config = config
        embedding, hidden = config.embedding, config.hidden
        self.embed = nn.Conv2d(config.features, embedding, 1)
        self.encoder = nn.LSTM(embedding * BLOCK**2, hidden, num_layers=2, batch_first=True)
        self.decoder = nn.ModuleList([nn.LSTMCell(embedding, hidden), nn.LSTMCell(hidden, hidden)])
        self.locate, self.locate_norm = nn.Linear(hidden + embedding, 2), nn.BatchNorm1d(2)
        half = config.slices // 2
        if half:
            self.side, self.side_norm = nn.Linear(half * embedding, 2), nn.BatchNorm1d(1)
            self.middle = nn.Linear(embedding, 1)
        self.head = nn.Linear(hidden, config.outputs)
        for part in (self.encoder, *self.decoder):
            remember(part)
        line = torch.linspace(0, 1, CELLS)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("places", torch.stack([x.flatten(), y.flatten()], dim=1), persistent=False)
        self.register_buffer("times", torch.linspace(0, 1, config.slices), persistent=False)

    def forward(self, features: Tensor) -> Answer:
        """(B, slices, features, 8, 8) -> Answer"""
        count, slices = features.shape[:2]
        maps = torch.tanh(self.embed(features.flatten(0, 1)))  # (B * slices, embedding, 8, 8)
        cells = maps.flatten(2).transpose(1, 2).unflatten(0, (count, slices))  # (B, slices, 64, embedding)
        centre = cells[:, slices // 2]  # (B, 64, embedding)
        state = self.begin(centre)
        glimpse = centre.mean(dim=1)  # (B, embedding)
        logits, spatial, temporal = [], [], []
        for _ in range(self.config.steps):
            where = self.where(state[1][0], glimpse)  # (B, 64)
            seen = torch.einsum("bp,bspe->bse", where, cells)  # (B, slices, embedding)
            glimpse = seen[:, slices // 2]
            when = self.when(seen)  # (B, slices)
            state = stepped(self.decoder, torch.einsum("bs,bse->be", when, seen), state)
            logits.append(self.head(state[1][0]))
            spatial.append(where)
            temporal.append(when)
        return Answer(*(torch.stack(each, dim=1) for each in (logits, spatial, temporal)))

    def begin(self, centre: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(B, 64, embedding) of the middle slice -> (h, c) of both layers of the decoder.

        An LSTM of its own reads the slice in 16 blocks along a spiral; its second layer's memory starts the decoder's.
        """
        zero = centre.new_zeros(len(centre), self.config.hidden)
        blocks = centre.unflatten(1, (CELLS // BLOCK, BLOCK, CELLS // BLOCK, BLOCK))  # (B, 4, 2, 4, 2, E)
        blocks = blocks.transpose(2, 3)  # (B, 4, 4, 2, 2, E)
        spiral = torch.stack([blocks[:, row, column].flatten(1) for row, column in SPIRAL], dim=1)  # (B, 16, 4 * E)
        _, (h, c) = self.encoder(spiral)  # (2, B, hidden) each
        return [(zero, zero), (h[1] if self.config.init_h else zero, c[1])]

    def where(self, memory: Tensor, glimpse: Tensor) -> Tensor:
        """(B, hidden), (B, embedding) -> weights (B, 64) of the cells"""
        if self.config.attention == "none":
            return memory.new_full((len(memory), CELLS**2), 1 / CELLS**2)
        middle = torch.sigmoid(self.locate_norm(self.locate(torch.cat([memory, glimpse], dim=1))))  # (B, 2): x, y
        apart = (self.places[None] - middle[:, None]).square().sum(dim=2)  # (B, 64)
        return (SCALE * torch.exp(-apart / (2 * self.config.variance))).softmax(dim=1)

    def when(self, seen: Tensor) -> Tensor:
        """(B, slices, embedding) -> weights (B, slices) of the slices

        One layer looks at both halves, each from its outer end to the middle; the middle has a place of its own.
        """
        count, slices = seen.shape[:2]
        half = slices // 2
        if self.config.attention == "none" or not half:
            return seen.new_full((count, slices), 1 / slices)
        halves = torch.stack([seen[:, :half], seen[:, half + 1 :].flip(1)], dim=1)  # (B, 2, half, embedding)
        share, place = self.side(halves.flatten(2)).unbind(dim=2)  # (B, 2) each
        left, right = torch.sigmoid(self.side_norm(place.reshape(-1, 1)).reshape(count, 2)).unbind(dim=1)
        centres = torch.stack([0.5 * left, torch.full_like(left, 0.5), 0.5 * (1 + right)], dim=1)  # (B, 3)
        middle = torch.sigmoid(self.middle(seen[:, half]))  # (B, 1)
        share = torch.sigmoid(share)
        shares = torch.cat([share[:, :1], middle, share[:, 1:]], dim=1).softmax(dim=1)  # (B, 3)
        apart = (self.times[None, :, None] - centres[:, None]).square()  # (B, slices, 3)
        bumps = SCALE * torch.exp(-apart / (2 * self.config.variance))
        return (bumps * shares[:, None]).sum(dim=2).softmax(dim=1)


def stepped(cells: nn.ModuleList, given: Tensor, state: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """One step of two LSTM cells on top of each other: the new (h, c) of each."""
    first = cells[0](given, state[0])
    return [first, cells[1](first[0], state[1])]


def remember(part: nn.Module) -> None:
    """Forget gates begin open: a bias of 1 (Jozefowicz 2015), where PyTorch adds two biases."""
    with torch.no_grad():
        for name, bias in part.named_parameters():
            if name.startswith("bias"):
                quarter = len(bias) // 4
                bias[quarter : 2 * quarter] = 1.0 if name.startswith("bias_ih") else 0.0


def attention_loss(
    model: RecurrentAttention,
    answer: Answer,
    truth: Tensor,
    *,
    converge: float = 1.0,
    diverge: float = 0.5,
    divergence: Divergence = "mean",
) -> Tensor:
    """answer, truth (B,) -> scalar: the error of every step, and two terms that guide the looking.

    truth        0 or 1, and cross-entropy; or a rating, and half the squared error
    converge     of the norms before each place: places gather round the middle, as those of a standard normal do
    diverge      that the cells seen over all steps together are even: the steps must not all look at one place
    divergence   "per_step": that the cells of each step are even, as the source's sum over steps can be read, too
    """
    steps = answer.logits.shape[1]
    said, wanted = answer.logits.flatten(0, 1), truth.repeat_interleave(steps)
    if model.config.outputs == 1:
        error = 0.5 * (said[:, 0] - wanted).square().sum() / len(truth)
    else:
        error = F.cross_entropy(said, wanted, reduction="sum") / len(truth)
    norms = [model.locate_norm, *([model.side_norm] if model.config.slices > 1 else [])]
    gathered = sum(((norm.weight - 1).square() + norm.bias.square()).sum() for norm in norms)
    if divergence == "mean":
        spread = 1 - answer.spatial.mean(dim=1).clamp_min(1e-12).log().mean(dim=1).mean()
    else:
        spread = 1 - answer.spatial.clamp_min(1e-12).log().mean(dim=2).sum(dim=1).mean()
    return error + converge * gathered + diverge * spread
