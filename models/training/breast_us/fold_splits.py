"""The splits of a cross-validation: each fold in turn is tested on, and an eighth of the rest chooses the epoch."""

from __future__ import annotations

from collections.abc import Sequence

from models.training.breast_us.data import SPLIT_SEED, Labelled, folds

VAL_SHARE = 8  # one part of so many of what is not tested on


def rotation(images: Sequence[Labelled], k: int, fold: int) -> dict[str, list[str]]:
    """Names of train, val and test of one fold of k, from 0; "left_out" holds label conflicts.

    The folds are the same for every training, so that rows of a table are about the same images. Families of
    near-duplicates stay together, also between train and val.
    """
    outer = folds(images, k, SPLIT_SEED)
    test = outer[f"fold {fold + 1}"]
    held = {*test, *outer["left_out"]}
    inner = folds([image for image in images if image.name not in held], VAL_SHARE, SPLIT_SEED + fold)
    train = sorted(name for part in range(2, VAL_SHARE + 1) for name in inner[f"fold {part}"])
    return {"train": train, "val": inner["fold 1"], "test": test, "left_out": outer["left_out"]}
