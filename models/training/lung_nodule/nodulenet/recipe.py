"""How NoduleNet is trained: whole chest CTs of 1 mm, the RPN first, then the RCNN head too, then the mask head.

    python -m models.training.train nodulenet --data FOLDER --out runs/nodulenet --width 12 --epochs 60
    --set focal=false        hard negatives and cross-entropy instead of focal loss, as published
    --set fpn=false          boxes from the decoder's map, as published
    --set coupled=true       the RCNN head looks at what the RPN classifies
    as published: --set optimiser=sgd --set lr=0.01 --set crop=128 --set background_fraction=0 --set degrade_prob=0
                  --set min_score=0.5

FOLDER is whatever models.training.lung_nodule.data.scans.Scans reads.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.grid import in_common
from models.layers.boxes import decode, encode
from models.lung_nodule.detections import Detection3D
from models.lung_nodule.nodulenet.detect import DetectOptions, detect
from models.lung_nodule.nodulenet.preprocess import PREPROCESSING
from models.lung_nodule.nodulenet.proposals import proposals
from models.nets.nodulenet import MASK, RCNN, RPN, Maps, NoduleNet, NoduleNetConfig, align_boxes, cut, flat
from models.training.evaluation.froc import froc, hitting
from models.training.layouts import CACHE
from models.training.losses import tversky_loss
from models.training.lung_nodule.data.scans import Lesion, Scan, Scans
from models.training.lung_nodule.nodulenet.data import Place, PreparedScans, cache_name, crops, make_batches, mistakes
from models.training.lung_nodule.nodulenet.losses import box_loss, class_loss, focal_loss, hard_cross_entropy, sampled
from models.training.lung_nodule.nodulenet.targets import POSITIVE, label_anchors, present, sample_rois
from models.training.recipe import TrainConfig, sgd_or_adamw

EVALUATED = DetectOptions(min_score=0.05, closer=0.05)  # a mask for each mark, however certain
NOTHING = np.zeros((0, 0, 0), np.int16)


@dataclass(frozen=True)
class Config(TrainConfig):
    width: int = 12  # of 24
    epochs: int = 60
    batch: int = 4
    amp: bool = False  # bfloat16; sound on a GPU, and on a processor with crops of 64 or more (decisions.md)
    lr: float = 1e-3
    ema_decay: float = 0.99
    focal: bool = True  # this and the next two: see NoduleNetConfig
    fpn: bool = True
    coupled: bool = False
    optimiser: str = "adamw"  # or "sgd" with momentum 0.9, as published
    crop: int = 96  # voxels along a side; 128 as published
    crops: int = 400  # of an epoch
    background_fraction: float = (
        0.25  # share of them round a random place in the lungs instead of a nodule; 0 as published
    )
    hard_negatives: str = (
        ""  # file of hard_negatives.py; every second of the crops anywhere is then round one of its places
    )
    degrade_prob: float = 0.5  # share of them with noise, offset and thick slices, see data.degraded; 0 as published
    glass_prob: float = 0.0  # share of the crops round a nodule with dense nodules thinned to ground glass
    faint_times: int = 1  # so often comes a nodule with a median below data.FAINT_HU for each time that another comes
    positives: int = 1  # anchors of a crop that cross-entropy learns from; focal loss takes all
    rcnn_from: float = 65 / 200  # share of the epochs after which the RCNN head learns too
    mask_from: float = 80 / 200
    mask_alone: bool = False  # nothing but the mask head and its decoder learns then; needs fpn
    min_score: float = 0.1  # RPN probability of the boxes that the RCNN head learns from; 0.5 as published
    max_proposals: int = 100  # of an image, at most
    max_masks: int = 4  # boxes of an image that the mask head learns from, at most
    val_scans: int = 6  # looked through after each epoch; the whole split is for the test
    cache: str = ""  # folder for prepared scans; layouts.CACHE when empty


class NoduleNetRecipe:
    """Recipe of `models.training.train nodulenet`."""

    preprocessing = PREPROCESSING

    def __init__(self, data: Path, config: Config) -> None:
        self.scans = Scans(data)
        self.configure(config)
        self.split_sha256 = self.scans.split_sha256
        names = self.scans.split["train"]
        cache = Path(config.cache or CACHE).expanduser() / cache_name(data, names)
        self.prepared = PreparedScans(names, self.scans.load, cache)
        self.lesions = self.prepared.lesions()

    @cached_property
    def faint(self) -> list[Place]:
        return self.prepared.faint(self.lesions)

    def configure(self, config: Config) -> None:
        """Take other hyper-parameters, on the same data. Raises ValueError for those that make no sense."""
        if config.optimiser not in ("adamw", "sgd"):
            raise ValueError(f"optimiser={config.optimiser!r}: adamw or sgd")
        if config.crop % 16:
            raise ValueError(f"crop={config.crop}: a multiple of 16 is needed")
        if config.mask_alone and not config.fpn:
            raise ValueError("mask_alone=true needs fpn=true: else boxes are proposed on the mask head's own decoder")
        if config.mask_alone and config.mask_from >= 1:
            raise ValueError("mask_alone=true without a mask stage: mask_from must be below 1")
        self.hard_negatives = mistakes(Path(config.hard_negatives), self.scans.digest) if config.hard_negatives else []
        if config.hard_negatives:  # what is told of a training names the list, not its place
            config = replace(
                config, hard_negatives=hashlib.sha256(Path(config.hard_negatives).read_bytes()).hexdigest()
            )
        self.config = config
        self.name = named(config)

    def model(self) -> NoduleNet:
        return self.network(asdict(self.config))

    def network(self, config: Mapping[str, Any]) -> NoduleNet:
        return NoduleNet(NoduleNetConfig.of(config))

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        return sgd_or_adamw(self.config.optimiser, model, self.config)

    def steps(self, epoch: int) -> int:
        return self.config.crops // self.config.batch

    def stage(self, epoch: int) -> int:
        """RPN, RCNN or MASK: the heads that learn in this epoch."""
        share = epoch / self.config.epochs
        return RPN + (share >= self.config.rcnn_from) + (share >= self.config.mask_from)

    def batches(self, split: str, epoch: int) -> Iterator[dict[str, Tensor]]:
        if split != "train":
            raise ValueError(f"NoduleNet is judged on whole scans, not on batches of {split}")
        config = self.config
        drawn = crops(
            self.prepared,
            self.lesions + (self.faint * (config.faint_times - 1) if config.faint_times > 1 else []),
            seed=(config.seed, epoch),
            count=config.crops,
            side=config.crop,
            background_fraction=config.background_fraction,
            degrade_prob=config.degrade_prob,
            glass_prob=config.glass_prob,
            hard_negatives=self.hard_negatives,
        )
        for batch in make_batches(drawn, config.batch):
            yield batch | {"stage": torch.tensor(self.stage(epoch))}

    def distillation_targets(self, teachers: Sequence[nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ValueError("nodulenet does not learn from teachers: what one proposes another does not")

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The plain sum over the heads that learn in this epoch. The network remembers which those are."""
        assert isinstance(model, NoduleNet)
        model.stage.copy_(batch["stage"])
        if self.config.mask_alone and int(batch["stage"]) == MASK:
            model.keep_detection()
        return sum(losses(model, batch, self.config).values(), torch.zeros((), device=batch["image"].device))

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """By whole scans: CPM, sensitivity at 1 false positive a scan and at any number, mean Dice of what was found.

        Of "val" the first val_scans with a lesion. score: CPM (with masks the mean of it and Dice), raised so that an
        epoch in which more heads have learnt is better than any in which fewer had.
        """
        assert isinstance(model, NoduleNet)
        names = self.scans.split[split]
        loaded: Iterator[Scan] = map(self.scans.load, names)
        if split == "val":
            loaded = itertools.islice((scan for scan in loaded if scan.lesions), self.config.val_scans)
        found, judged = [], []
        for scan in loaded:
            found.append(detect(model, scan.hu, scan.lungs, options=EVALUATED))
            judged.append(replace(scan, hu=NOTHING, lungs=NOTHING))  # the volumes of many do not fit into memory
        return judgement(found, judged, int(model.stage))


def judgement(found: Sequence[Sequence[Detection3D]], scans: Sequence[Scan], stage: int) -> dict[str, float]:
    """Figures of detections and the truth. With "score": see NoduleNetRecipe.evaluate."""
    if not any(scan.lesions for scan in scans):
        return {"score": math.nan, "scans": len(scans)}
    curve = froc(
        found,
        [scan.lesions for scan in scans],
        irrelevant=[scan.irrelevant for scan in scans],
        groups=[scan.patient for scan in scans],
        shares=[scan.share for scan in scans],
        rounds=1,
    )
    overlap = [dice_of(marks, lesion) for marks, scan in zip(found, scans, strict=True) for lesion in scan.lesions]
    hit = [one for one in overlap if one is not None]
    dice = float(np.mean(hit)) if hit else 0.0
    figure = curve.cpm.value if stage < MASK else (curve.cpm.value + dice) / 2
    return {
        "score": (stage - RPN + figure) / (1 + MASK - RPN),
        "cpm": curve.cpm.value,
        "sensitivity_at_1": curve.at[1.0].value,
        "found": len(hit) / len(overlap),
        "dice": dice,
        "marks": sum(map(len, found)) / len(scans),
        "stage": stage,
    }


def dice_of(marks: Sequence[Detection3D], lesion: Lesion) -> float | None:
    """Dice of the most certain mark that hits the lesion, 0 if it has no mask; None when none hits."""
    on = [one for one, hits in zip(marks, hitting(marks, [lesion]), strict=True) if hits.any()]
    if not on:
        return None
    best = max(on, key=lambda one: one.score)
    if best.mask is None:
        return 0.0
    shared = in_common(best.mask, best.box[:3], lesion.mask, lesion.offset_zyx)
    return float(2 * shared / (best.mask.sum() + lesion.mask.sum()))


# ----------------------------------------------------------------------------------------------------------- losses


def losses(model: NoduleNet, batch: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Losses of the heads that learn: rpn_class, rpn_box; rcnn_class, rcnn_box; mask. Batches of `make_batches`."""
    stage = int(batch["stage"])
    levels, maps = model(batch["image"])
    anchors, logits, deltas = flat(levels)
    truth = [
        (present(boxes), present(ignored)) for boxes, ignored in zip(batch["boxes"], batch["ignored"], strict=True)
    ]
    labelled = [label_anchors(anchors, boxes, ignored) for boxes, ignored in truth]
    labels = torch.stack([each for each, _ in labelled])
    if not config.focal:
        labels = sampled(labels, config.positives)
    wanted, given = [], []
    for (boxes, _), (_, which), row, said in zip(truth, labelled, labels, deltas, strict=True):
        positive = row == POSITIVE
        given.append(said[positive])
        wanted.append(encode(boxes[which[positive]], anchors[positive]) if len(boxes) else said[positive])
    out = {
        "rpn_class": (focal_loss if config.focal else hard_cross_entropy)(logits, labels),
        "rpn_box": box_loss(torch.cat(given), torch.cat(wanted)),
    }
    if stage >= RCNN:
        out |= second_look(model, levels, maps, batch, truth, config, outlines=stage >= MASK)
    return out


def second_look(
    model: NoduleNet,
    levels: Sequence[Any],
    maps: Maps,
    batch: Mapping[str, Tensor],
    truth: Sequence[tuple[Tensor, Tensor]],
    config: Config,
    *,
    outlines: bool,
) -> dict[str, Tensor]:
    """The losses of the RCNN head and of the mask head, on what the RPN proposes now and on the nodules themselves."""
    shape = batch["image"].shape[2:]
    logits, kinds, given, wanted, masks = [], [], [], [], []
    for image, (boxes, ignored) in enumerate(truth):
        proposed, _ = proposals(levels, image, shape, min_score=config.min_score, max_proposals=config.max_proposals)
        rois, kind, which = sample_rois(proposed, boxes, ignored)
        said, deltas = model.judge(maps, image, rois)
        logits.append(said)
        kinds.append(kind)
        nodule = kind == 1
        given.append(deltas[nodule, 1])
        wanted.append(encode(boxes[which[nodule]], rois[nodule]) if len(boxes) else deltas[nodule, 1])
        if outlines and len(boxes):
            # the nodules' own boxes, then those the head itself makes of the proposals, as it will be asked
            better = torch.cat([boxes, decode(deltas[nodule, 1], rois[nodule]).detach().float()])
            whose = torch.cat([torch.arange(len(boxes), device=boxes.device), which[nodule]])
            for box, number in zip(
                align_boxes(better[: config.max_masks], shape).tolist(), whose[: config.max_masks].tolist(), strict=True
            ):
                target = batch["masks"][image, 0][cut(box)] == number + 1
                if target.any():
                    outline = model.outline(maps, batch["image"], image, box)
                    masks.append(tversky_loss(outline[None], target[None], smooth=1e-5))
    out = {
        "rcnn_class": class_loss(torch.cat(logits), torch.cat(kinds)),
        "rcnn_box": box_loss(torch.cat(given), torch.cat(wanted)),
    }
    if outlines:  # without a mask a zero that gradients can be taken of
        out["mask"] = torch.stack(masks).mean() if masks else 0 * model.outliner.logits.bias.sum()  # type: ignore[union-attr]
    return out


def named(config: Config) -> str:
    """What a training's files are called: how it departs from the default, and its width."""
    flags = {"ohem": not config.focal, "nofpn": not config.fpn, "coupled": config.coupled}
    return "_".join(["nodulenet", *(name for name, there in flags.items() if there), f"w{config.width}"])


def build(data: Path, config: Config) -> NoduleNetRecipe:
    return NoduleNetRecipe(data, config)
