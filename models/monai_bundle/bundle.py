"""A MONAI bundle in the published layout: configs/inference.json (or .yaml), configs/metadata.json, models/model.pt.

Run is what the configuration calls `preprocessing`, `network_def`, `inferer` and `postprocessing`, one image at a time,
the way its evaluator would; the evaluator itself, its data loader and handlers are left aside, for they read and write
folders. A bundle is code: expressions that begin with `$`, and modules beside its configs, run with the rights of the
node. Its weights are read as tensors alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SimpleInferer
from monai.transforms import Invertd, LoadImaged
from torch import nn

from models.monai_bundle.options import SUFFIXES
from models.options import BadOptions, WeightsError
from models.pipeline import BadOutput
from models.runtime import Runtime

WRITERS = ("SaveImaged", "SaveImage", "SaveClassificationd")  # transforms that write files, which nobody reads here
NOT_HASHED = ("docs", "eval", "__pycache__")  # folders that change no answer
PRED = "pred"  # the network's answer in the data, as the specification of bundles has it
SAME_PLACE_MM = 0.01  # how far a corner of the label map may lie from that of the images


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle: a volume in, its label map out, on the very grid of the volume."""

    name: str
    version: str  # as its metadata say; "" where they do not
    sha256: str  # over all its files, docs aside
    root: Path
    runtime: Runtime
    image_key: str
    preprocessing: Any
    network: nn.Module
    inferer: Any
    postprocessing: Any
    inverts: bool  # whether its postprocessing returns to the grid of the image by itself
    mixed_precision: bool

    @classmethod
    def load(cls, root: Path, configuration: str, runtime: Runtime) -> Bundle:
        """Raises BadOptions when it is no bundle that can be run here, WeightsError when its weights cannot be had."""
        config = _configuration(root, configuration)
        about = _metadata(root)
        with importable(root):
            parser = _parser(root, config, runtime)
            preprocessing = _made(parser, "preprocessing", config.name)
            image_key = _image_key(preprocessing, config.name)
            postprocessing = _made(parser, "postprocessing", config.name)
            inferer = _made(parser, "inferer", config.name) if "inferer" in parser else SimpleInferer()
            network = _network(parser, root, config.name)
        return cls(
            name=str(about.get("name") or root.name),
            version=str(about.get("version") or ""),
            sha256=digest(root),
            root=root,
            runtime=runtime,
            image_key=image_key,
            preprocessing=preprocessing,
            network=network.to(runtime.device).eval(),
            inferer=inferer,
            postprocessing=postprocessing,
            inverts=any(isinstance(each, Invertd) and PRED in each.keys for each in _flat(postprocessing)),
            mixed_precision=bool(parser.get("evaluator", {}).get("amp", False)),
        )

    def label_map(self, file: Path) -> np.ndarray:
        """A NIfTI volume -> float32 (c, x, y, z) on its grid. Raises BadOutput when it comes back on another."""
        with importable(self.root), torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                answer = self._answer(file)
            except RuntimeError as error:
                raise _cause(error) from error
        source = nibabel.load(file)
        self._refuse_moved(answer, source)
        return np.asarray(answer.detach().cpu().float().numpy())

    def _answer(self, file: Path) -> torch.Tensor:
        batch = list_data_collate([self.preprocessing({self.image_key: str(file)})])
        with self._precision():
            image = batch[self.image_key].to(self.runtime.device)
            batch[PRED] = self.inferer(inputs=image, network=self.network)
        [item] = decollate_batch(batch)
        item = self.postprocessing(item)
        if not self.inverts:
            back = Invertd(PRED, self.preprocessing, orig_keys=self.image_key, nearest_interp=True)
            item = back(item)
        if not isinstance(item.get(PRED), torch.Tensor):
            raise BadOutput(f"the bundle's postprocessing leaves no '{PRED}'")
        return item[PRED]

    def _precision(self) -> Any:
        cuda = self.runtime.device.type == "cuda"
        return torch.autocast("cuda") if cuda and self.mixed_precision else nullcontext()

    def _refuse_moved(self, answer: torch.Tensor, source: Any) -> None:
        if answer.ndim != 4 or tuple(answer.shape[1:]) != source.shape:
            raise BadOutput(
                f"the bundle's label map has the shape {tuple(answer.shape)}, the images {source.shape}: it does not"
                " return to their grid, and nothing is resampled here"
            )
        if isinstance(answer, MetaTensor):
            last = np.array(source.shape) - 1
            corners = np.array([[*last * corner, 1] for corner in itertools.product((0, 1), repeat=3)]).T
            apart = np.abs((np.asarray(answer.affine) - source.affine) @ corners).max()
            if apart > SAME_PLACE_MM:
                raise BadOutput(f"the bundle's label map lies {apart:.2f} mm beside the images: it is not used")


@contextmanager
def importable(root: Path) -> Iterator[None]:
    """Modules of the bundle can be imported in here; afterwards they are forgotten, for another bundle has the same."""
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        inside = f"{root.resolve()}{os.sep}"
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is not None and str(Path(file).resolve()).startswith(inside):
                del sys.modules[name]


def digest(root: Path) -> str:
    """SHA-256 over names and contents of all files that can change an answer."""
    total = hashlib.sha256()
    for path in sorted(_files(root, set())):
        parts = path.relative_to(root).parts
        with path.open("rb") as file:
            total.update(f"{'/'.join(parts)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _files(folder: Path, entered: set[Path]) -> Iterator[Path]:
    """Below it, in linked folders too: weights often lie in one. A circle of links is entered once."""
    if folder.resolve() in entered:
        return
    for path in folder.iterdir():
        if path.name in NOT_HASHED or path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, entered | {folder.resolve()})
        elif path.is_file():
            yield path


def _configuration(root: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (path := root / "configs" / f"{name}{suffix}").is_file():
            return path
    raise BadOptions(f"{root} is no MONAI bundle that can be run: it has no configs/{name}.json and no .yaml")


def _metadata(root: Path) -> Mapping[str, Any]:
    path = root / "configs" / "metadata.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadOptions(f"{path} cannot be read: {error}") from error
    return about if isinstance(about, dict) else {}


def _parser(root: Path, config: Path, runtime: Runtime) -> ConfigParser:
    """The configuration, with this folder and this device, and without the transforms that write files."""
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
        meta = root / "configs" / "metadata.json"
        if meta.is_file():
            parser.read_meta(str(meta))
        parser.update({"bundle_root": str(root), "device": f"$torch.device('{runtime.device}')"})
        for place, _ in list(_components(parser.get("postprocessing"), "postprocessing")):
            if place.partition("#")[0] == "postprocessing" and _target(parser.get(place)) in WRITERS:
                parser[f"{place}#_disabled_"] = True
        parser.parse()
    except Exception as error:
        raise BadOptions(f"{config} cannot be used: {_told(error)}") from error
    return parser


def _made(parser: ConfigParser, what: str, config: str) -> Any:
    if what not in parser:
        raise BadOptions(f"{config} of the bundle has no '{what}'; a bundle needs preprocessing and postprocessing")
    try:
        return parser.get_parsed_content(what)
    except Exception as error:
        raise BadOptions(f"'{what}' in {config} of the bundle cannot be made: {_told(error)}") from error


def _network(parser: ConfigParser, root: Path, config: str) -> nn.Module:
    """The network with its weights. Raises WeightsError."""
    loader = next((each for each in _components(parser.get(), "") if _target(each[1]) == "CheckpointLoader"), None)
    file, key, strict = root / "models" / "model.pt", "model", True
    if loader is not None:
        place, given = loader
        file = root / str(_made(parser, f"{place}#load_path", config))
        key = next(iter(given.get("load_dict") or {key: None}))
        strict = bool(given.get("strict", True))
    if file.suffix == ".ts" or (not file.exists() and (root / "models" / "model.ts").is_file()):
        return _torchscript(file if file.suffix == ".ts" else root / "models" / "model.ts")
    network = _made(parser, "network_def", config)
    if not isinstance(network, nn.Module):
        raise BadOptions(f"'network_def' in {config} of the bundle is no network but {type(network).__name__}")
    try:
        network.load_state_dict(_state(file, key), strict=strict)
    except RuntimeError as error:
        raise WeightsError(f"{file}: the weights do not fit 'network_def': {_told(error)}") from error
    return network


def _state(file: Path, key: str) -> Mapping[str, torch.Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{file} is missing: a bundle is downloaded with its weights, or without") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} holds more than tensors, and would run code when read: save its state_dict alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{file} cannot be read as weights: {_told(error)}") from error
    for inner in (key, "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(inner), Mapping):
            content = content[inner]
    if not isinstance(content, Mapping) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise WeightsError(f"{file} is no state_dict: names with their tensors")
    return content


def _torchscript(file: Path) -> nn.Module:
    try:
        network: nn.Module = torch.jit.load(file, map_location="cpu")
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as TorchScript: {_told(error)}") from error
    return network


def _image_key(preprocessing: Any, config: str) -> str:
    for each in _flat(preprocessing):
        if isinstance(each, LoadImaged):
            if len(each.keys) != 1:
                raise BadOptions(
                    f"{config} of the bundle loads {', '.join(map(str, each.keys))}; only one series can be given"
                )
            return str(each.keys[0])
    raise BadOptions(f"'preprocessing' in {config} of the bundle loads no image: it has no LoadImaged")


def _flat(transform: Any) -> Iterator[Any]:
    """A transform, and those that it is composed of."""
    yield transform
    for each in getattr(transform, "transforms", ()):
        yield from _flat(each)


def _components(config: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(id, what it says) of everything in a configuration that is built: what has a `_target_`."""
    inside: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield place, config
        inside = iter(config.items())
    elif isinstance(config, list):
        inside = iter(enumerate(config))
    for key, each in inside:
        yield from _components(each, f"{place}#{key}" if place else str(key))


def _target(config: Any) -> str:
    return str(config.get("_target_")).rpartition(".")[2] if isinstance(config, Mapping) else ""


def _cause(error: BaseException) -> BaseException:
    """The memory that was lacking, where that is what a transform failed of; else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, torch.OutOfMemoryError | MemoryError):
            return inner
        inner = inner.__cause__
    return error


def _told(error: BaseException) -> str:
    """The first error in a chain, in one line: MONAI wraps each in others."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {'; '.join(lines[:3])[:300]}" if lines else type(error).__name__
