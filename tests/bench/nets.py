"""Latency of the networks at batch 1 and 32, as served against eager, contiguous, float32: python -m tests.bench nets.

The forms take turns in one process, and the least time of each counts: other work on the machine slows all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from models.lung_nodule.preprocess import PREPROCESSING as WINDOW
from models.nets.baselines import build_net
from models.nets.residual_unet import ResidualUNet, ResidualUNetConfig
from models.runtime import Eager, Gap, Runtime, Served, example
from models.weights import load, packed
from tests.bench.record import record

BATCHES = (1, 32)
SECONDS = 15.0  # for one network at one batch
LEAST_ROUNDS = 3
TARGET = 0.4  # of the eager time on the processor; on an H100 at batch 1 TARGET_MS
TARGET_MS = {"Model 1": 3.0, "Model 2": 2.0}  # the paper: 23.4 and 15.3


def _model(number: int) -> nn.Module:
    torch.manual_seed(0)  # weights of no training: speed does not depend on them
    return ResidualUNet(ResidualUNetConfig(vit=True, scse="encoder") if number == 1 else ResidualUNetConfig())


def _shipped_lung() -> nn.Module:
    loaded = load(packed("lung_nodule", "residual_unet_w16"), WINDOW)
    return loaded.into(build_net(loaded.about["config"]))


def _peer() -> nn.Module:
    torch.manual_seed(0)
    return UNet(2, 1, 1, channels=(64, 128, 256, 512, 1024), strides=(2, 2, 2, 2), num_res_units=2)


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how it is made, and the side of its image
    "Model 2": (lambda: _model(2), 128),
    "Model 1": (lambda: _model(1), 128),
    "lung-nodule as shipped": (_shipped_lung, 128),
    "MONAI residual UNet": (_peer, 128),
}


def run(names: list[str], batches: Sequence[int] = BATCHES, threads: int = 2) -> None:
    runtime = Runtime.choose(threads=threads)
    for name in names:
        make, side = NETS[name]
        net = make().eval()
        images = example(max(2, *batches), 1, side, side)
        served = runtime.ready(net, images[:2], most=max(batches))
        plain = net.to(runtime.device)
        half = Eager(runtime, net)
        for count in batches:
            _measure(name, count, plain, half, served, images[:count].to(runtime.device), runtime)


def _measure(
    name: str, count: int, plain: nn.Module, half: Eager, served: Served, batch: Tensor, runtime: Runtime
) -> None:
    @torch.inference_mode()
    def eager(images: Tensor) -> tuple[Tensor, ...]:
        said = plain(images)
        return said if isinstance(said, tuple) else (said,)

    forms = {"eager": eager, "bf16 eager": half, "served": served}
    gap = Gap.between([eager(batch)], [served(batch)])
    half(batch)  # the first call of each form allocates; those above were the others'
    wall: dict[str, list[float]] = {form: [] for form in forms}
    cpu: dict[str, list[float]] = {form: [] for form in forms}
    began = time.monotonic()
    while time.monotonic() - began < SECONDS or len(wall["eager"]) < LEAST_ROUNDS:
        for form, answer in forms.items():
            start, used = time.perf_counter(), time.process_time()
            answer(batch)
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            wall[form].append(time.perf_counter() - start)
            cpu[form].append(time.process_time() - used)
    least = {form: 1000 * min(times) for form, times in wall.items()}
    ratio = least["served"] / least["eager"]
    figures = {
        "form": str(served),
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "threads": torch.get_num_threads(),
        "rounds": len(wall["eager"]),
        **{f"{form}, ms": least[form] for form in forms},
        "bf16 eager / eager": least["bf16 eager"] / least["eager"],
        "served / eager": ratio,
        "served / eager, CPU time": min(cpu["served"]) / min(cpu["eager"]),
        "mask, greatest difference": gap.mask,
        "mask, share flipped": gap.flipped,
    }
    if runtime.device.type == "cuda":
        figures["device"] = torch.cuda.get_device_name(runtime.device)
        if count == 1 and name in TARGET_MS:
            figures["target, ms"] = TARGET_MS[name]
    elif name.startswith("Model"):
        figures["target"] = TARGET
    record(f"nets: {name}, batch {count}", figures)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench nets", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NET", help=f"of {', '.join(NETS)}; all when not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    given = parser.parse_args(arguments)
    if unknown := set(given.only) - set(NETS):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETS)}")
    run(given.only or list(NETS), given.batch, given.threads)
