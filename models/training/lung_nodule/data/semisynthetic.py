"""Semi-synthetic chest CTs: real nodules of LIDC-IDRI pasted into real CTs and phantoms, with a mask of each.

    python -m models.training.lung_nodule.data.semisynthetic --volumes lidc_voi3d.zip --scan A.zip --scan B.zip \
        --out FOLDER \\
        --scans 64 --seed 1

No whole CT with annotated nodules is at hand here; a detector that is trained or measured on these scans is trained and
measured semi-synthetically, and every figure has to say so. How they are made:

- Donors are nodule volumes in HU with a mask; those of the stored split's train patients are pasted into training scans
  only, and so on. Each donor of a part is used once before any is used twice.
- Real backgrounds are halved: of one CT the left lung is for training and the right one for validation and test, of the
  next the other way round, so that nothing behind a test nodule was ever trained on. The phantoms of each part have
  seeds of their own.
- Nobody annotated the real backgrounds, and people who are scanned have nodules: --excluded lists places that look like
  one, as LUNA16's annotations_excluded.csv does. They are neither to be found nor mistakes, in training and test alike.
  The list beside this file is of the two CTs that this project uses. It was made from pictures in three planes of what
  the detectors marked, and of what is compact and free of vessels, in the bare lungs; no radiologist read them.
- A donor is brought to 1 mm, in training turned about the body's long axis and mirrored at random, and denoised. What
  of each voxel is lung and what is tissue follows from its HU between its own lung and TISSUE_HU; the tissue is laid
  over the scan, within RIM_MM of the mask, and the scan's own lung shows through the rest. So lung HU are the scan's
  own, tissue HU the donor's. The donor's noise is scaled to that of the lung it comes to, and fades where the scan's
  own is left.
- --diseased SHARE gives so many of the phantoms emphysema, fibrosis, consolidation or effusion, by their own seeds,
  which no two parts share; without it all are healthy.
- Places: all of the mask within the lung mask, off its border, large vessels and airways by margins that grow with the
  nodule; a donor that touched the pleura (seen by the wall beside it) touches it again, on a side that faces alike.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import scipy
from rich.progress import track
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle

from models.grid import box_at, isotropic
from models.lung_nodule.lungs import find_lungs
from models.phantoms.chest import KERNELS, chest_volume
from models.phantoms.chest_disease import KINDS, Disease
from models.pipeline import UnfitInput
from models.read import Volume, read_ct
from models.training.files import write_text
from models.training.lung_nodule.data import luna
from models.training.lung_nodule.data.scans import (
    FORMAT,
    INDEX,
    MARGIN_MM,
    Lesion,
    Scan,
    excluded_places,
    index_digest,
    store,
)
from models.training.lung_nodule.data.slices import stored_split

VERSION = 2  # change it with every change of the pixels or the places
PARTS = {"train": 5 / 8, "val": 1 / 8, "test": 1 / 4}  # of the scans
UPPER = 0.35  # share of a lung's height: the validation's part of the lung that training does not see
BETWEEN_MM = 10  # left out between validation and test
NODULES = {"real": (4, 7), "phantom": (6, 10)}  # in each scan, from and to
WHOLE_CHEST_ML = 4000.0  # of lung: a background with less counts as that share of a scan

RIM_MM = 3.0  # beyond the mask, up to which a scan is changed
TISSUE_HU = 40.0  # what counts as all tissue and no lung
LUNG_BELOW_HU = -500
NO_LUNG_HU = -850.0  # of the lung round a nodule where too little of it is in view
WALL_ABOVE_HU = -300
WALL_SHARE = 0.12  # of the donor's surroundings that must be wall for one that touches the pleura
APART_MM = 8.0  # between two nodules, at least
EXCLUDED = Path(__file__).with_name("annotations_excluded.csv")
PHANTOM = "phantom-"  # how their names begin
SEVERITY = (0.2, 0.9)  # of a diseased phantom, from and to: there is lung left to paste into
PHANTOM_MM = ((1.0, 1.0, 1.0), (1.25, 0.8, 0.8), (2.5, 0.9, 0.9))  # slice spacing, pixels


# ------------------------------------------------------------------------------------------------------ donors


@dataclass(frozen=True, eq=False)
class Donor:
    """A nodule on its own grid: HU float32 and mask bool, (z, y, x), z towards the head."""

    name: str
    patient: str
    hu: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float, float]

    @cached_property
    def lung_hu(self) -> float:
        """The median of the parenchyma round the nodule, HU."""
        away = ~ndimage.binary_dilation(self.mask, iterations=2)
        lung = self.hu[away & (self.hu < LUNG_BELOW_HU)]
        return float(np.median(lung)) if lung.size >= 50 else NO_LUNG_HU

    @cached_property
    def wall(self) -> np.ndarray | None:
        """Unit vector (z, y, x) towards the wall that the nodule touches; None for one that touches none.

        Wall: the soft tissue that goes on to the volume's border in the plane, and takes a good part of it.
        """
        soft = (self.hu > WALL_ABOVE_HU) & ~ndimage.binary_dilation(self.mask)
        labels, _ = ndimage.label(soft)
        edge = np.ones(soft.shape, bool)
        edge[:, 1:-1, 1:-1] = False
        counts = np.bincount(labels[edge], minlength=labels.max() + 1)
        large = np.flatnonzero(counts >= 0.08 * edge.sum())
        wall = np.isin(labels, large[large > 0])
        mm = np.array(self.spacing_mm)
        near = ndimage.distance_transform_edt(~self.mask, sampling=mm) < 1.5 + mm[1]
        shell = near & ~self.mask
        touching = shell & ndimage.binary_dilation(wall)
        if touching.sum() < WALL_SHARE * shell.sum():
            return None
        towards = (np.argwhere(touching).mean(axis=0) - np.argwhere(self.mask).mean(axis=0)) * mm
        length = float(np.linalg.norm(towards))
        return towards / length if length > 0 else None


def donor_names(archive: zipfile.ZipFile, patients: Sequence[str] | None = None) -> list[str]:
    """Volumes of these patients, or of all."""
    names = sorted(name for name in archive.namelist() if name.startswith("image/") and name.endswith(".nii.gz"))
    return [name for name in names if patients is None or patient_of(name) in set(patients)]


def patient_of(name: str) -> str:
    return name.removeprefix("image/").split("_")[0]


def read_donor(archive: zipfile.ZipFile, name: str) -> Donor:
    """One nodule of lidc_voi3d.zip; the files store (x, y, z)."""

    def loaded(path: str) -> tuple[np.ndarray, Any]:
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(path)))
        return np.asarray(image.dataobj, np.float32).transpose(2, 1, 0), image.header.get_zooms()[:3]

    hu, (x_mm, y_mm, z_mm) = loaded(name)
    mask, _ = loaded(name.replace("image/", "nodule_mask/"))
    short = name.removeprefix("image/").removesuffix(".nii.gz")
    return Donor(short, patient_of(name), hu, mask > 0, (float(z_mm), float(y_mm), float(x_mm)))


def why_not_donor(donor: Donor) -> str | None:
    """None, or why a nodule cannot be pasted."""
    mask = donor.mask
    if not mask.any():
        return "an empty mask"
    if mask[:, [0, -1]].any() or mask[:, :, [0, -1]].any():
        return "cut off at its volume's border"
    return None


# ------------------------------------------------------------------------------------------------------- grafts


@dataclass(frozen=True, eq=False)
class Graft:
    """A donor on 1 mm, ready to be laid over a scan. All of one shape, the mask's centroid near the middle.

    mask     bool
    tissue   share of tissue in each voxel, 0..1, 0 beyond the rim
    excess   HU above TISSUE_HU (calcium, contrast)
    noise    HU, what denoising took off; noise_hu is its strength in lung
    wall     unit vector towards the wall, or None
    """

    mask: np.ndarray
    tissue: np.ndarray
    excess: np.ndarray
    noise: np.ndarray
    noise_hu: float
    wall: np.ndarray | None

    @cached_property
    def voxels(self) -> np.ndarray:
        """(n, 3) of the mask, about its centroid."""
        where = np.argwhere(self.mask)
        return where - where.mean(axis=0)

    @property
    def reach_mm(self) -> float:
        return float(np.linalg.norm(self.voxels, axis=1).max())

    @property
    def diameter_mm(self) -> float:
        return float((6 * len(self.voxels) / np.pi) ** (1 / 3))


def turned(angle: float, flips: Sequence[float]) -> np.ndarray:
    """3x3 on (z, y, x): mirrored along axes with a flip of -1, then turned about z by the angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ np.diag(flips)


def graft(donor: Donor, turn: np.ndarray) -> Graft:
    """The donor at 1 mm (order 1), turned; mask where half or more of it is."""
    mm = np.array(donor.spacing_mm)
    # Volumes end with the mask above and below: a slice of lung is added, so that the nodule fades out in one step
    hu = np.pad(donor.hu, ((1, 1), (0, 0), (0, 0)), constant_values=donor.lung_hu)
    soft_mask = np.pad(donor.mask.astype(np.float32), 1)
    where = np.argwhere(donor.mask)
    centroid = where.mean(axis=0)
    corners = (where - centroid) * mm @ turn.T
    half = np.ceil(np.abs(corners).max(axis=0) + RIM_MM + 2).astype(int)
    back = turn.T / mm[:, None]  # from mm about the centroid to the donor's voxels
    shape = tuple(2 * half + 1)

    def resampled(values: np.ndarray, padded: Sequence[int], **edge: Any) -> np.ndarray:
        start = centroid + padded - back @ half
        return ndimage.affine_transform(values, back, start, shape, output=np.float32, order=1, **edge)

    mask = resampled(soft_mask, (1, 1, 1), mode="constant") >= 0.5
    if not mask.any():
        mask[tuple(half)] = True
    values = resampled(hu, (1, 0, 0), mode="nearest")
    away = ndimage.distance_transform_edt(~mask)
    alpha = np.clip((RIM_MM + 1 - away) / RIM_MM, 0, 1) ** 2  # 1 up to the first voxel outside
    alpha[away >= RIM_MM] = 0
    known = resampled(np.ones(donor.hu.shape, np.float32), (0, 0, 0), mode="constant") > 0.99  # not beyond the volume
    lung = known & (values < LUNG_BELOW_HU) & (away > 2)
    noise_hu = noise_of(values, lung if lung.sum() > 200 else known & mask)
    smooth = denoise_tv_chambolle(values, weight=max(1.2 * noise_hu, 1.0), max_num_iter=60)
    tissue = np.clip((smooth - donor.lung_hu) / (TISSUE_HU - donor.lung_hu), 0, 1) * alpha
    return Graft(
        mask=mask,
        tissue=tissue.astype(np.float32),
        excess=(np.maximum(smooth - TISSUE_HU, 0) * alpha).astype(np.float32),
        noise=(values - smooth).astype(np.float32),
        noise_hu=noise_hu,
        wall=None if donor.wall is None else turn @ donor.wall,
    )


def noise_of(values: np.ndarray, where: np.ndarray) -> float:
    """Standard deviation in HU of what is finer than a pixel or two in the plane, robust against vessels and edges."""
    if where.sum() < 20:
        return 0.0
    values = values.astype(np.float32)
    fine = (values - ndimage.gaussian_filter(values, (0, 1, 1)))[where]
    return float(1.4826 * np.median(np.abs(fine - np.median(fine))))


def blend(hu: np.ndarray, one: Graft, corner_zyx: Sequence[int], noise_hu: float) -> Lesion:
    """Lay a graft over int16 HU, in place. noise_hu: of the lung around. Returns the truth.

    Voxels beyond the rim stay as they are, bit for bit.
    """
    box = box_at(corner_zyx, one.mask.shape)
    before = hu[box].astype(np.float32)
    gain = min(noise_hu / one.noise_hu, 2.0) if one.noise_hu > 0 else 0.0
    added = one.tissue * np.maximum(TISSUE_HU - before, 0) + one.excess
    added += one.noise * gain * np.sqrt(1 - (1 - one.tissue) ** 2)  # with what is left of the scan's own: the scan's
    hu[box] = np.where((one.tissue > 0) | (one.excess > 0), np.clip(np.rint(before + added), -1024, 3071), hu[box])
    return Lesion.of(one.mask, corner_zyx)


# -------------------------------------------------------------------------------------------------- backgrounds


@dataclass(frozen=True, eq=False)
class Background:
    """A chest on 1 mm to paste into, and where that is allowed: maps on every second voxel along each axis.

    own   what looks like a nodule in it before any is pasted
    """

    name: str
    patient: str
    hu: np.ndarray
    lungs: np.ndarray
    own: tuple[Lesion, ...] = ()

    @cached_property
    def coarse(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mm to the lungs' border, mm to the nearest large vessel or airway, outward direction (3, ...))"""
        lungs = self.lungs[::2, ::2, ::2]
        smooth = ndimage.uniform_filter(self.hu.astype(np.float32), 3)[::2, ::2, ::2]
        smooth = ndimage.gaussian_filter(smooth, 0.7)  # small vessels vanish
        crowded = lungs & ((smooth > LUNG_BELOW_HU) | (smooth < -965))
        # At the array's faces the scan is cut, which is no border of the lung: distances go on beyond
        outside = ndimage.distance_transform_edt(lungs, sampling=2).astype(np.float32)
        vessel = ndimage.distance_transform_edt(~crowded, sampling=2).astype(np.float32)
        outward = -np.stack(np.gradient(ndimage.gaussian_filter(lungs.astype(np.float32), 2)))
        outward /= np.maximum(np.linalg.norm(outward, axis=0), 1e-6)
        return outside, vessel, outward

    @property
    def share(self) -> float:
        """The fraction of a whole chest's lungs that this is."""
        return round(min(1.0, float(self.lungs.sum()) / 1000 / WHOLE_CHEST_ML), 3)


def cut_out(whole: Background, region: np.ndarray | None = None) -> Background:
    """What lies in the region (bool; all when None), cut to its lungs with MARGIN_MM around, not beyond its box."""
    region = np.ones_like(whole.lungs) if region is None else region
    lungs = whole.lungs & region
    if not lungs.any():
        raise UnfitInput(f"{whole.name}: no lung in this part of the scan; give a CT that shows both lungs")
    inner, outer = (ndimage.find_objects(one.astype(np.uint8))[0] for one in (lungs, region))
    box = tuple(
        slice(max(i.start - MARGIN_MM, o.start), min(i.stop + MARGIN_MM, o.stop))
        for i, o in zip(inner, outer, strict=True)
    )
    own = tuple(one for one in (lesion.within(box) for lesion in whole.own) if one)
    return Background(whole.name, whole.patient, whole.hu[box].copy(), lungs[box].copy(), own)


@dataclass(frozen=True, eq=False)
class Chest:
    """A whole real CT on 1 mm, and how it lies.

    middle      first column beyond the middle between the lungs
    left_after  the patient's left is there and beyond
    upwards     z ascends towards the head
    """

    whole: Background
    middle: int
    left_after: bool
    upwards: bool

    def part(self, part: str, number: int) -> Background:
        """The piece of this CT that belongs to a part; number: which of the given CTs it is.

        Even numbers: left lung train, right lung validation (the upper 35 %) and test; odd: right lung train, left
        lung test.
        """
        shape = self.whole.hu.shape
        left = (np.arange(shape[2]) >= self.middle) == self.left_after
        side = left if (part == "train") == (number % 2 == 0) else ~left
        height = np.ones(shape[0], bool)
        if part != "train" and number % 2 == 0:
            rows = np.flatnonzero(self.whole.lungs.any(axis=(1, 2)))
            z = np.arange(shape[0])
            from_top = rows[-1] - z if self.upwards else z - rows[0]
            border = UPPER * len(rows)
            height = from_top < border if part == "val" else from_top >= border + BETWEEN_MM
        return cut_out(self.whole, np.broadcast_to(side, shape) & height[:, None, None])


def read_chest(path: Path, excluded: Path = EXCLUDED) -> Chest:
    """A zip or folder of the DICOM files of one CT, and the list of what is in such lungs.

    Raises UnfitInput when it does not show both lungs.
    """
    volume = read_folder(path)
    found = find_lungs(volume)
    if found.middle_x_mm is None:
        raise UnfitInput(f"{path.name}: both lungs must be in view, one is for training and one for the test")
    across = volume.affine[0, 2]
    middle = (found.middle_x_mm - volume.affine[0, 3]) / across * volume.spacing_mm[2]
    hu, lungs = (isotropic(one, volume.spacing_mm) for one in (volume.hu, found.mask))
    own = tuple(excluded_places(volume, listed(excluded).get(volume.headers[0].SeriesInstanceUID, [])))
    return Chest(
        Background(path.stem, path.stem, hu, lungs, own),
        int(np.ceil(middle)),
        bool(across > 0),
        bool(volume.affine[2, 0] >= 0),
    )


def listed(excluded: Path) -> dict[str, list[tuple[np.ndarray, float]]]:
    """See luna.listed_nodules. Raises ValueError in words for a file that is missing or no such list."""
    try:
        return luna.listed_nodules(excluded)
    except (OSError, KeyError) as error:
        raise ValueError(f"{excluded} cannot be read as LUNA16's annotations_excluded.csv: {error!r}") from error


def read_folder(path: Path) -> Volume:
    """The CT in a zip or folder of DICOM files."""
    if path.is_dir():
        return read_ct(sorted(path.rglob("*.dcm")))
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        return read_ct(sorted(Path(folder).rglob("*.dcm")))


def phantom(seed: int, disease: Disease | None = None, shape_mm: tuple[int, int, int] = (290, 250, 320)) -> Background:
    """A phantom with the spacing and kernel that its seed draws."""
    rng = np.random.default_rng((seed, 80))
    spacing = PHANTOM_MM[rng.integers(len(PHANTOM_MM))]
    kernel = list(KERNELS)[rng.integers(len(KERNELS))]
    z, y, x = (round(n / mm) for n, mm in zip(shape_mm, spacing, strict=True))
    hu, affine = chest_volume(seed, shape=(z, y, x), spacing_mm=spacing, kernel=kernel, disease=disease)
    lungs = find_lungs(Volume(hu, (), spacing, affine, ())).mask
    name = f"{PHANTOM}{seed}" if disease is None else f"{PHANTOM}{seed}-{disease.kind}"
    return cut_out(Background(name, name, isotropic(hu, spacing), isotropic(lungs, spacing)))


# ------------------------------------------------------------------------------------------------------- places


def place(
    background: Background, donor: Donor, taken: Sequence[Lesion], rng: np.random.Generator, vary: bool
) -> tuple[Graft, tuple[int, int, int]] | None:
    """The donor as a graft, and the corner of its box in the scan; None when there is no room for it.

    vary: turned and mirrored at random.
    """
    flips = rng.choice([-1.0, 1.0], 3).tolist() if vary else [1.0, 1.0, 1.0]
    angle = float(rng.uniform(0, 2 * np.pi)) if vary else 0.0
    one = graft(donor, turned(angle, flips))
    sites = inside_places(background, one, rng) if one.wall is None else wall_places(background, one, rng)
    for centre in sites:
        corner = np.rint(centre - np.argwhere(one.mask).mean(axis=0)).astype(int)
        if fits(background, one, corner, taken):
            z, y, x = (int(c) for c in corner)
            return one, (z, y, x)
    return None


def fits(background: Background, one: Graft, corner: np.ndarray, taken: Sequence[Lesion]) -> bool:
    """The box is in the scan; the mask is in the lungs (at the pleura: nearly, and it touches); others are far."""
    if (corner < 0).any() or (corner + one.mask.shape > background.hu.shape).any():
        return False
    box = box_at(corner.tolist(), one.mask.shape)
    lungs = background.lungs[box]
    within = float(lungs[one.mask].mean())
    if one.wall is None:
        inside = within == 1
    else:
        touches = bool((ndimage.binary_dilation(one.mask, iterations=2) & ~lungs).any())
        inside = within >= 0.92 and touches
    where = np.argwhere(one.mask).mean(axis=0) + corner
    return inside and all(
        np.linalg.norm(where - np.array(other.centre_zyx))
        > one.reach_mm + float(np.linalg.norm(other.mask.shape)) / 2 + APART_MM
        for other in taken
    )


def inside_places(
    background: Background, one: Graft, rng: np.random.Generator, tries: int = 60
) -> Iterator[np.ndarray]:
    """Centres in the lung, off its border and large vessels by margins that grow with the nodule."""
    outside, vessel, _ = background.coarse
    room = (outside > one.reach_mm + 1 + 0.15 * one.diameter_mm) & (
        vessel > 0.5 * one.diameter_mm + 0.5 + 0.1 * one.diameter_mm
    )
    candidates = np.argwhere(room)
    for index in rng.permutation(len(candidates))[:tries]:
        yield 2 * candidates[index] + rng.uniform(0, 2, 3)


def wall_places(background: Background, one: Graft, rng: np.random.Generator, tries: int = 80) -> Iterator[np.ndarray]:
    """Centres beside a border of the lung that faces as the donor's wall did, about where the mask touches it."""
    assert one.wall is not None
    outside, vessel, outward = background.coarse
    border = (outside > 0) & (outside <= 3) & (np.tensordot(one.wall, outward, 1) > 0.85)
    candidates = np.argwhere(border)
    depth = float((one.voxels @ one.wall).max())
    for index in rng.permutation(len(candidates))[:tries]:
        at = 2.0 * candidates[index]
        direction = outward[(slice(None), *candidates[index])]
        middle = np.clip(((at - depth * direction) / 2).astype(int), 0, np.array(vessel.shape) - 1)
        if vessel[tuple(middle)] <= 0.35 * one.diameter_mm:
            continue
        for further in (1.0, 0.0, -1.0, -2.0, 2.0):
            yield at - (depth - further) * direction


# --------------------------------------------------------------------------------------------------------- sets


@dataclass(frozen=True)
class Plan:
    """One scan to make. real: number of the given CT, or None for a phantom."""

    name: str
    part: str
    real: int | None
    seed: tuple[int, int, int]  # set, part, number
    donors: tuple[str, ...]


def plans(donors: dict[str, list[str]], scans: int, seed: int, reals: int) -> list[Plan]:
    """What each scan is to be; the same arguments give the same plans.

    donors   part -> names. Two of three scans have a real background, if there are any: in turn, the validation's of
             even numbers only. The parts take turns, so that a set that is not whole has all of them.
    """
    made: list[tuple[float, Plan]] = []
    for code, (part, share) in enumerate(PARTS.items()):
        rng = np.random.default_rng((seed, code))
        queue: list[str] = []
        total = max(1, round(share * scans))
        for number in range(total):
            backgrounds = [i for i in range(reals) if part != "val" or i % 2 == 0]
            turn = number - number // 3  # of the real ones
            chosen = backgrounds[turn % len(backgrounds)] if backgrounds and number % 3 != 2 else None
            low, high = NODULES["phantom" if chosen is None else "real"]
            count = min(int(rng.integers(low, high + 1)), len(donors[part]))
            if len(queue) < count:
                queue += [donors[part][i] for i in rng.permutation(len(donors[part]))]
            plan = Plan(f"{part}-{number:04d}", part, chosen, (seed, code, number), tuple(queue[:count]))
            made.append(((number + 0.5) / total, plan))
            queue = queue[count:]
    return [plan for _, plan in sorted(made, key=lambda one: (one[0], one[1].name))]


def phantom_seed(plan: Plan) -> int:
    """Never the same for two parts: the part is its last digit."""
    set_seed, part, number = plan.seed
    return (set_seed * 100_000 + number) * 10 + part


def disease_of(plan: Plan, diseased: float) -> Disease | None:
    """What a phantom has, if it is one of the share that has anything; another share gives each the same disease."""
    rng = np.random.default_rng((*plan.seed, 2))
    if plan.real is not None or rng.random() >= diseased:
        return None
    return Disease(KINDS[rng.integers(len(KINDS))], round(float(rng.uniform(*SEVERITY)), 3), phantom_seed(plan))


def make(plan: Plan, background: Background, donors: zipfile.ZipFile) -> tuple[Scan, list[dict[str, Any]], list[str]]:
    """(the scan, what the index says about each lesion, names of donors that found no place)"""
    rng = np.random.default_rng((*plan.seed, 1))
    hu = background.hu.copy()
    lesions: list[Lesion] = []
    facts: list[dict[str, Any]] = []
    lacking: list[str] = []
    for name in plan.donors:
        donor = read_donor(donors, name)
        taken = (*background.own, *lesions)
        found = place(background, donor, taken, rng, vary=plan.part == "train") if not why_not_donor(donor) else None
        if found is None:
            lacking.append(donor.name)
            continue
        one, corner = found
        around = tuple(slice(max(0, c - 8), c + n + 8) for c, n in zip(corner, one.mask.shape, strict=True))
        lung = background.lungs[around] & (background.hu[around] < LUNG_BELOW_HU)
        lesion = blend(hu, one, corner, noise_of(background.hu[around], lung))
        lesions.append(lesion)
        facts.append(
            {
                "donor": donor.name,
                "patient": donor.patient,
                "centre_zyx": [round(c, 2) for c in lesion.centre_zyx],
                "diameter_mm": round(lesion.diameter_mm, 2),
                "at_pleura": one.wall is not None,
            }
        )
    scan = Scan(
        name=plan.name,
        patient=background.patient,
        hu=hu,
        lungs=background.lungs,
        lesions=tuple(lesions),
        semi_synthetic=True,
        donors=tuple(dict.fromkeys(fact["patient"] for fact in facts)),
        irrelevant=background.own,
        share=background.share,
    )
    return scan, facts, lacking


def generate(
    volumes: Path,
    scans: Sequence[Path],
    out: Path,
    count: int,
    seed: int,
    excluded: Path = EXCLUDED,
    diseased: float = 0.0,
) -> dict[str, Any]:
    """Make a set, or the rest of it; returns its index. diseased: that share of the phantoms.

    Raises ValueError when the folder holds another set.
    """
    out.mkdir(parents=True, exist_ok=True)
    split, split_sha256 = stored_split()
    listed(excluded)
    with zipfile.ZipFile(volumes) as archive:
        donors = {part: donor_names(archive, split[part]) for part in PARTS}
        for part, names in donors.items():
            if not names:
                raise ValueError(f"{volumes.name} has no nodule of a {part} patient of the stored split")
        settings = {
            "generator": VERSION,
            "seed": seed,
            "scans": count,
            "volumes": {
                "name": volumes.name,
                "size": volumes.stat().st_size,
                "nodules": sum(map(len, donors.values())),
            },
            "backgrounds": [{"name": path.name, "size": path.stat().st_size} for path in scans],
            "excluded": hashlib.sha256(excluded.read_bytes()).hexdigest(),
        }
        if diseased:  # a set of healthy ones says nothing of it, as before there were others
            settings["diseased"] = diseased
        index: dict[str, Any] = {
            "format": FORMAT,
            "semi_synthetic": True,
            "settings": settings,
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
            "split_sha256": split_sha256,
            "scans": [],
        }
        if (out / INDEX).is_file():
            former = json.loads((out / INDEX).read_text("utf-8"))
            if former.get("settings") != settings:
                raise ValueError(f"{out} holds another set, of {former.get('settings')}; give an empty folder")
            index["scans"] = former["scans"]
        done = {one["name"] for one in index["scans"]}
        chest_of = cache(lambda number: read_chest(scans[number], excluded))
        piece_of = cache(lambda number, part: chest_of(number).part(part, number))
        for plan in track(plans(donors, count, seed, len(scans)), "semi-synthetic scans"):
            if plan.name in done:
                continue
            disease = disease_of(plan, diseased)
            ground = phantom(phantom_seed(plan), disease) if plan.real is None else piece_of(plan.real, plan.part)
            scan, facts, lacking = make(plan, ground, archive)
            file = f"{plan.name}.npz"
            store(out / file, scan)
            index["scans"].append(
                {
                    "name": plan.name,
                    "part": plan.part,
                    "file": file,
                    "sha256": hashlib.sha256((out / file).read_bytes()).hexdigest(),
                    "background": ground.name,
                    "patient": ground.patient,
                    "seed": list(plan.seed),
                    "share": ground.share,
                    "lesions": facts,
                    "own": len(ground.own),
                    "without_room": lacking,
                    **({"disease": asdict(disease)} if disease else {}),
                }
            )
            write_text(out / INDEX, json.dumps(index | {"sha256": index_digest(index)}, indent=1) + "\n")
    return index | {"sha256": index_digest(index)}


def share(text: str) -> float:
    """Raises ValueError for what is no number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.training.lung_nodule.data.semisynthetic",
        description="Paste real nodules into real CTs and phantoms. A set that was interrupted is gone on with.",
    )
    parser.add_argument("--volumes", type=Path, required=True, help="zip of image/*.nii.gz and nodule_mask/*.nii.gz")
    parser.add_argument("--scan", type=Path, action="append", default=[], help="zip or folder of one CT in DICOM files")
    parser.add_argument(
        "--excluded", type=Path, default=EXCLUDED, help="annotations_excluded.csv of what the CTs have themselves"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=64, help="of all parts together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--diseased", type=share, default=0.0, help="of the phantoms, from 0 to 1: not healthy")
    given = parser.parse_args(arguments)
    try:
        index = generate(given.volumes, given.scan, given.out, given.scans, given.seed, given.excluded, given.diseased)
    except (ValueError, UnfitInput) as error:
        raise SystemExit(str(error)) from error
    for part in PARTS:
        made = [one for one in index["scans"] if one["part"] == part]
        sizes = [lesion["diameter_mm"] for one in made for lesion in one["lesions"]]
        print(
            f"{part}: {len(made)} scans, {len(sizes)} nodules, diameter {np.median(sizes or [0]):.1f} mm in the median"
        )
    print(f"{given.out / INDEX}: SHA-256 {index['sha256']}")


if __name__ == "__main__":
    main()
