"""The losses of NoduleNet's heads. Logits in, a scalar out; 0 where there is nothing to learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.lung_nodule.nodulenet.targets import NEGATIVE, POSITIVE, choose

NEGATIVES = 800  # of a crop, at random; of these the hardest HARDEST per positive, over the batch
HARDEST = 3
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


def sampled(labels: Tensor, positives: int) -> Tensor:
    """Labels (B, n) with so many random positives and NEGATIVES random negatives of each crop, NEITHER elsewhere."""
    out = torch.full_like(labels, -1)
    for row, mine in zip(labels, out, strict=True):
        mine[choose(row == POSITIVE, positives)] = POSITIVE
        mine[choose(row == NEGATIVE, NEGATIVES)] = NEGATIVE
    return out


def hard_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """0.5·BCE of the positives + 0.5·BCE of the hardest negatives, HARDEST to each positive: (B, n), (B, n)"""
    positive, negative = logits[labels == POSITIVE], logits[labels == NEGATIVE]
    hardest = negative.topk(min(len(negative), HARDEST * max(1, len(positive)))).values
    return 0.5 * mean(F.softplus(-positive)) + 0.5 * mean(F.softplus(hardest))


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over every anchor that is positive or negative, per positive; Lin 2017, eq. 5: (B, n), (B, n)"""
    known = labels >= 0
    x, truth = logits[known], labels[known].to(logits.dtype)
    surprise = F.binary_cross_entropy_with_logits(x, truth, reduction="none")  # -log(p_t)
    p = x.sigmoid()
    missing = truth * (1 - p) + (1 - truth) * p  # 1 - p_t
    alpha = truth * ALPHA + (1 - truth) * (1 - ALPHA)
    return (alpha * missing**GAMMA * surprise).sum() / truth.sum().clamp_min(1)


def box_loss(deltas: Tensor, truth: Tensor) -> Tensor:
    """Sum of the six means of smooth L1: (n, 6), (n, 6)"""
    return F.smooth_l1_loss(deltas, truth, reduction="sum") / max(1, len(deltas))


def class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy with both classes of equal weight, however many of each there are: (n, 2), (n,)"""
    counts = torch.bincount(truth, minlength=2).to(logits.dtype)
    weight = torch.where(counts > 0, 1 / counts.clamp_min(1), 0.0)
    if not len(truth):
        return logits.sum()
    return F.cross_entropy(logits, truth, weight=weight / weight.sum())


def mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())
