"""Recurrent attention ready to answer: verified weights, eight views of each patch averaged, and where it looked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models import weights
from models.nets.candidate_net import CandidateNet, CandidateNetConfig, probability
from models.patches import NETWORK_SHAPE, PatchConfig
from models.runtime import Runtime
from models.weights import WeightsError

AT_ONCE = 32  # candidates
VIEWS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3), (1,), (1, 2), (1, 3), (1, 2, 3))  # axes that are mirrored


@dataclass(frozen=True, eq=False)
class Said:
    """Of n candidates: probability (n,), or for a network of ratings the rating; spatial (n, steps, 8, 8) and temporal
    (n, steps, 9) weights of the patch as it is, each step's sum is one."""

    probability: np.ndarray
    spatial: np.ndarray
    temporal: np.ndarray


class CandidateServer:
    """In float32 wherever it runs: the answer must not depend on the machine, and the network is small."""

    def __init__(self, path: Path, config: PatchConfig, runtime: Runtime) -> None:
        """Raises WeightsError when the weights are missing, damaged, or learnt from other patches."""
        self.loaded = weights.load(path, config.preprocessing)
        about = self.loaded.about["config"]
        if about.get("network") != "recurrent_attention":
            raise WeightsError(f"{self.loaded.name} is no network of recurrent attention")
        self.rating = bool(about["rating"])
        self.device = runtime.device
        shape = CandidateNetConfig.of({**about, "outputs": 1 if self.rating else 2})
        net = self.loaded.into(CandidateNet(shape))
        assert isinstance(net, CandidateNet)
        self.net = net.to(self.device)

    def warm(self) -> None:
        self(np.zeros((1, *NETWORK_SHAPE), np.float32))

    @torch.inference_mode()
    def __call__(self, patches: np.ndarray) -> Said:
        """float32 (n, 9, 32, 32) in [0, 1], n > 0"""
        said, spatial, temporal = [], [], []
        for start in range(0, len(patches), AT_ONCE):
            batch = torch.from_numpy(patches[start : start + AT_ONCE]).to(self.device)
            answers = [self.net(batch.flip(view) if view else batch) for view in VIEWS]
            each = [one.logits[:, -1, 0] if self.rating else probability(one) for one in answers]
            said.append(torch.stack(each).mean(dim=0))
            spatial.append(answers[0].spatial.unflatten(2, (8, 8)))
            temporal.append(answers[0].temporal)
        parts = (torch.cat(each).float().cpu().numpy() for each in (said, spatial, temporal))
        return Said(*parts)
