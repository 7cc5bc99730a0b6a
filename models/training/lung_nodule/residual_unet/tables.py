"""The tables of the residual U-Net's source, row by row under one budget.

    python -m models.training.evaluation.evaluate residual_unet --data slices.zip --table --budget small

The source judges 4094 slices of its own test patients, we those of our split: rows are to be compared with each other
first, and with the source's second.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.lung_nodule.preprocess import SIDE, window
from models.phantoms import chest_ct
from models.read import read_ct
from models.training.evaluation.ensemble import Ensemble
from models.training.evaluation.tables import Result, Row, Study, Table, with_reasons
from models.training.layouts import open_root
from models.training.lung_nodule.data.crops import index_of
from models.training.lung_nodule.residual_unet import recipe as lung
from models.training.lung_nodule.residual_unet.evaluate import load_ensemble, look, rule
from models.training.plots import save_grid
from models.training.train import configured
from models.training.trainer import train

FIGURES = {
    "IoU, all slices": ".3f",
    "Dice, all slices": ".3f",
    "accuracy": ".3f",
    "TP": ".0f",
    "TN": ".0f",
    "FP": ".0f",
    "FN": ".0f",
}

BUDGETS: Mapping[str, Mapping[str, str]] = {
    # what two cores do in about two minutes a row: enough to see a network learn, not to tell close ones apart
    "small": {
        "width": "8", "crop": "64", "centred": "true", "negatives": "0.34", "epochs": "3", "batch": "32",
        "lr": "0.002", "warm_up_epochs": "0.5", "ema_decay": "0.98", "val_crops": "200",
    },
    # the source's, where it states one: for a GPU
    "full": {
        "width": "64", "crop": "128", "small_epochs": "0", "large_share": "1", "negatives": "0.34",
        "large_negatives": "0.34", "epochs": "150", "batch": "32", "lr": "0.0003", "warm_up_epochs": "5",
        "ema_decay": "0.999", "dice_per_image": "false",
    },
}  # fmt: skip


def counted(iou: float, tp: int, tn: int, fp: int, fn: int) -> dict[str, float]:
    """A line of the source's first table; it states the counts, and from them follows the accuracy."""
    counts = {"TP": tp, "TN": tn, "FP": fp, "FN": fn}
    return {"IoU, all slices": iou, "accuracy": (tp + tn) / sum(counts.values()), **counts}


def overlap(iou: float, dice: float | None = None) -> dict[str, float]:
    return {"IoU, all slices": iou} | ({} if dice is None else {"Dice, all slices": dice})


MODEL_1 = {"vit": "true", "scse": "encoder"}
NO_CTS = f"needs whole CTs: the crops here are of {SIDE} pixels"

TABLES = (
    Table(
        "Where the scSE gates are",
        (
            Row("none", {"scse": "none"}, counted(0.740, 2452, 1373, 4, 265)),
            Row("encoder", {"scse": "encoder"}, counted(0.819, 2447, 1373, 4, 270)),
            Row("decoder", {"scse": "decoder"}, counted(0.812, 2438, 1369, 8, 279)),
            Row("bottleneck", {"scse": "bottleneck"}, counted(0.811, 2432, 1368, 9, 285)),
            Row("encoder + bottleneck (Model 2)", {"scse": "encoder+bottleneck"}, counted(0.818, 2481, 1369, 8, 236)),
            Row("decoder + bottleneck", {"scse": "decoder+bottleneck"}, counted(0.806, 2403, 1368, 9, 314)),
            Row("encoder + decoder", {"scse": "encoder+decoder"}, counted(0.815, 2474, 1369, 8, 243)),
            Row("all", {"scse": "encoder+decoder+bottleneck"}, counted(0.816, 2456, 1370, 7, 261)),
            Row("encoder + ViT (Model 1)", MODEL_1, counted(0.820, 2510, 1364, 14, 207)),
        ),
        "The source's counts for Model 1 sum to 4095, one more than its test slices, and its 94.63 % are of 4094; the"
        " accuracy here is of the counts as printed.",
    ),
    Table(
        "Other networks",
        (
            Row("U-Net", {"net": "unet"}, overlap(0.781)),
            Row("Attention U-Net", {"net": "attention_unet"}, overlap(0.814)),
            Row("TransUNet", {"net": "transunet"}, overlap(0.808)),
        ),
    ),
    Table(
        "Size of the crops, Model 1",
        (
            Row("512", {**MODEL_1, "crop": "512"}, overlap(0.625, 0.69)),
            Row("256", {**MODEL_1, "crop": "256"}, overlap(0.810, 0.872)),
            Row("128", {**MODEL_1, "crop": "128"}, overlap(0.820, 0.879)),
            Row("96", {**MODEL_1, "crop": "96"}),
            Row("64", {**MODEL_1, "crop": "64"}, overlap(0.812, 0.875)),
            Row("32", {**MODEL_1, "crop": "32"}),
        ),
        "Each is trained and judged on crops of its size, cut from the middle of the stored ones; in those of 32"
        " pixels large nodules are cut off, in the truth too. 256 and 512 pixels cannot be had from stored crops of 128"
        " pixels; from whole CTs in the LIDC-IDRI or LUNA16 layout they can. Each row sees as many crops as the others:"
        " its time goes with its area.",
    ),
)


def tables_of(data: Path) -> tuple[Table, ...]:
    """The tables for these data: from stored crops no larger ones can be cut, from whole CTs any."""
    stored = index_of(open_root(data)) is not None
    return with_reasons(TABLES, lambda row: NO_CTS if stored and int(row.changes.get("crop", 0)) > SIDE else "")


class NoduleStudy:
    """See models.training.evaluation.tables.Study."""

    name = "residual_unet"
    title = "Residual U-Net: the tables of its source"
    figures: Mapping[str, str] = FIGURES

    def __init__(self, data: Path, budget: str, changes: Mapping[str, str], device: str) -> None:
        self.data, self.device = data, device
        self.tables: Sequence[Table] = tables_of(data)
        self.changes = {**BUDGETS[budget], **changes}
        self.first = lung.NoduleRecipe(data, configured(lung.Config(), self.changes))
        said = ", ".join(f"{name} {value}" for name, value in self.changes.items())
        crops = {split: len(self.first.slices.index[split]) for split in ("train", "val", "test")}
        self.about = (
            f"Budget `{budget}`, the same for every row, with the same seed: {said}. Crops with a nodule:"
            f" {crops['train']} to learn from, {crops['val']} to choose the epoch by, {crops['test']} to judge; the"
            " test has slices without nodule too, all of patients the network has not seen (split"
            f" `{self.first.split_sha256[:12]}`). 95 % intervals by 1000 bootstraps over patients. IoU and Dice count a"
            " slice without nodule and without mark as 1; TP is a nodule slice with IoU of at least 0.5."
            + " Networks are centred: what counts is the piece at the middle, as after a detector."
            * self.first.config.centred
        )

    def config(self, row: Row) -> lung.Config:
        return configured(lung.Config(), {**self.changes, **row.changes})

    def settings(self, row: Row) -> Mapping[str, Any]:
        known = {"split_sha256": self.first.split_sha256, "preprocessing": self.first.preprocessing}
        config = asdict(self.config(row))
        del config["cache"]  # where the crops of whole scans lie on this machine
        return {"config": config, "judged_by": 3, **known}

    def result(self, row: Row, folder: Path) -> Result:
        config = self.config(row)
        if max(config.crop, self.first.config.crop) > SIDE:
            recipe = lung.NoduleRecipe(self.data, config)  # larger crops are cut from the scans anew, and kept
        else:
            recipe = copy.copy(self.first)  # the data are read once
        recipe.config, recipe.name = config, "row"
        path = train(recipe, folder, resume=True, device=self.device)
        ensemble, crop, centred = load_ensemble([path], self.device, recipe.split_sha256)
        looked = look(recipe.slices, "test", ensemble, crop, centred=centred)
        parameters = sum(weights.numel() for weights in ensemble.nets[0].parameters())
        return Result(rule(looked.predicted, looked.truth, looked.patients), {"parameters": parameters})

    def illustrate(self, folders: Mapping[str, Path], out: Path) -> Sequence[Path]:
        """Nodules of a phantom: image, truth and the mask of every row that learnt from crops of the budget's size."""
        side = int(self.changes["crop"])
        nets: dict[str, Ensemble] = {}
        for name, folder in folders.items():
            if (path := folder / "row.safetensors").exists():
                ensemble, crop, _ = load_ensemble([path], self.device, self.first.split_sha256)
                if crop == side and not name.isdigit():
                    nets[name] = ensemble
        rows = []
        for image, truth in phantom_crops(side):
            batch = torch.from_numpy(image)[None, None]
            rows.append([image, truth, *(net.probability(batch)[0, 0].numpy() > 0.5 for net in nets.values())])
        path = out / f"{self.name}_phantoms.png"
        short = [name.split(" (")[0].replace("encoder", "enc").replace("decoder", "dec") for name in nets]
        save_grid(path, ["phantom", "truth", *(name.replace("bottleneck", "bottl.") for name in short)], rows)
        return [path]


def phantom_crops(side: int, count: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Network input and mask, (side, side) each, through the middles of nodules of a synthetic chest CT."""
    with tempfile.TemporaryDirectory() as folder:
        truth = chest_ct(Path(folder), seed=3, slices=40, nodules=count)
        volume = read_ct(truth.files)
    crops = []
    for lesion in itertools.islice(truth.lesions, count):
        mask = np.zeros(volume.hu.shape, bool)
        z, y, x = lesion.offset_zyx
        depth, height, width = lesion.mask.shape
        mask[z : z + depth, y : y + height, x : x + width] = lesion.mask
        rows, columns = volume.hu.shape[1:]
        top = int(np.clip(y + height // 2 - side // 2, 0, rows - side))
        left = int(np.clip(x + width // 2 - side // 2, 0, columns - side))
        place = z + depth // 2, slice(top, top + side), slice(left, left + side)
        hu = torch.from_numpy(np.ascontiguousarray(volume.hu[place], dtype=np.float32))
        crops.append((window(hu).numpy(), mask[place]))
    return crops


def study(data: Path, budget: str, changes: Mapping[str, str], device: str) -> Study:
    return NoduleStudy(data, budget, changes, device)
