"""Fit what breast ultrasound looks like to an encoder, and write it beside its weights: models.breast_us.suitability.

    python -m models.training.breast_us.familiarity --data FOLDER --others us_dicom.zip --slices lidc_slices_128.zip \
        --out docs/results/breast_us_suitability

FOLDER holds busi.zip and bus_bra.zip. Features are fitted to the training images, validation images set their limit,
and `foreign` comes from a fit to one hospital's training images alone and a look at the other's.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from scipy import ndimage

from models.breast_us.letterbox import PREPROCESSING
from models.breast_us.pipeline import WEIGHTS, usable_regions
from models.breast_us.suitability import KINDS, MAPS, SIZE, Familiar, Suitability, Texture, curved_probe, features
from models.breast_us.tissue import tissue
from models.nets.breast_triple import ClassificationNet, TripleConfig
from models.phantoms.breast import Ellipse, breast_picture
from models.read import read_ultrasound
from models.runtime import Runtime
from models.training.breast_us.hospitals import HOSPITALS, Picture, divided, read_hospitals
from models.training.breast_us.two_hospitals import BUS_BRA_FILE, BUSI_FILE
from models.training.evaluation.provenance import digests, write_figures
from models.training.export import git_sha, note
from models.training.files import replacing, write_text
from models.weights import load, packed

COMPONENTS, PHANTOM_COMPONENTS = 64, 16  # there are 1493 training images and 120 phantoms
REFUSED = 0.01  # of validation images, at most
BATCH = 16

Look = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def fitted(of: np.ndarray, others: np.ndarray, components: int = COMPONENTS) -> Familiar:
    """(N, C) features of a kind's pictures, (M, C) of others of the kind, which set the limit."""
    mean, scale = of.mean(axis=0), of.std(axis=0) + 1e-3
    _, singular, axes = np.linalg.svd((of - mean) / scale, full_matrices=False)
    basis = axes[:components].T.astype(np.float16).astype(np.float64)  # as it is stored
    variance = singular**2 / len(of)
    free = Familiar(mean, scale, basis, variance[:components], variance[components:].sum(), np.array(1.0))
    return replace(free, limit=np.array(threshold(free.distance(others))))


def threshold(distances: np.ndarray) -> float:
    """The least that no more than REFUSED of them pass."""
    return float(np.sort(distances)[-1 - int(REFUSED * len(distances))])


def features_of(texture: Look, pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([features(texture, pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)])


def fit(texture: Look, parts: Mapping[str, Sequence[Picture]]) -> tuple[list[Familiar], float]:
    """Both hospitals' breasts and the phantoms; and `foreign`, by the hospital whose images seem strangest to the
    other one's."""
    seen = {part: features_of(texture, [one.pixels for one in parts[part]]) for part in ("train", "val")}
    of = {part: np.array([one.hospital for one in parts[part]]) for part in seen}
    breasts = fitted(seen["train"], seen["val"])
    across = []
    for hospital in HOSPITALS:
        alone = fitted(seen["train"][of["train"] == hospital], seen["val"][of["val"] == hospital])
        strange = alone.distance(seen["train"][of["train"] != hospital])
        across.append(threshold(strange) * float(alone.limit / breasts.limit))
    synthetic = features_of(texture, phantoms(1, 120)), features_of(texture, phantoms(2, 60))
    return [breasts, fitted(*synthetic, PHANTOM_COMPONENTS)], max(across)


# ---- pictures of other kinds


def other_ultrasound(archive: Path) -> list[tuple[np.ndarray, bool]]:
    """Regions of first and middle frames, and whether the header names a probe that is not linear."""
    found = []
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as content:
        content.extractall(folder)
        for path in sorted(one for one in Path(folder).rglob("*") if one.is_file()):
            clip = read_ultrasound(path)
            chosen = sorted({0, len(clip.images) // 2})
            for frame in clip.frames(chosen):
                for region in usable_regions(clip):
                    x0, y0, x1, y1 = region.box
                    grey, _ = tissue(frame, region.box)
                    found.append((grey[y0 : y1 + 1, x0 : x1 + 1], bool(curved_probe(clip.header))))
    return found


def ct_slices(archive: Path) -> list[np.ndarray]:
    with zipfile.ZipFile(archive) as content:
        names = [name for name in sorted(content.namelist()) if name.endswith(".png") and "raters" not in name][::200]
        return [np.asarray(Image.open(io.BytesIO(content.read(name))).convert("L")) for name in names]


def noises(count: int = 32) -> list[np.ndarray]:
    """White, blurred, blurred across under a fall of brightness with depth, and brown."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        white = rng.normal(size=(300, 400))
        wide = ndimage.gaussian_filter(white, (2, 6)) + 0.05 * np.linspace(1, 0, 300)[:, None]
        kind = (white, ndimage.gaussian_filter(white, 3), wide, white.cumsum(0).cumsum(1))[number % 4]
        low, high = np.quantile(kind, [0.01, 0.99])
        found.append((((kind - low) / (high - low)).clip(0, 1) * 220 + 15).astype(np.uint8))
    return found


def phantoms(seed: int, count: int) -> list[np.ndarray]:
    """Synthetic breasts of many sizes and spacings, three in four with a lesion."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        high = int(rng.integers(100, 560))
        shape, spacing_mm = (high, int(high * rng.uniform(1.1, 1.5))), rng.uniform(28, 50) / high
        wide_mm, half_mm = shape[1] * spacing_mm, rng.uniform(4, 8)
        place = Ellipse(wide_mm * rng.uniform(0.3, 0.7), rng.uniform(13, 20), (half_mm, 0.7 * half_mm), 0.0)
        behind_db = float(rng.choice([6.0, -8.0]))
        lesion = place if number % 4 else None
        found.append(breast_picture(rng, shape, (spacing_mm, spacing_mm), lesion, behind_db))
    return found


def row(suitability: Suitability, kind: str, pictures: Sequence[tuple[np.ndarray, bool]]) -> dict[str, object]:
    verdicts = [suitability.judge(grey, curved) for grey, curved in pictures]
    distances = np.array([one.distance for one in verdicts], float)
    return {
        "pictures": kind,
        "number": len(verdicts),
        "distance, median": round(float(np.median(distances)), 2),
        "least": round(float(distances.min()), 2),
        "largest": round(float(distances.max()), 2),
        "fan-shaped": sum(one.fan for one in verdicts),
        "warned": sum(one.unfamiliar and not one.foreign for one in verdicts),
        "refused": sum(one.foreign for one in verdicts),
    }


def write(weights: Path, known: Sequence[Familiar], foreign: float, split_sha256: str) -> Path:
    """Beside the weights, and named in their JSON."""
    path = weights.with_name(f"{weights.stem}_suitability.safetensors")
    tensors = {
        f"{kind}.{name}": torch.tensor(value).to(torch.float16 if name == "basis" else torch.float32).contiguous()
        for kind, one in zip(KINDS, known, strict=True)
        for name, value in asdict(one).items()
    }
    content = save(tensors)
    about = {
        "name": path.stem,
        "sha256": hashlib.sha256(content).hexdigest(),
        "weights_sha256": load(weights).sha256,
        "config": {"size": SIZE, "maps": list(MAPS), "components": [COMPONENTS, PHANTOM_COMPONENTS]},
        "init": {load(weights).sha256: weights.stem},
        "preprocessing": PREPROCESSING,
        "split_sha256": split_sha256,
        "foreign": round(foreign, 4),
        "git_sha": git_sha(),
    }
    with replacing(path) as tensors_file, replacing(path.with_suffix(".json")) as json_file:
        tensors_file.write_bytes(content)
        json_file.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    note(weights, {"suitability": path.stem})
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.breast_us.familiarity", description="Fit what breast ultrasound looks like."
    )
    parser.add_argument("--data", type=Path, required=True, help=f"a folder with {BUSI_FILE} and {BUS_BRA_FILE}")
    parser.add_argument("--others", type=Path, help="zip of other ultrasound DICOM files")
    parser.add_argument("--slices", type=Path, help="zip of CT crops")
    parser.add_argument("--weights", type=Path, default=packed("breast_us", WEIGHTS[0]))
    parser.add_argument("--out", type=Path, help="for NAME.json and NAME.md")
    given = parser.parse_args(arguments)

    parts, split_sha256 = divided(read_hospitals(given.data / BUSI_FILE, given.data / BUS_BRA_FILE))
    stored = load(given.weights, PREPROCESSING)
    net = ClassificationNet(TripleConfig.of(stored.about["config"]))
    stored.into(net)
    texture = Runtime.choose("cpu").plain(Texture(net))
    known, foreign = fit(texture, parts)
    path = write(given.weights, known, foreign, split_sha256)
    judge = Suitability(texture, known, round(foreign, 4))
    plain = lambda pictures: [(grey, False) for grey in pictures]  # noqa: E731
    rows = [
        row(judge, f"{hospital}, validation", plain([p.pixels for p in parts["val"] if p.hospital == hospital]))
        for hospital in HOSPITALS
    ]
    if given.others:
        rows.append(row(judge, "other ultrasound (heart, abdomen, muscle, ...)", other_ultrasound(given.others)))
    if given.slices:
        rows.append(row(judge, "CT of the lung", plain(ct_slices(given.slices))))
    rows += [row(judge, "noise", plain(noises())), row(judge, "phantoms of breasts", plain(phantoms(3, 24)))]
    print(json.dumps(rows, indent=1))
    if given.out:
        document = {
            "split_sha256": split_sha256, "foreign": round(foreign, 4), "rows": rows,
        }  # fmt: skip
        weights = {stored.name: stored.sha256, path.stem: load(path).sha256}
        files = [given.data / BUSI_FILE, given.data / BUS_BRA_FILE, *filter(None, (given.others, given.slices))]
        write_figures(given.out.with_suffix(".json"), document, weights, digests(files))
        write_text(given.out.with_suffix(".md"), page(rows, foreign))


def page(rows: Sequence[Mapping[str, object]], foreign: float) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(one[name]) for name in heads] for one in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"""# breast-us: is this a breast ultrasound?

Distances of the encoder's features from those of the training images, in units of the distance that 1 % of the
validation images of both hospitals pass. Above 1 a picture is unfamiliar and its report carries a warning; above
{foreign:.2f} it is not looked at, and neither is an unfamiliar one that is fan-shaped. {foreign:.2f} is what 1 % of a
hospital's images pass when the fit saw the other hospital only: **a third hospital's breasts will often be warned of**.
The pictures of other kinds are few, and the rule for fans was made on those below.

{table}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
