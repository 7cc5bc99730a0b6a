"""Losses for masks, and for what a teacher says. All take logits and average over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0, *, per_image: bool = False) -> Tensor:
    """1 - soft Dice over the whole batch, or the mean over its images: (B, 1, H, W), (B, 1, H, W) in {0, 1} -> scalar

    Over the batch large masks count most; per image every mask counts alike, and a false alarm on an empty one costs 1.
    """
    p, t = torch.sigmoid(logits.float()), target.float()
    if per_image:
        p, t = p.flatten(1), t.flatten(1)
    else:
        p, t = p.reshape(1, -1), t.reshape(1, -1)
    return (1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)).mean()


def bce_dice_loss(logits: Tensor, target: Tensor, *, per_image: bool = False) -> Tensor:
    """0.5·BCE + Dice, the loss of the residual U-Net: (B, 1, H, W), (B, 1, H, W) -> scalar"""
    bce = F.binary_cross_entropy_with_logits(logits.float(), target.float())
    return 0.5 * bce + dice_loss(logits, target, per_image=per_image)


def tversky_loss(logits: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5, smooth: float = 1.0) -> Tensor:
    """1 - Tversky index per image, averaged, Salehi 2017 (arXiv:1706.05721): (B, 1, H, W), (B, 1, H, W) -> scalar

    alpha weighs false positives, beta false negatives; with `smooth` an empty answer to an empty mask costs nothing.
    """
    p, t = torch.sigmoid(logits.float()).flatten(1), target.float().flatten(1)
    hit, extra, missed = (p * t).sum(1), (p * (1 - t)).sum(1), ((1 - p) * t).sum(1)
    return (1 - (hit + smooth) / (hit + alpha * extra + beta * missed + smooth)).mean()


def mask_distillation(logits: Tensor, probability: Tensor) -> Tensor:
    """Cross-entropy to the teachers' mean probability, Hinton 2015 (arXiv:1503.02531): (B, 1, H, W) twice -> scalar"""
    return F.binary_cross_entropy_with_logits(logits.float(), probability.float())


def class_distillation(logits: Tensor, probability: Tensor) -> Tensor:
    """KL(teachers' mean probability || student) per image, averaged: (B, classes) twice -> scalar"""
    return F.kl_div(logits.float().log_softmax(dim=1), probability.float(), reduction="batchmean")


def mean_probability(logits: list[Tensor]) -> Tensor:
    """The mean of several networks' mask probabilities, from logits of one shape; float32."""
    return torch.stack([each.float().sigmoid() for each in logits]).mean(dim=0)
