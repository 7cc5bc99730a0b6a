"""Find and verify weights. A checkpoint is `<name>.safetensors` beside its `<name>.json`; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from models.options import WeightsError

__all__ = ["Weights", "WeightsError", "load", "packed"]

PACKAGE = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Weights:
    """Verified tensors and what the JSON beside them says (config, metrics, split, SHA-256)."""

    name: str
    sha256: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    def as_float32(self) -> dict[str, Tensor]:
        """The tensors as they are calculated with; counters stay whole numbers."""
        return {name: t.float() if t.is_floating_point() else t for name, t in self.tensors.items()}

    def into(self, model: nn.Module) -> nn.Module:
        """Put the tensors into `model` as float32 and return it in eval mode. Raises WeightsError on a misfit."""
        return self.start(model).eval().requires_grad_(False)

    def start(self, model: nn.Module) -> nn.Module:
        """Put the tensors into `model` as float32, to be trained further. Raises WeightsError on a misfit."""
        try:
            model.load_state_dict(self.as_float32())
        except RuntimeError as error:
            raise WeightsError(f"{self.name}: the weights do not fit the network: {error}") from error
        return model


def packed(system: str, name: str) -> Path:
    """Where a checkpoint shipped with the package lies: packed("lung_nodule", "residual_unet_w16")."""
    return PACKAGE / system / f"{name}.safetensors"


def load(path: Path, preprocessing: str | None = None, split_sha256: str | None = None) -> Weights:
    """Read a checkpoint and check it against the SHA-256 in its JSON. Raises WeightsError with the reason in words.

    preprocessing: what the calling code does to an image; weights that learnt from another are refused.
    split_sha256: of the split that judges; weights that learnt on another may know its test patients and are refused.
    """
    sidecar = path.with_suffix(".json")
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is no .safetensors file; other formats can run code when opened and are not read")
    for needed in (path, sidecar):
        if not needed.is_file():
            raise WeightsError(f"{needed} is missing; train it with models.training.train or install the package again")
    try:
        about = json.loads(sidecar.read_text())
        expected = str(about["sha256"])
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{sidecar} does not state a sha256: {error}") from error
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WeightsError(f"{path} has SHA-256 {found[:12]}..., {sidecar.name} says {expected[:12]}...: do not use it")
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is no valid safetensors file: {error}") from error
    if preprocessing is not None and about.get("preprocessing") != preprocessing:
        raise WeightsError(
            f"{path.name} was trained on preprocessing {about.get('preprocessing')!r}, this code does"
            f" {preprocessing!r}; train it again or install the version it belongs to"
        )
    if split_sha256 is not None and about.get("split_sha256") != split_sha256:
        raise WeightsError(
            f"{path.name} learnt on another split of the patients than the one here: it may have learnt from those it"
            " would be judged on; train it again on this split"
        )
    return Weights(path.stem, found, tensors, about)
