"""Weights as they are shipped: fp16 safetensors, and beside them where they come from."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from models.training.files import replacing, write_text
from models.training.recipe import Recipe
from models.weights import WeightsError


@dataclass
class Origin:
    """What a training started from and learnt from besides its data: SHA-256 of the weights -> their name."""

    init: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)

    def continued(self, stored: Mapping[str, Any] | None, out: Path) -> Origin:
        """The stored one, if this is the same training. Raises WeightsError when the teachers have changed."""
        before = Origin(**(stored or {}))
        if before.teachers.keys() != self.teachers.keys():
            told = ", ".join(f"{name} ({sha256[:12]})" for sha256, name in before.teachers.items())
            raise WeightsError(
                f"{out / 'last.pt'} was trained with {told or 'no teacher'}; go on with the same, or start in another"
                " folder"
            )
        return before


def export(
    recipe: Recipe,
    model: nn.Module,
    metrics: Mapping[str, float],
    epoch: int,
    out: Path,
    origin: Origin | None = None,
) -> Path:
    """Write the weights as fp16 safetensors and, beside them, where they come from. Returns the weights' path.

    Buffers stay float32: a batch-norm variance can exceed 65504, the largest fp16. A kill leaves both files as they
    were, or, in the moment between them, two that weights.load refuses by SHA-256 and that a resume writes again.
    """
    path = out / f"{recipe.name}.safetensors"
    learnt = {name for name, _ in model.named_parameters()}
    half = {name: (t.half() if name in learnt else t).contiguous().cpu() for name, t in model.state_dict().items()}
    spoilt = [name for name, t in half.items() if not torch.isfinite(t).all()]
    if spoilt:
        raise OverflowError(f"{', '.join(spoilt)} hold numbers that fp16 cannot; nothing was exported")
    content = save(half)
    sidecar = {
        "name": recipe.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": asdict(recipe.config),
        "epoch": epoch + 1,
        "metrics": dict(metrics),
        "split_sha256": recipe.split_sha256,
        "preprocessing": recipe.preprocessing,
        **{name: what for name, what in asdict(origin or Origin()).items() if what},
        "git_sha": git_sha(),
        "torch": torch.__version__,
    }
    with replacing(path) as tensors, replacing(path.with_suffix(".json")) as about:  # both written, then both replaced
        tensors.write_bytes(content)
        about.write_text(json.dumps(sidecar, indent=2) + "\n", "utf-8")
    return path


def git_sha() -> str:
    """The commit of the code that trained, or "unknown" outside a checkout."""
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def note(weights: Path, fields: Mapping[str, Any]) -> None:
    """Add fields to the JSON beside weights, whole or not at all."""
    sidecar = weights.with_suffix(".json")
    about = {**json.loads(sidecar.read_text("utf-8")), **fields}
    write_text(sidecar, json.dumps(about, indent=2) + "\n")
