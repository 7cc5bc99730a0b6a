"""The rows of the breast table: one cross-validation each (models/breast_us/folds.py), all on the same folds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Ablation(NamedTuple):
    name: str
    changes: Mapping[str, str]  # of the config, as --set takes them
    plan: str  # stages in order
    note: str


ABLATIONS = (
    Ablation("ours: A and B as one, with C", {}, "joint,fusion", "C is used in the folds where val is no worse for it"),
    Ablation("B alone, without C", {}, "joint", 'also "figures without C" of the row above'),
    Ablation("C of the paper on the same weights", {"fusion": "published"}, "joint,fusion", "279 011 parameters"),
    Ablation("no smoothing", {"smoothing": "false"}, "joint", "142 parameters less"),
    Ablation("no CBAM", {"attention": "false"}, "joint", "five modules less"),
    Ablation("pooled heads", {"heads": "pooled"}, "joint", "the paper's inputs, pooled"),
    Ablation("literal heads", {"heads": "literal"}, "joint", "the inputs of the paper, a weight for every pixel"),
    Ablation("heads that see the lesion", {"heads": "lesion"}, "joint", "absence from three numbers of the mask alone"),
    Ablation("plain encoder", {"encoder": "plain"}, "joint", "width 16, from nothing"),
    Ablation("encoder lite0 from nothing", {"pretrained": "false"}, "joint", "what ImageNet is worth"),
    Ablation("encoder lite2", {"encoder": "lite2"}, "joint", "4.9 M instead of 3.4 M in the encoder"),
    Ablation("A, then B, then C", {}, "segmentation,classification,fusion", "three stages with our encoder"),
    Ablation("larger images", {"size": "288"}, "joint", "the archive has 320 on the shorter side"),
    Ablation("stronger variation", {"variation": "stronger", "epochs": "60"}, "joint", "longer, as it learns slower"),
    Ablation("another seed", {"seed": "2025"}, "joint", "how much of a difference is chance"),
)
