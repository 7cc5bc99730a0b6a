"""lung-nodule: a chest CT in, nodules out.

The residual U-Net slides over the lungs slice by slice; what it marks is joined in three dimensions, filtered by size
and shape, and measured on the source grid. HU becomes network input by the very function that training uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydicom.sr.coding import Code
from scipy import ndimage
from torch import Tensor

from dicom_sr import codes
from dicom_sr.findings import Algorithm, Evaluation, Finding, Findings, Measurement
from models import weights
from models.lung_nodule.categories import with_suggestions
from models.lung_nodule.lungs import Lungs, distance_to_pleura, find_lungs
from models.lung_nodule.options import Options
from models.lung_nodule.preprocess import PREPROCESSING, SIDE, TRAINED_MM, is_native, window
from models.lung_nodule.refine import Candidate, Refined, distinct, refine
from models.lung_nodule.texture import RULE, THICK_MM, texture
from models.measure import axial, measure_nodule
from models.nets.baselines import build_net
from models.pipeline import Card, Progress, UnfitInput
from models.read import Volume, read_ct
from models.runtime import Runtime, Served, example
from models.weights import Weights, WeightsError

VERSION = "0.3.0"
CHECKPOINT = "residual_unet_w16"
REFINER = "residual_unet_centred_w16"  # learnt on crops with the finding in the middle, for the second look

STRIDE = 64  # step of the windows, pixels; each pixel is in the middle of one window
BATCH = 32
SHELL_MM = (1.0, 3.0)
SOFT_ABOVE_HU = -500


@dataclass(frozen=True, eq=False)
class Look:
    """A network ready to answer, and the weights it answers by."""

    net: Served
    side: int  # of its crops, pixels
    loaded: Weights

    @classmethod
    def at(cls, path: str | None, shipped: str, runtime: Runtime) -> Look:
        """From weights at a path, or the shipped ones of that name. Raises WeightsError when they cannot be served."""
        loaded = weights.load(Path(path) if path else weights.packed("lung_nodule", shipped), PREPROCESSING)
        side = int(loaded.about["config"].get("crop", SIDE))
        net = loaded.into(build_net(loaded.about["config"]))
        return cls(runtime.ready(net, example(4, 1, side, side), most=BATCH), side, loaded)

    def __call__(self, batch: Tensor) -> Tensor:
        """(B, 1, side, side) in [0, 1] -> probability, same shape, float32"""
        (logits,) = self.net(batch)
        return torch.sigmoid(logits)


class LungNodule:
    """Pipeline "lung-nodule". Research use only, not for diagnostic use."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = Options.read(options)
        self.runtime = Runtime.choose(device, threads=self.options.threads)
        self.first = Look.at(self.options.checkpoint, CHECKPOINT, self.runtime)
        if self.first.side != SIDE:
            raise WeightsError(f"{self.first.loaded.name} learnt on crops of {self.first.side} pixels, not of {SIDE}")
        self.second = Look.at(self.options.refine_checkpoint, REFINER, self.runtime) if self.options.refine else None
        looks = [look.loaded for look in (self.first, self.second) if look is not None]
        self.card = Card(
            name="lung-nodule",
            modality=frozenset({"CT"}),
            algorithm=Algorithm("pacs-node lung-nodule", "+".join([VERSION, *(look.sha256[:8] for look in looks)])),
            intended_use="Marks and measures candidate pulmonary nodules on axial chest CT of adults for engineers and"
            " researchers. Research use only, not for diagnostic use.",
            weights_sha256={look.name: look.sha256 for look in looks},
        )
        self.blend = blending_window().to(self.runtime.device)

    def warm(self) -> None:
        for look in (self.first, self.second):
            if look is not None:
                look(torch.zeros(BATCH, 1, look.side, look.side))

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        started = time.monotonic()
        progress(0.0, "reading the images")
        volume = read_ct(files)
        refuse_unfit(volume)
        progress(0.05, "looking for the lungs")
        lungs = find_lungs(volume)
        probability, windows = self.probability(volume, lungs, progress)
        progress(0.9, "looking again at each nodule")
        found, warnings = self.findings(volume, lungs, probability)
        progress(1.0, "done")
        return Findings(
            pipeline=self.card.name,
            geometry="volume",
            images=volume.images,
            findings=tuple(found),
            algorithm=self.card.algorithm,
            warnings=tuple(warnings),
            sought=codes.NODULE,
            sought_site=codes.LUNG,
            facts={
                "seconds": round(time.monotonic() - started, 1),
                "device": str(self.first.net),
                "slices": len(volume.images),
                "windows": windows,
                "lungs_ml": round(lungs.volume_ml),
            },
        )

    # --------------------------------------------------------------------------------------------- probability

    def probability(self, volume: Volume, lungs: Lungs, progress: Progress) -> tuple[np.ndarray, int]:
        """uint8 (z, y, x), 255 = certain; 0 where no window looked. And how many windows looked."""
        out = np.zeros(volume.hu.shape, np.uint8)
        slices = np.flatnonzero(lungs.mask.any(axis=(1, 2)))
        windows = 0
        for done, z in enumerate(slices):
            image, lung = resampled(volume.hu[z], lungs.mask[z], volume.spacing_mm[1:])
            marked, count = self.slide(image, lung)
            if marked.shape != out[z].shape:
                marked = F.interpolate(marked[None, None], out[z].shape, mode="bilinear", align_corners=False)[0, 0]
            out[z] = (255 * marked).round().to(torch.uint8).cpu().numpy()
            windows += count
            progress(0.1 + 0.8 * (done + 1) / len(slices), f"slice {done + 1} of {len(slices)}")
        return out, windows

    def slide(self, image: Tensor, lung: np.ndarray) -> tuple[Tensor, int]:
        """HU float (h, w), bool (h, w) -> probability (h, w) on the runtime's device, and the number of windows.

        Windows of 128 with step 64, laid so that their middles tile the lung's box; those without lung in the middle
        are left out. Overlaps are blended by a Gaussian.
        """
        h, w = image.shape
        edge = (SIDE - STRIDE) // 2
        corners = list(tiles(lung))
        far_y, far_x = (max(corner[axis] for corner in corners) + SIDE for axis in (0, 1))
        pad = edge, max(0, far_x - w - edge), edge, max(0, far_y - h - edge)
        wide = F.pad(window(image)[None, None], pad, mode="constant", value=0.0)[0, 0]  # beyond the image: air
        total, weight = (torch.zeros(wide.shape, device=self.runtime.device) for _ in range(2))
        for start in range(0, len(corners), BATCH):
            part = corners[start : start + BATCH]
            batch = torch.stack([wide[y : y + SIDE, x : x + SIDE] for y, x in part])[:, None]
            for (y, x), probability in zip(part, self.first(batch), strict=True):
                total[y : y + SIDE, x : x + SIDE] += self.blend * probability[0]
                weight[y : y + SIDE, x : x + SIDE] += self.blend
        blended = total / weight.clamp_min(1e-6)
        return blended[edge : edge + h, edge : edge + w], len(corners)

    # ------------------------------------------------------------------------------------------------ findings

    def findings(self, volume: Volume, lungs: Lungs, probability: np.ndarray) -> tuple[list[Finding], list[str]]:
        """Nodules, the most certain first, and warnings in words."""
        kept = [
            candidate
            for candidate in candidates(probability, self.options)
            if why_not_nodule(candidate, volume, lungs, self.options) is None
        ]
        kept.sort(key=lambda candidate: (-round(candidate.certainty, 4), candidate.offset_zyx))
        warnings = []
        if len(kept) > self.options.at_most:
            warnings.append(
                f"{len(kept)} candidates were found; only the {self.options.at_most} most certain are reported."
                " The image may be unusual (noise, disease of the whole lung)."
            )
        if volume.spacing_mm[0] > THICK_MM:
            warnings.append(
                f"slices are {volume.spacing_mm[0]:.1f} mm apart: small nodules may be missed and sizes are coarse;"
                " no nodule type is stated, and no category is suggested"
            )
        reported = kept[: self.options.at_most]
        if self.second is not None:
            refined = self.refined(self.second, reported, volume, lungs)
            reported = [one.candidate for one in refined]
            warnings += outlines_kept(refined)
        found = [finding(number, candidate, volume, lungs) for number, candidate in enumerate(reported, start=1)]
        found, remarks = with_suggestions(self.options.purpose, found, volume.headers[0])
        return found, warnings + remarks

    def refined(self, second: Look, detections: Sequence[Candidate], volume: Volume, lungs: Lungs) -> list[Refined]:
        """The detections with the mask of a second look; each nodule once, the most certain first."""
        looked = refine(
            volume,
            detections,
            second,
            side=second.side,
            threshold=self.options.threshold,
            flips=self.options.refine_flips,
        )
        sound = []
        for detection, one in zip(detections, looked, strict=True):
            why_not = one.why_not or why_not_nodule(one.candidate, volume, lungs, self.options)
            sound.append(one if why_not is None else Refined(detection, why_not))
        return distinct(sound)


def outlines_kept(refined: Sequence[Refined]) -> list[str]:
    """Which findings, numbered as they are reported, have the outline of the first look, and why, in words."""
    numbers: dict[str, list[str]] = {}
    for number, one in enumerate(refined, start=1):
        if one.why_not is not None:
            numbers.setdefault(one.why_not, []).append(str(number))
    return [
        f"Nodule {', '.join(which)}: outlined as detected, for a closer look gave no sound outline ({why_not})"
        for why_not, which in numbers.items()
    ]


def finding(number: int, candidate: Candidate, volume: Volume, lungs: Lungs) -> Finding:
    """Everything that can be measured of one nodule."""
    mask, offset = candidate.mask, candidate.offset_zyx
    sizes = measure_nodule(mask, offset, volume)
    measurements, evaluations = list(sizes.measurements), []
    if kind := texture(mask, offset, volume):
        evaluations = [Evaluation(codes.NODULE_TYPE, kind.type), RULE]
        if kind.type == codes.PART_SOLID:
            core_mm = axial(kind.core, volume.spacing_mm)[1].mean_mm
            measurements.append(Measurement(codes.SOLID_DIAMETER, core_mm, codes.MM, codes.MEAN))
    pleura_mm = distance_to_pleura(lungs, mask, offset, volume)
    if pleura_mm is not None:
        measurements.append(Measurement(codes.PLEURA_DISTANCE, float(round(pleura_mm)), codes.MM))
    return Finding(
        number=number,
        label=f"Nodule {number}",
        category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
        type=codes.NODULE,
        site=codes.LUNG,  # no lobe: nothing here knows the fissures
        laterality=laterality(candidate, volume, lungs),
        mask=mask,
        offset_zyx=offset,
        key_image=sizes.key_image,
        certainty=candidate.certainty,
        long_axis=sizes.long_axis,
        short_axis=sizes.short_axis,
        measurements=tuple(measurements),
        evaluations=tuple(evaluations),
    )


def refuse_unfit(volume: Volume) -> None:
    """Raise UnfitInput in words when the network would be asked something it never learned."""
    normal_z = abs(float(np.cross(volume.affine[:3, 1], volume.affine[:3, 2])[2])) / (
        volume.spacing_mm[1] * volume.spacing_mm[2]
    )
    if normal_z < 0.9:  # about 25 degrees
        raise UnfitInput("the slices are not axial; an axial chest CT is needed")
    if len(volume.images) < 5:
        raise UnfitInput(f"{len(volume.images)} slices are too few to look for nodules; at least 5 are needed")
    if volume.spacing_mm[0] > 6.0:
        raise UnfitInput(f"slices are {volume.spacing_mm[0]:.1f} mm apart; nodules need 5 mm or less")
    if not 0.2 <= volume.spacing_mm[1] <= 2.0 or not 0.2 <= volume.spacing_mm[2] <= 2.0:
        raise UnfitInput(
            f"pixels of {volume.spacing_mm[1]:.2f} x {volume.spacing_mm[2]:.2f} mm; 0.2 to 2 mm are expected"
        )


def resampled(hu: np.ndarray, lung: np.ndarray, spacing_mm: tuple[float, float]) -> tuple[Tensor, np.ndarray]:
    """A slice in HU as float, and its lung mask, on pixels of a size the network knows."""
    image = torch.from_numpy(hu.astype(np.float32))
    if is_native(spacing_mm):
        return image, lung
    shape = [max(16, round(n * mm / TRAINED_MM)) for n, mm in zip(hu.shape, spacing_mm, strict=True)]
    shrinks = shape[0] < hu.shape[0]
    image = F.interpolate(image[None, None], shape, mode="bilinear", align_corners=False, antialias=shrinks)[0, 0]
    mask = F.interpolate(torch.from_numpy(lung)[None, None].float(), shape, mode="nearest-exact")[0, 0] > 0
    return image, mask.numpy()


def tiles(lung: np.ndarray) -> Iterator[tuple[int, int]]:
    """(row, column) of windows whose middles tile the lung's box, on the image padded by half a step on each side."""
    rows, columns = np.flatnonzero(lung.any(axis=1)), np.flatnonzero(lung.any(axis=0))
    for y in range(int(rows[0]), int(rows[-1]) + 1, STRIDE):
        for x in range(int(columns[0]), int(columns[-1]) + 1, STRIDE):
            if lung[y : y + STRIDE, x : x + STRIDE].any():
                yield y, x  # the window starts half a step before its middle, and so does the padded image


def blending_window() -> Tensor:
    """(128, 128) Gaussian of sigma 1/8 of the side, as nnU-Net blends (Isensee 2021)."""
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    line = torch.exp(-0.5 * (place / (SIDE / 8)) ** 2)
    return line[:, None] * line[None, :]


def candidates(probability: np.ndarray, options: Options) -> Iterator[Candidate]:
    """26-connected pieces above the threshold that reach the peak; certainty is the mean probability of the piece."""
    labels, _ = ndimage.label(probability >= round(255 * options.threshold), structure=np.ones((3, 3, 3)))
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == label
        values = probability[box][mask]
        if values.max() >= round(255 * options.peak):
            yield Candidate(mask, (box[0].start, box[1].start, box[2].start), float(values.mean()) / 255)


def why_not_nodule(candidate: Candidate, volume: Volume, lungs: Lungs, options: Options) -> str | None:
    """None, or the reason why a candidate is not reported."""
    _, lines = axial(candidate.mask, volume.spacing_mm)
    if lines.mean_mm < options.smallest_mm:
        return f"{lines.mean_mm:.1f} mm is below {options.smallest_mm:g} mm"
    if lines.mean_mm > options.largest_mm:
        return f"{lines.mean_mm:.1f} mm is above {options.largest_mm:g} mm"
    if candidate.mask.shape[0] < 2 and volume.spacing_mm[0] <= options.thin_mm:
        return "on one slice only"
    box = tuple(slice(o, o + n) for o, n in zip(candidate.offset_zyx, candidate.mask.shape, strict=True))
    share = float(lungs.mask[box][candidate.mask].mean())
    if share < options.in_lung:
        return f"only {100 * share:.0f} % inside the lungs"
    around = soft_tissue_around(candidate, volume, lungs)
    if around > options.crowded:
        return f"{100 * around:.0f} % of its surroundings in the lung is soft tissue, like a vessel that goes on"
    shortest, second, longest = axes_of_inertia(candidate.mask, volume.spacing_mm)
    if longest / second > options.elongation:
        return f"{longest / second:.1f} times longer than wide, like a vessel"
    if longest / shortest > options.flatness:
        return f"{longest / shortest:.1f} times wider than thick, like a fissure or a dome"
    return None


def soft_tissue_around(candidate: Candidate, volume: Volume, lungs: Lungs) -> float:
    """Share of soft tissue among the lung voxels 1 to 3 mm outside the mask; 0 if there are none.

    Of every third LIDC nodule of the training patients (198, readers' masks, surroundings not limited to the lung) the
    median is 0.04 and the 90th percentile 0.29; a vessel cut by the network's mask goes on and has more.
    """
    margin = np.ceil(SHELL_MM[1] / np.array(volume.spacing_mm)).astype(int)
    start = np.array(candidate.offset_zyx) - margin
    stop = np.array(candidate.offset_zyx) + candidate.mask.shape + margin
    inner, outer = np.maximum(start, 0), np.minimum(stop, volume.hu.shape)
    box = tuple(slice(a, b) for a, b in zip(inner, outer, strict=True))
    part = tuple(slice(a, b) for a, b in zip(inner - start, outer - start, strict=True))
    distance = ndimage.distance_transform_edt(
        ~np.pad(candidate.mask, [(m, m) for m in margin]), sampling=volume.spacing_mm
    )[part]
    shell = (distance > SHELL_MM[0]) & (distance <= SHELL_MM[1]) & lungs.mask[box]
    return float((volume.hu[box][shell] > SOFT_ABOVE_HU).mean()) if shell.any() else 0.0


def axes_of_inertia(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """Standard deviations in mm along the principal axes of a mask, the shortest first; a ball's are equal."""
    points = np.argwhere(mask) * np.array(spacing_mm)
    spread = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((3, 3))
    spread += np.diag(np.array(spacing_mm) ** 2 / 12)  # a voxel is a box, not a point
    shortest, second, longest = np.sqrt(np.linalg.eigvalsh(spread))
    return float(shortest), float(second), float(longest)


def laterality(candidate: Candidate, volume: Volume, lungs: Lungs) -> Code | None:
    """Right or left from the patient's x, at least 2 cm beside the middle of the lungs; else None."""
    if lungs.middle_x_mm is None:
        return None
    middle = np.array(candidate.offset_zyx) + np.array(np.nonzero(candidate.mask)).mean(axis=1)
    x_mm = volume.position_lps_mm(middle.tolist())[0] - lungs.middle_x_mm
    if abs(x_mm) < 20.0:
        return None
    return codes.LEFT if x_mm > 0 else codes.RIGHT  # LPS: x grows to the patient's left, PS3.3 C.7.6.2.1.1
