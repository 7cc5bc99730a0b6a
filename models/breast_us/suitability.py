"""Is this a breast ultrasound at all? Witnesses: the header, the picture's outline, the encoder's own features.

How far a picture's features lie from those of the training images is a Mahalanobis distance in their principal
components, with what the components leave over as one more; in units of the distance that 1 % of validation images
pass. From 1 a picture is unfamiliar. From `foreign`, which stands beside the weights and which 1 % of the images of a
hospital pass whose own had no part in the fit, it is no breast. Between them lie breasts on other machines and other
organs alike, and only a warning can be given; but a fan, as curved and phased probes draw it, is no breast
examination, and unfamiliar too it is not looked at. Synthetic breasts (models.phantoms) are known beside real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydicom.dataset import Dataset
from scipy import ndimage
from torch import Tensor, nn

from dicom_sr import attributes
from models.breast_us.letterbox import PREPROCESSING, normalise, prepare
from models.breast_us.margins import without_margins
from models.nets.breast_triple import ClassificationNet, LiteSegmentationNet
from models.runtime import Runtime
from models.weights import WeightsError, load

SIZE = 160  # side of the letterbox
MAPS = (2, 3)  # of the encoder's five: 1/8 and 1/16 of the side, texture more than meaning
FAN_SIDE = 96  # the picture, shrunk, whose outline is looked at
CORNER, CORNER_LIT = 0.18, 0.3  # of the side; of a corner. Of 1716 breast images the darkest has 0.36
NOT_LINEAR = ("CURVED", "SECTOR", "PHASED", "ENDOCAV", "ENDORECTAL", "TRANSESOPH")  # Transducer Type, PS3.3 C.8.5.6

KINDS = ("breasts", "phantoms")
FOREIGN = "it does not look like an ultrasound image of a breast"


class Texture(nn.Module):
    """The encoder's channel means at MAPS."""

    def __init__(self, net: ClassificationNet) -> None:
        super().__init__()
        assert isinstance(net.body, LiteSegmentationNet)
        self.encoder = net.body.encoder

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, channels of MAPS)"""
        maps = self.encoder(image)
        return torch.cat([maps[which].float().mean((2, 3)) for which in MAPS], dim=1)


@dataclass(frozen=True, eq=False)
class Familiar:
    """Features of one kind of pictures: mean, scale, principal components, variances, and the variance left over."""

    mean: np.ndarray  # (C,)
    scale: np.ndarray  # (C,)
    basis: np.ndarray  # (C, K)
    variance: np.ndarray  # (K,)
    rest: np.ndarray  # ()
    limit: np.ndarray  # (), the distance that 1 % of other pictures of the kind pass

    def distance(self, features: np.ndarray) -> np.ndarray:
        """(N, C) -> (N,) in units of the limit"""
        z = (features - self.mean) / self.scale
        along = z @ self.basis
        within = (along**2 / self.variance).mean(axis=1)
        return np.sqrt(within + ((z**2).sum(axis=1) - (along**2).sum(axis=1)) / self.rest) / self.limit


@dataclass(frozen=True)
class Verdict:
    distance: float  # from the nearest kind that is known, in units of its limit
    fan: bool
    foreign: bool  # not to be looked at

    @property
    def unfamiliar(self) -> bool:
        return self.distance > 1


@dataclass(frozen=True, eq=False)
class Suitability:
    """Judges pictures by the features of the weights it belongs to."""

    texture: Callable[[Tensor], tuple[Tensor, ...]]  # (N, 1, H, W) -> (N, C)
    known: Sequence[Familiar]
    foreign: float
    sha256: str = ""  # of the file it was read from

    def judge(self, grey: np.ndarray, curved: bool = False) -> Verdict:
        """(rows, columns) uint8 of one region; curved: the header names such a probe."""
        seen = features(self.texture, [grey])
        distance = min(float(kind.distance(seen)[0]) for kind in self.known)
        fan = curved or fan_shaped(grey)
        return Verdict(distance, fan, distance > self.foreign or (fan and distance > 1))


def features(texture: Callable[[Tensor], tuple[Tensor, ...]], pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(rows, columns) uint8 each -> (N, C)"""
    square = [prepare(grey[without_margins(grey)], SIZE)[0] for grey in pictures]
    (said,) = texture(normalise(torch.stack(square)[:, None]))
    return said.cpu().numpy().astype(np.float64)


def read_suitability(weights: Path, net: ClassificationNet, named: str, sha256: str, runtime: Runtime) -> Suitability:
    """The file beside the weights. Raises WeightsError when it is missing, damaged, or of other weights."""
    stored = load(weights.with_name(f"{named}.safetensors"), PREPROCESSING)
    if stored.about.get("weights_sha256") != sha256:
        raise WeightsError(f"{named} was fitted to other weights than {weights.name}; fit it again or take it out")
    known = [
        Familiar(**{part.name: stored.tensors[f"{kind}.{part.name}"].double().numpy() for part in fields(Familiar)})
        for kind in KINDS
    ]
    return Suitability(runtime.plain(Texture(net)), known, stored.about["foreign"], stored.sha256)


def fan_shaped(grey: np.ndarray) -> bool:
    """(rows, columns) uint8: the largest lit piece is dark in both upper corners, as curved and phased probes draw."""
    small = np.asarray(Image.fromarray(grey).resize((FAN_SIDE, FAN_SIDE), Image.Resampling.BOX))
    pieces, count = ndimage.label(ndimage.binary_opening(small > 10))
    if not count:
        return False
    piece = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    rows, columns = ndimage.find_objects(piece.astype(int))[0]
    piece = piece[rows, columns]
    high, wide = (max(1, round(CORNER * side)) for side in piece.shape)
    return float(max(piece[:high, :wide].mean(), piece[:high, -wide:].mean())) < CORNER_LIT


def curved_probe(header: Dataset) -> str:
    """The header's TransducerType if it is none for breasts, else ""."""
    kind = attributes.text(header, "TransducerType")
    return kind if any(word in kind.upper() for word in NOT_LINEAR) else ""
