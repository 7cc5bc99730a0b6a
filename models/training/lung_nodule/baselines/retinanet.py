"""MONAI's RetinaNet in three dimensions, on the voxels and crops of NoduleNet: a baseline.

Lin 2017 (arXiv:1708.02002). Heads, detector, anchors, matcher (ATSS, arXiv:1912.02424), focal loss, box coder and
suppression are those of monai.apps.detection, with the settings of its LUNA16 example where they do not depend on the
voxels. Its ResNet and its pyramid are joined here: what MONAI joins them with needs torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.losses.focal_loss import FocalLoss
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from models.layers.boxes import centres, iou
from models.lung_nodule.nodulenet.proposals import without_margin
from models.training.lung_nodule.nodulenet.evaluate import Mark
from models.training.lung_nodule.nodulenet.losses import ALPHA, GAMMA
from models.training.lung_nodule.nodulenet.targets import ANCHOR_IOU, present

ANCHORS_MM = (4.0, 6.0, 10.0)  # cubes, on the finest level; each further one doubles them
LEVEL_SCALES = (1, 2, 4, 8)  # of strides 4, 8, 16, 32
CANDIDATES = 4  # places a level that ATSS considers: this and the next three as in MONAI's example for LUNA16
MIN_SCORE = 0.02
OVERLAP = 0.22  # IoU above which of two boxes the less certain goes
MAX_BOXES = 100  # of an image


class ResNetPyramid(nn.Module):
    """The first three stages of MONAI's ResNet-18 and its feature pyramid, with a pooled level on top."""

    def __init__(self, width: int) -> None:
        super().__init__()
        planes = [2 * width, 4 * width, 8 * width]
        resnet = ResNet("basic", [2, 2, 2, 1], [*planes, 8], n_input_channels=1, conv1_t_stride=2, feed_forward=False)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act, resnet.maxpool)
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3])
        self.out_channels = 4 * width
        self.pyramid = FeaturePyramidNetwork(3, planes, self.out_channels, LastLevelMaxPool(3))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, D, H, W) -> four maps (B, out_channels, D / stride, H / stride, W / stride), strides 4 to 32"""
        x, maps = self.stem(image), OrderedDict()
        for number, stage in enumerate(self.stages):
            maps[str(number)] = x = stage(x)
        return list(self.pyramid(maps).values())


class Float32RetinaNet(RetinaNet):
    """Answers in float32 under autocast, too: MONAI makes its anchors in the type of the answers, and bfloat16 does not
    tell voxel 257 from voxel 258."""

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """(B, 1, D, H, W) -> "classification" and "box_regression", each a map per level"""
        return {name: [one.float() for one in maps] for name, maps in super().forward(images).items()}


class FocalLossPerPositive(nn.Module):
    """The focal loss as its paper has it, section 4.1: its sum per positive anchor.

    MONAI's "mean" is over all anchors, and so is its "sum" where there are no dimensions of space.
    """

    def __init__(self) -> None:
        super().__init__()
        self.each = FocalLoss(gamma=GAMMA, alpha=ALPHA, reduction="none")

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(n, 1), (n, 1) -> scalar"""
        return cast(Tensor, self.each(logits, truth)).sum() / truth.sum().clamp_min(1)


class NoduleRetinaNet(RetinaNetDetector):
    """The detector, and how it learns from NoduleNet's batches. A box is a nodule's own, without NoduleNet's margin."""

    multiple = 32  # voxels; every side of an input is a multiple of this

    def __init__(self, width: int) -> None:
        anchors = AnchorGeneratorWithAnchorShape(LEVEL_SCALES, [(side,) * 3 for side in ANCHORS_MM])
        network = Float32RetinaNet(3, 1, len(ANCHORS_MM), ResNetPyramid(width), size_divisible=self.multiple)
        super().__init__(network, anchors)
        self.set_cls_loss(FocalLossPerPositive())
        self.set_atss_matcher(num_candidates=CANDIDATES, center_in_gt=False)
        self.set_box_selector_parameters(
            score_thresh=MIN_SCORE, topk_candidates_per_level=1000, nms_thresh=OVERLAP, detections_per_img=MAX_BOXES
        )

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """A batch of models.training.lung_nodule.nodulenet.data.make_batches -> scalar"""
        targets = [
            {
                "boxes": without_margin(present(boxes)),
                "ignored": without_margin(present(ignored)),
                "labels": torch.zeros(len(present(boxes)), dtype=torch.long, device=boxes.device),
            }
            for boxes, ignored in zip(batch["boxes"], batch["ignored"], strict=True)
        ]
        losses = cast(Mapping[str, Tensor], self(batch["image"], targets))
        return torch.stack([*losses.values()]).sum()

    def compute_anchor_matched_idxs(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]], num_anchor_locs_per_level: Sequence[int]
    ) -> list[Tensor]:
        """(anchors,) of each image: which box, -1 for background, -2 for what is learnt neither way."""
        found = []
        for mine, target in zip(anchors, targets, strict=True):
            matched = torch.full((len(mine),), self.proposal_matcher.BELOW_LOW_THRESHOLD, device=mine.device)
            if len(target["boxes"]):
                _, matched = self.proposal_matcher(
                    target["boxes"], mine, num_anchor_locs_per_level, self.num_anchors_per_loc
                )
            if len(target["ignored"]):
                near = iou(mine, target["ignored"]).amax(dim=1) >= ANCHOR_IOU[0]
                matched[near & (matched < 0)] = self.proposal_matcher.BETWEEN_THRESHOLDS
            found.append(matched)
        return found

    def answers(self, image: Tensor) -> dict[str, list[Mark]]:
        """(1, 1, D, H, W) in eval mode -> marks, by the rule that made them; here there is one."""
        (found,) = cast(list[dict[str, Tensor]], self(image))
        middles = (centres(found["boxes"]) - 0.5).tolist()  # of the boxes voxel 0 is from 0 to 1
        scores = found["labels_scores"].tolist()
        return {"boxes": [Mark((z, y, x), score) for (z, y, x), score in zip(middles, scores, strict=True)]}
