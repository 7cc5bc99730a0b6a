"""Several networks, or several views of an image, as one: the mean of their mask probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.runtime import Runtime

PLAIN = ((0, False),)
DIHEDRAL = tuple((turns, flip) for flip in (False, True) for turns in range(4))  # the 8 symmetries of a square


class Ensemble:
    """`probability` of networks that map (B, 1, H, W) to mask logits of that shape.

    views   (quarter turns, whether mirrored after that) of each image that are shown; DIHEDRAL for test-time flips
    """

    def __init__(self, nets: Sequence[nn.Module], runtime: Runtime, views: Sequence[tuple[int, bool]] = PLAIN) -> None:
        self.nets, self.runtime, self.views = [runtime.place(net) for net in nets], runtime, views

    @torch.inference_mode()
    def probability(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) -> float32 (B, 1, H, W) on the CPU"""
        images = self.runtime.take(images)
        with self.runtime.precision():
            answers = list(self._answers(images))
        return torch.stack(answers).mean(dim=0).cpu()

    def _answers(self, images: Tensor) -> Iterator[Tensor]:
        for turns, flip in self.views:
            view = images.rot90(turns, (2, 3))
            view = view.flip(3) if flip else view
            for net in self.nets:
                answer = net(view.contiguous(memory_format=torch.channels_last)).float().sigmoid()
                yield (answer.flip(3) if flip else answer).rot90(-turns, (2, 3))
