"""A MONAI bundle in the published layout whose network is a real UNet with a known answer: HU above a threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet

NETWORK = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [8, 8],
    "strides": [2],
    "num_res_units": 0,
    "norm": None,
}
LABELS = {"1": {"name": "Bright", "type": ["78961009", "SCT", "Spleen"], "measure": ["volume", "intensity"]}}


def threshold_weights(threshold: float) -> Mapping[str, torch.Tensor]:
    """Of a UNet that says 1 where its input is above `threshold`: eight channels carry the eight voxels of a cube of 2
    through its stride and back, and its bottom is silent."""
    network = UNet(**NETWORK)
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    activations = [name for name in state if "adn.A" in name]
    down = next(name for name in state if name.startswith("model.0.") and name.endswith("conv.weight"))
    up = next(name for name in state if name.startswith("model.2.") and name.endswith("conv.weight"))
    for name in activations:
        state[name] = torch.ones_like(state[name])  # a PReLU that lets everything through
    for channel, (z, y, x) in enumerate(product((0, 1), repeat=3)):
        state[down][channel, 0, 1 + z, 1 + y, 1 + x] = 1.0
        state[up][channel, 1, 1 + z, 1 + y, 1 + x] = 1.0
    state[up.replace("weight", "bias")] = torch.tensor([0.0, -threshold])
    network.load_state_dict(state)
    return network.state_dict()


def threshold_bundle(
    folder: Path,
    *,
    threshold: float = 100.0,
    pixdim: Sequence[float] | None = (1.5, 1.5, 2.0),
    inverts: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """configs/metadata.json, configs/inference.json, models/model.pt.

    pixdim    what it resamples to; None: it keeps the grid
    inverts   its postprocessing returns to the grid of the image; else it leaves that to the file that it writes
    changes   entries of the configuration, put in the place of ours
    """
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    about = {
        "version": "0.1.0",
        "monai_version": "1.4.0",
        "pytorch_version": "2.4.0",
        "numpy_version": "1.24.4",
        "name": "Threshold",
        "task": "what is brighter than the rest",
        "network_data_format": {"inputs": {"image": {"modality": "CT", "num_channels": 1}}},
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(about))
    config = {**configuration(pixdim, inverts), **(changes or {})}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save({"model": threshold_weights(threshold)}, folder / "models" / "model.pt")
    return folder


def configuration(pixdim: Sequence[float] | None, inverts: bool) -> dict[str, Any]:
    spacing = [{"_target_": "Spacingd", "keys": "image", "pixdim": list(pixdim), "mode": "bilinear"}] if pixdim else []
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **NETWORK},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                *spacing,
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 4},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 16], "sw_batch_size": 2, "overlap": 0.25},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                *([invert] if inverts else []),
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_ext": ".nii.gz"},
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }
