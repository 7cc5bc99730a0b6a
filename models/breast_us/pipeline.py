"""Breast ultrasound images in, lesion outlines and class probabilities out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from scipy import ndimage

from dicom_sr import attributes, codes
from dicom_sr.classes import CLASSES as PROBABILITIES
from dicom_sr.findings import Axis, Evaluation, Finding, Findings, ImageRef, Measurement
from dicom_sr.importance import renumber
from dicom_sr.regions import Region, Spacing, calibration_problems, pixel_spacing_mm, why_no_tissue
from models.breast_us.birads import apply_temperature, suggestion, temperature_of
from models.breast_us.card import CARD, NAME, VERSION, card
from models.breast_us.cine import Sighting, Track, key_sighting, link, masks_by_image, settle
from models.breast_us.letterbox import PREPROCESSING, normalise, prepare
from models.breast_us.margins import without_margins
from models.breast_us.operating_point import point_of, words
from models.breast_us.options import Options
from models.breast_us.suitability import FOREIGN, Suitability, Verdict, curved_probe, fan_shaped, read_suitability
from models.breast_us.tissue import MOST_COLOUR, tissue
from models.breast_us.triple import read_triple
from models.measure import measure_lesion
from models.nets.breast_triple import CLASSES, LITE_STEP_PX
from models.pipeline import Progress, UnfitInput
from models.read import Clip, read_ultrasound
from models.runtime import Runtime, example
from models.weights import WeightsError, packed

WEIGHTS = ("breast_triple_lite0_w16",)  # several are averaged

# Chosen on the validation split.
INSIDE = 0.4  # mask probability; sizes are least biased here (1 % wide), overlap a little better at 0.3
# Images of BUSI's training part in split.json. The weights have since learnt from two hospitals (75, 959, 459), but
# with that mix fewer images of val get their class: docs/results/breast_us_hospitals.md.
TRAINED_ON = {"normal": 75, "benign": 242, "malignant": 115}
PRIOR_POWER = 1.0  # 0: classes equally frequent; 1: as frequent as in BUSI
SIZES = (0.86, 1.0)  # of the working size; answers are averaged
SMALLEST_SHARE = 0.0005  # of the image: less is speckle (the smallest lesion of BUSI takes 0.0028)
SMALLEST_SIDE_PX = 64
MOST_ELONGATED = 8.0  # longer to shorter side; in the network's square little is left of a narrower strip
LEAST_CONTRAST = 16  # grey values between the darkest and the brightest pixel; with less there is no picture
MOST_FRAMES = 48  # of a cine, spread evenly over it
FRAMES_JUDGED = 5  # of those: do they show a breast at all?

HIDDEN = "colour (Doppler or elastography) hides the tissue, a grey picture is needed"
BLANK = (
    f"the picture has hardly any contrast (fewer than {LEAST_CONTRAST} of 256 grey values): nothing can be seen on it;"
    " look at it in a viewer and check Bits Stored"
)
REASONS = (HIDDEN, BLANK, FOREIGN)  # not to look at a frame
FAN = "the picture is a fan, as curved and phased probes draw it; the network has seen linear probes only"
SHARE_TO_TELL, SHARE_TO_DROP = 0.1, 0.5  # of a lesion under burned-in colour: say so, or do not believe it
PLAUSIBLE_MM = (10.0, 150.0)  # height of a picture of a breast; outside, the calibration is doubted
UNCALIBRATED_WIDTH_MM = 50.0  # of a breast probe; only tells near from far where nothing calibrates the picture

# PS3.3 C.7.3.1.1: Laterality; ImageLaterality, when present, speaks for the image
SIDES = {"L": codes.LEFT, "R": codes.RIGHT, "B": codes.BILATERAL}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says about one image."""

    probability: np.ndarray  # (rows, columns) of the source, of each pixel being lesion
    classes: np.ndarray  # (3,) in the order of CLASSES, sums to 1, before the temperature
    lesion: np.ndarray  # bool (rows, columns), one piece or empty

    @property
    def certainty(self) -> float:
        """Mean probability of the lesion's pixels."""
        return float(self.probability[self.lesion].mean()) if self.lesion.any() else 0.0


@dataclass(eq=False)
class View:
    """One region of tissue of one image or cine, and what was seen in it, frame after frame."""

    region: Region
    looked_at: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)  # why frames were not looked at -> how many
    verdicts: list[Verdict] = field(default_factory=list)  # on a few of the frames
    under_colour: int = 0  # frames on which a lesion was outlined where colour had been painted over
    sightings: list[Sighting] = field(default_factory=list)
    classes: list[np.ndarray] = field(default_factory=list)  # of every frame looked at

    def see(self, look: Prediction, image: int, coloured: np.ndarray, classes: np.ndarray) -> None:
        """Note what the network says of a frame; image: its index into Findings.images, classes: as reported."""
        self.looked_at += 1
        self.classes.append(classes)
        lesion, cut = look.lesion, False
        for x0, y0, x1, y1 in self.region.covered:
            rows, columns = slice(y0, y1 + 1), slice(x0, x1 + 1)
            cut = cut or bool(lesion[rows, columns].any())
            lesion = lesion.copy()
            lesion[rows, columns] = False
        if lesion.any():
            hidden = float(coloured[lesion].mean())
            if hidden > SHARE_TO_DROP:
                self.under_colour += 1
                return
            self.sightings.append(Sighting.of(image, lesion, look.certainty, self.classes[-1], hidden, cut))

    @property
    def is_foreign(self) -> bool:
        """Most of the frames that were judged look like no breast."""
        return 2 * sum(one.foreign for one in self.verdicts) > len(self.verdicts)

    @property
    def scale_mm(self) -> Spacing:
        """Millimetres per pixel, guessed where nothing says them: to follow a lesion, never to measure it."""
        x0, _, x1, _ = self.region.box
        return self.region.spacing_mm or (UNCALIBRATED_WIDTH_MM / (x1 - x0 + 1),) * 2


class BreastUltrasound:
    """Finds the most evident lesion of every image of a series and says how likely it is benign or malignant.

    Each region of tissue on a screen is read on its own. Of a cine at most MOST_FRAMES frames are looked at; a lesion
    is followed over them, is one finding with a mask on each, and is measured where it is large and certain.
    """

    def __init__(
        self,
        device: str,
        options: Mapping[str, Any] | None = None,
        weights: Sequence[Path] | None = None,
        fusion: bool = True,
    ) -> None:
        """weights: of networks whose answers are averaged; when not given, the option `checkpoint`, else those that
        ship with the package. fusion: use C where there is one.

        Raises WeightsError for weights that are missing, spoilt, or cannot answer together.
        """
        chosen = Options.read(options)
        shipped = [packed("breast_us", name) for name in WEIGHTS]
        served = weights or ([Path(chosen.checkpoint)] if chosen.checkpoint else shipped)
        self.runtime = Runtime.choose(device, threads=chosen.threads)
        triples = [read_triple(path, PREPROCESSING, fusion) for path in served]
        learnt = {int(triple.about["config"]["size"]) for triple in triples}
        if len(learnt) > 1:
            raise WeightsError(f"these weights learnt from pictures of {sorted(learnt)} pixels: use them one by one")
        (working,) = learnt
        literal = any(triple.about["config"].get("heads") == "literal" for triple in triples)  # tied to one size
        self.sizes = [round(share * working / LITE_STEP_PX) * LITE_STEP_PX for share in ((1.0,) if literal else SIZES)]
        looks = [normalise(example(2, 1, size, size)) for size in self.sizes]
        self.nets = [self.runtime.plain(triple.net, *looks) for triple in triples]
        abouts = [triple.about for triple in triples]
        digests = {name: digest for triple in triples for name, digest in triple.sha256.items()}
        self.temperature = temperature_of(abouts)  # None: not calibrated
        self.point = point_of(abouts, self.temperature)  # None: none was chosen for these weights
        self.suitability: Suitability | None = None  # none was fitted to these weights
        if named := abouts[0].get("suitability"):
            path, first = Path(served[0]), triples[0]
            self.suitability = read_suitability(path, first.net.b, named, first.sha256[path.stem], self.runtime)
        self.asked_for_category = chosen.suggest_birads
        self.suggests = self.temperature is not None and chosen.suggest_birads
        # Training weighed the classes as if they were equally frequent; this goes back to BUSI's mix.
        counts = np.array([TRAINED_ON[label] for label in CLASSES])
        self.prior = (counts / counts.sum()) ** PRIOR_POWER
        parts = [*([self.suitability.sha256] if self.suitability else []), *digests.values()]
        self.card = replace(
            card(chosen),
            algorithm=replace(CARD.algorithm, version=f"{VERSION}+{version(parts, self.temperature)}"),
            weights_sha256=digests,
        )

    def warm(self) -> None:
        self.look(np.zeros((SMALLEST_SIDE_PX, SMALLEST_SIDE_PX), np.uint8))

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        start = time.monotonic()
        clips, unusable = readable(files)
        images: list[ImageRef] = []
        views: list[tuple[str, Clip, View]] = []
        warnings: list[str] = []
        for z, clip in enumerate(clips):
            progress(z / len(clips), f"image {z + 1} of {len(clips)}")
            try:
                shown, seen = self.watch(clip, len(images))
            except UnfitInput as why:
                unusable.append(f"{name_of(clip)}: {why}")
                continue
            images += shown
            names = [f"image {z + 1}" + f" region {k + 1}" * (len(seen) > 1) for k in range(len(seen))]
            views += [(name, clip, view) for name, view in zip(names, seen, strict=True) if view.looked_at]
            warnings += [text for text in doubts(clip, seen) if text not in warnings]
        if not images:
            raise UnfitInput("; ".join(unusable) or "the series has no images")
        warnings += [f"not looked at: {text}" for text in unusable]
        if self.asked_for_category and not self.suggests:
            warnings.append("no BI-RADS category is suggested: the weights are not calibrated")

        facts: dict[str, str | float] = {"device": str(self.nets[0]), "frames looked at": len(images)}
        found: list[Finding] = []
        for name, clip, view in views:
            lesions, passing = settle(link(view.sightings, view.scale_mm), view.looked_at)
            classes = max(map(key_sighting, lesions), key=heaviness).classes if lesions else np.mean(view.classes, 0)
            for label, share in zip(CLASSES, classes, strict=True):
                facts[f"{name} P({label})"] = round(float(share), 4)
            for track in lesions:
                found.append(self.finding(track, clip, view, number=len(found) + 1, alone=len(views) == 1))
                warnings += concerns(found[-1].label, track)
                warnings += words(found[-1].label, key_sighting(track).classes, self.point)
            if passing:
                frames = ", ".join(str(images[track[0].image].frame) for track in passing)
                warnings.append(f"{name_of(clip)}: marks on single frames were not reported (frame {frames})")
        progress(1.0, "done")
        facts["seconds"] = round(time.monotonic() - start, 3)
        result = Findings(
            pipeline=NAME,
            geometry="image",
            images=tuple(images),
            findings=tuple(found),
            algorithm=self.card.algorithm,
            measurements=probabilities(classes) if len(views) == 1 else (),
            warnings=tuple(warnings),
            facts=facts,
            sought=codes.MASS,
            sought_site=codes.BREAST,
            not_calibrated=(codes.CERTAINTY, *(PROBABILITIES.values() if self.temperature is None else ())),
        )
        return renumber(result)

    def watch(self, clip: Clip, before: int) -> tuple[list[ImageRef], list[View]]:
        """Look at the tissue of an image or cine, one frame in memory at a time.

        before: how many images of the series come before these in Findings.images. Returns the frames looked at and
        what they show. Raises UnfitInput when nothing can be used.
        """
        views = [View(region) for region in usable_regions(clip)]
        images: list[ImageRef] = []
        chosen = spread_evenly(len(clip.images), MOST_FRAMES)
        self.judge(clip, views, chosen)
        for index, frame in zip(chosen, clip.frames(chosen), strict=True):
            used = False
            for view in views:
                grey, coloured = tissue(frame, view.region.box)
                why = why_nothing(view.region, grey, coloured) or (FOREIGN if view.is_foreign else None)
                if why is not None:
                    view.passed_over[why] += 1
                else:
                    look = self.look(grey, view.region.box)
                    view.see(look, before + len(images), coloured, self.said(look.classes))
                    used = True
            if used:
                images.append(clip.images[index])
        if not images:
            raise UnfitInput("; ".join(why for why in REASONS if any(view.passed_over[why] for view in views)))
        return images, views

    def judge(self, clip: Clip, views: Sequence[View], chosen: Sequence[int]) -> None:
        """Note for each region, by a few frames, whether it shows a breast: Doppler and blank ones cannot say."""
        curved = bool(curved_probe(clip.header))
        few = [chosen[place] for place in spread_evenly(len(chosen), FRAMES_JUDGED)]
        for frame in clip.frames(few):
            for view in views:
                grey, coloured = tissue(frame, view.region.box)
                if why_nothing(view.region, grey, coloured) is not None:
                    continue
                shape = grey[window(grey.shape, view.region.box)]
                if self.suitability is None:
                    view.verdicts.append(Verdict(0.0, curved or fan_shaped(shape), foreign=False))
                else:
                    view.verdicts.append(self.suitability.judge(shape, curved))

    def finding(self, track: Track, clip: Clip, view: View, *, number: int, alone: bool) -> Finding:
        """A lesion, measured on its key frame. `alone`: the series shows nothing else and carries the probabilities."""
        key = key_sighting(track)
        sizes = measure_lesion(key.mask, key.corner_yx, key.image, view.region.spacing_mm)
        masks, offset_zyx = masks_by_image(track)
        chances = probabilities(key.classes)
        spacing_mm = view.region.spacing_mm or (1, 1)
        evaluations = [Evaluation(codes.US_ORIENTATION, orientation(key.mask, sizes.long_axis, spacing_mm))]
        if self.suggests:
            evaluations.append(suggestion(float(key.classes[CLASSES.index("malignant")])))
        return Finding(
            number=number,
            label=f"Lesion {number}",
            category=codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
            type=codes.MASS,
            site=codes.BREAST,
            laterality=side(clip.header),
            mask=masks,
            offset_zyx=offset_zyx,
            key_image=key.image,
            certainty=key.certainty,
            long_axis=sizes.long_axis,
            short_axis=sizes.short_axis,
            measurements=(*sizes.measurements, *(chances[-1:] if alone else chances)),
            evaluations=tuple(evaluations),
        )

    def look(self, grey: np.ndarray, region: tuple[int, int, int, int] | None = None) -> Prediction:
        """(rows, columns) uint8 -> Look, on the same pixels. Averages the image, its mirror image, and two sizes.

        region: (x0, y0, x1, y1), inclusive, that shows tissue; nothing is looked for outside it.
        """
        rows, columns = shown(grey, region)
        answers = [self.answer(grey[rows, columns], size) for size in self.sizes]
        probability = np.zeros(grey.shape, np.float32)
        probability[rows, columns] = np.mean([mask for mask, _ in answers], axis=0)
        shares = np.mean([classes for _, classes in answers], axis=0) * self.prior
        shares /= shares.sum()
        lesion = strongest_piece(probability, INSIDE)
        least = SMALLEST_SHARE * grey[rows, columns].size
        if CLASSES[shares.argmax()] == "normal" or lesion.sum() < least:
            lesion = np.zeros_like(lesion)
        return Prediction(probability, shares, lesion)

    def said(self, shares: np.ndarray) -> np.ndarray:
        """Class probabilities (3,) as they are reported: at the temperature, if there is one, which changes no class"""
        return shares if self.temperature is None else apply_temperature(shares, self.temperature)

    def answer(self, grey: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, columns) uint8 -> mask probability (rows, columns), class probabilities (3,), both as trained"""
        image, box = prepare(grey, size)
        both = normalise(torch.stack([image, image.flip(-1)])[:, None])  # (2, 1, size, size)
        answers = [net(both) for net in self.nets]
        masks = torch.stack([mask.sigmoid().cpu() for mask, _ in answers])  # (nets, 2, 1, size, size)
        classes = torch.stack([logits.softmax(dim=1).cpu() for _, logits in answers])  # (nets, 2, 3)
        mask = (masks[:, 0, 0] + masks[:, 1, 0].flip(-1)).mean(dim=0) / 2
        return box.take_back(mask).numpy(), classes.mean(dim=(0, 1)).numpy()


def version(digests: Iterable[str], temperature: float | None) -> str:
    """Another one whenever an answer may be another: the weights of every part, and the temperature."""
    parts = [digest[:8] for digest in digests]
    return ".".join(parts if temperature is None else [*parts, f"T{temperature:.4g}"])


def readable(files: Sequence[Path]) -> tuple[list[Clip], list[str]]:
    """The images of a series by InstanceNumber, whatever the order of the files; and why others cannot be read."""
    clips: list[Clip] = []
    unusable: list[str] = []
    for path in files:
        try:
            clips.append(read_ultrasound(path))
        except UnfitInput as why:
            unusable.append(str(why))
    return sorted(clips, key=place_in_series), sorted(unusable)


def place_in_series(clip: Clip) -> tuple[int, str]:
    return attributes.whole_or(clip.header, "InstanceNumber", 0), clip.images[0].sop_instance_uid


def name_of(clip: Clip) -> str:
    """How a sentence calls an image, so that a reader finds it in the viewer."""
    kind = "image" if len(clip.images) == 1 else "cine"
    number = attributes.text(clip.header, "InstanceNumber")
    return f"{kind} number {number}" if number else f"{kind} {clip.images[0].sop_instance_uid}"


def usable_regions(clip: Clip) -> list[Region]:
    """The regions of tissue large enough to look at. Raises UnfitInput, in words, when there is none."""
    if why := why_no_tissue(clip.header):
        raise UnfitInput(why)
    usable, reasons = [], []
    for region in clip.regions:
        try:
            window(clip.shape, region.box)
        except UnfitInput as why:
            reasons.append(str(why))
        else:
            usable.append(region)
    if not usable:
        raise UnfitInput("; ".join(dict.fromkeys(reasons)))
    return usable


def spread_evenly(count: int, most: int) -> list[int]:
    """The indices of at most `most` of `count` frames, evenly, first and last among them."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def window(shape: tuple[int, ...], region: tuple[int, int, int, int] | None) -> tuple[slice, slice]:
    """Rows and columns to look at. Raises UnfitInput when there is too little of them."""
    x0, y0, x1, y1 = region or (0, 0, shape[1] - 1, shape[0] - 1)
    rows, columns = slice(max(y0, 0), min(y1 + 1, shape[0])), slice(max(x0, 0), min(x1 + 1, shape[1]))
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    if min(high, wide) < SMALLEST_SIDE_PX:
        raise UnfitInput(
            f"the tissue is {high} x {wide} pixels, at least {SMALLEST_SIDE_PX} x {SMALLEST_SIDE_PX} are needed"
        )
    if max(high, wide) > MOST_ELONGATED * min(high, wide):
        raise UnfitInput(
            f"the tissue is a strip of {high} x {wide} pixels; one side may be {MOST_ELONGATED:g} times the other"
        )
    return rows, columns


def why_nothing(region: Region, grey: np.ndarray, coloured: np.ndarray) -> str | None:
    """Why a frame shows no tissue in the region, or None: what `tissue` returns, (rows, columns) twice."""
    if coloured.sum() > MOST_COLOUR * region.pixels:
        return HIDDEN
    return BLANK if np.ptp(grey[window(grey.shape, region.box)]) < LEAST_CONTRAST else None


def shown(grey: np.ndarray, region: tuple[int, int, int, int] | None) -> tuple[slice, slice]:
    """The window without the black margins round its tissue, unless too little would be left to look at."""
    rows, columns = window(grey.shape, region)
    down, across = without_margins(grey[rows, columns])
    inner = (
        slice(rows.start + down.start, rows.start + down.stop),
        slice(columns.start + across.start, columns.start + across.stop),
    )
    short, long = sorted(part.stop - part.start for part in inner)
    return inner if short >= SMALLEST_SIDE_PX and long <= MOST_ELONGATED * short else (rows, columns)


def strongest_piece(probability: np.ndarray, above: float) -> np.ndarray:
    """(rows, columns) -> bool: of the 4-connected pieces above the threshold the one with the largest sum of
    probability, large and certain; holes filled, so that a contour can go round it. Empty when nothing is above."""
    pieces, count = ndimage.label(probability > above)
    if count == 0:
        return pieces > 0
    weight = np.bincount(pieces.ravel(), probability.ravel())[1:]
    return ndimage.binary_fill_holes(pieces == weight.argmax() + 1)


def probabilities(classes: np.ndarray) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(PROBABILITIES[name], round(100 * float(share), 1), codes.PERCENT)
        for name, share in zip(CLASSES, classes, strict=True)
    )


def orientation(mask: np.ndarray, long_axis: Axis, spacing_mm: tuple[float, float]) -> Code:
    """CID 6152: parallel when wider than high and the long axis lies within 45 degrees of the horizontal."""
    high_mm, wide_mm = mask.shape[0] * spacing_mm[0], mask.shape[1] * spacing_mm[1]
    (x0, y0), (x1, y1) = long_axis.start_xy, long_axis.end_xy
    flat = abs(y1 - y0) * spacing_mm[0] <= abs(x1 - x0) * spacing_mm[1]
    return codes.PARALLEL if flat and wide_mm > high_mm else codes.NOT_PARALLEL


def side(header: Dataset) -> Code | None:
    """Left or right as the header says. Never inferred from the picture."""
    return SIDES.get(attributes.text(header, "ImageLaterality") or attributes.text(header, "Laterality"))


def heaviness(sighting: Sighting) -> float:
    return sighting.area * sighting.certainty


def doubts(clip: Clip, views: Sequence[View]) -> list[str]:
    """What a reader of the result should know about this image or cine, in words."""
    said = []
    bare = [view for view in views if view.region.spacing_mm is None]
    if len(bare) == len(views):
        why = "".join(f" ({problem})" for problem in calibration_problems(clip.header))
        said.append(f"the image carries no calibration: sizes are in pixels, not in mm{why}")
    elif bare:
        said.append(f"{name_of(clip)}: a part of it carries no calibration: sizes there are in pixels, not in mm")
    for region in clip.regions:
        if not any(view.region is region for view in views):
            said.append(f"{name_of(clip)}: a region of tissue is too small to be looked at")
    for view in views:
        said += doubts_of_calibration(clip, view.region)
        for why, count in view.passed_over.items():
            if not view.looked_at:
                said.append(f"{name_of(clip)}: a region was not looked at: {why}")
            else:
                frames = view.looked_at + view.passed_over.total()
                said.append(f"{name_of(clip)}: {count} of {frames} frames were not looked at: {why}")
        said += strangeness(clip, view)
        if view.under_colour:
            said.append(f"{name_of(clip)}: a mark that lies mostly under burned-in colour was not reported")
    if len(clip.images) > MOST_FRAMES:
        said.append(f"{name_of(clip)}: of {len(clip.images)} frames {MOST_FRAMES}, evenly spread, were looked at")
    part = attributes.text(clip.header, "BodyPartExamined")
    if part not in ("", "BREAST"):
        said.append(f"BodyPartExamined is {part}: the network has seen breasts only")
    return said


def strangeness(clip: Clip, view: View) -> list[str]:
    """In what the frames of a region that were looked at are not like what the network has learnt from, in words."""
    if not view.looked_at or not view.verdicts:
        return []
    said = [f"{name_of(clip)}: {FAN}"] if any(one.fan for one in view.verdicts) else []
    if (far := float(np.median([one.distance for one in view.verdicts]))) > 1:
        said.append(
            f"{name_of(clip)} looks unlike the breast images that the network has learnt from"
            f" ({far:.1f} times as far off as all but 1 % of such): another machine, setting or part of the body;"
            " do not rely on what is said of it"
        )
    return said


def doubts_of_calibration(clip: Clip, region: Region) -> list[str]:
    if region.spacing_mm is None:
        return []
    said = []
    _, y0, _, y1 = region.box
    high_mm = (y1 - y0 + 1) * region.spacing_mm[0]
    if not PLAUSIBLE_MM[0] <= high_mm <= PLAUSIBLE_MM[1]:
        said.append(f"{name_of(clip)}: by its calibration the picture is {high_mm:.3g} mm high; doubt the sizes")
    other = pixel_spacing_mm(clip.header)
    if other is not None and len(clip.regions) == 1 and not np.allclose(other, region.spacing_mm, rtol=0.02):
        said.append(
            f"{name_of(clip)}: PixelSpacing and the calibration of the ultrasound region disagree;"
            " sizes are by the region"
        )
    if region.upwards:
        said.append(
            f"{name_of(clip)}: the calibration counts depth upwards (PhysicalDeltaY is negative); if the picture"
            " stands on its head, the network has not seen such"
        )
    return said


def concerns(label: str, track: Track) -> list[str]:
    """What a reader should know about this very outline, in words."""
    key = key_sighting(track)
    said = []
    if key.hidden > SHARE_TO_TELL:
        said.append(f"{label}: {key.hidden:.0%} of it lies under burned-in colour; outline and class are uncertain")
    if key.cut:
        said.append(f"{label} runs into another region of the screen and is cut there: it may be larger")
    return said
