"""A chest CT of 300 slices of 512 x 512 through lung-nodule: python -m tests.bench chest.

The detector is compared with the same network as it was published to be run: float32, contiguous, in windows of 208
voxels that share 32. Both see the same lungs in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from models.grid import isotropic
from models.lung_nodule.detections import AROUND_MM
from models.lung_nodule.detectors import NoduleNetDetector
from models.lung_nodule.lungs import find_lungs
from models.lung_nodule.nodulenet import detect as infer
from models.lung_nodule.nodulenet.detect import DetectOptions
from models.lung_nodule.options import Options
from models.lung_nodule.pipeline import LungNodule
from models.phantoms import chest_ct
from models.read import read_ct
from models.runtime import Runtime
from tests.bench.record import record

PUBLISHED_WINDOW = 208
TARGET_S, TARGET_MB = 60.0, 4096


def run(detectors: Sequence[str] = ("nodulenet", "ccfam-fpn", "sliding-unet"), threads: int = 2) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:  # what it takes is not ours
            files = elsewhere.submit(_phantom, Path(folder)).result()
        for name in detectors:
            pipeline = LungNodule("cpu", {"threads": threads, "detector": name})
            pipeline.warm()
            steps = Steps()
            forget_peak()
            started, used = time.perf_counter(), time.process_time()
            found = pipeline.run(files, steps)
            figures = {
                "s": time.perf_counter() - started,
                "CPU s": time.process_time() - used,
                "target, s": TARGET_S,
                "peak MB": max(peak_mb(), *steps.peak_mb.values()),
                "target, MB": TARGET_MB,
                "findings": len(found.findings),
                "threads": threads,
                "form": str(found.facts["device"]),
            }
            record(f"chest: 300 slices, {name}", figures | steps.seconds())
        _against_published(files, threads)


def _phantom(folder: Path) -> Sequence[Path]:
    spacing_mm = 1.0, 0.7, 0.7
    return chest_ct(folder, seed=21, slices=300, size=512, spacing_mm=spacing_mm, nodules=6, detail=True).files


def peak_mb() -> int:
    """The highest resident memory of this process since it was forgotten last: VmHWM in proc(5)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Steps:
    """Told of progress, adds up the seconds that went by after each step was begun, and notes its own peak."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}
        self.name, self.since = "", time.perf_counter()

    def __call__(self, _share: float, words: str) -> None:
        now = time.perf_counter()
        self.spent[self.name] = self.spent.get(self.name, 0.0) + now - self.since
        self.peak_mb[self.name] = max(self.peak_mb.get(self.name, 0), peak_mb())
        forget_peak()
        where, _, what = words.partition(" ")
        self.since = now
        self.name = {"window": "first look", "place": "closer looks", "slice": "slices"}.get(where, words)
        if self.name == "first look" and what.endswith("places"):
            self.name = "box head of the first look"

    def seconds(self) -> dict[str, float]:
        each = {f"{name}, s": seconds for name, seconds in self.spent.items() if name}
        return each | {f"{name}, peak MB": peak for name, peak in self.peak_mb.items() if name}


def _against_published(files: Sequence[Path], threads: int) -> None:
    volume = read_ct(files)
    lungs = isotropic(find_lungs(volume).mask, volume.spacing_mm)
    hu = isotropic(volume.hu, volume.spacing_mm)
    detector = NoduleNetDetector(Options(), Runtime.choose("cpu", threads=threads))
    seconds = {}
    for form, views in (("as served", detector.options.views), ("one view", 1), ("as published", 1)):
        started = time.perf_counter()
        if form != "as published":
            infer.detect(detector.net, hu, lungs, options=DetectOptions(views=views))
        else:
            near = infer.box_of(lungs, AROUND_MM)
            assert near is not None
            plain = replace(Runtime.choose("cpu"), bf16=False)
            options, grey = DetectOptions(), infer.prepare(hu[near], lungs[near])
            net = detector.net.eval()
            for weights in net.parameters():
                weights.data = weights.data.contiguous(memory_format=torch.contiguous_format)
            for window in infer.windows(grey.shape, PUBLISHED_WINDOW):
                if lungs[near][window.box].any():
                    infer.detect_window(net, grey[window.box], window, plain, options, lambda _share, _what: None)
        seconds[form] = time.perf_counter() - started
    figures = {f"{form}, s": value for form, value in seconds.items()}
    ratios = {f"{form} / published": seconds[form] / seconds["as published"] for form in ("as served", "one view")}
    record("chest: NoduleNet", {**figures, **ratios})
