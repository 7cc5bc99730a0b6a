"""lung-nodule: a chest CT in, nodules out.

A detector of the route's choice marks what may be a nodule, the residual U-Net looks at each of these again and
outlines it, and what is left is measured on the source grid. HU becomes network input by the very functions that
training uses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.findings import Evaluation, Finding, Findings, Measurement
from dicom_sr.importance import renumber
from models.lung_nodule.airless import not_looked_at, sides
from models.lung_nodule.card import CARD, VERSION, card
from models.lung_nodule.categories import with_suggestions
from models.lung_nodule.detections import Candidate
from models.lung_nodule.detectors import DETECTORS
from models.lung_nodule.lungs import Lungs, distance_to_pleura, find_lungs
from models.lung_nodule.malignancy import Suspicion, pictures, with_suspicion
from models.lung_nodule.options import Options, RefinerName
from models.lung_nodule.plausible import doubts, refuse_no_hounsfield
from models.lung_nodule.refine import Mix, Refined, distinct, refine
from models.lung_nodule.sliding_unet import BATCH, ServedUNet
from models.lung_nodule.texture import RULE, THICK_MM, texture
from models.measure import axial, measure_nodule
from models.pipeline import Progress, UnfitInput
from models.read import Volume, read_ct
from models.runtime import Runtime

REFINERS: dict[RefinerName, str] = {  # learnt on crops with the finding in the middle, for the refinement
    "model-1": "residual_unet_vit_centred_w16",
    "model-2": "residual_unet_centred_w16",
}


class LungNodule:
    """Pipeline "lung-nodule". Research use only, not for diagnostic use."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = Options.read(options)
        self.runtime = Runtime.choose(device, threads=self.options.threads)
        self.detector = DETECTORS[self.options.detector](self.options, self.runtime)
        self.refiner: ServedUNet | None = None
        if self.options.refine:  # it sees some hundred crops of a scan
            shipped = REFINERS[self.options.refiner]
            self.refiner = ServedUNet.at(self.options.refine_checkpoint, shipped, self.runtime, compiled=False)
        asked = self.options.malignancy_checkpoint
        self.suspicion = Suspicion([Path(asked)] if asked else None, self.runtime) if self.options.malignancy else None
        used = [self.detector.loaded, *([self.refiner.loaded] if self.refiner else [])]
        used += self.suspicion.loaded if self.suspicion else []
        self.card = replace(
            card(self.options),
            algorithm=replace(CARD.algorithm, version="+".join([VERSION, *(one.sha256[:8] for one in used)])),
            weights_sha256={one.name: one.sha256 for one in used},
        )

    def warm(self) -> None:
        self.detector.warm()
        if self.refiner is not None:
            self.refiner(torch.zeros(BATCH, 1, self.refiner.side, self.refiner.side))
        if self.suspicion is not None:
            self.suspicion.warm()

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        started = time.monotonic()
        progress(0.0, "reading the images")
        volume = read_ct(files)
        refuse_unfit(volume)
        refuse_no_hounsfield(volume.hu)
        progress(0.05, "looking for the lungs")
        lungs = find_lungs(volume)
        marked = self.detector(volume, lungs, lambda share, what: progress(0.1 + 0.8 * share, what))
        progress(0.9, "looking again at each nodule")
        found, warnings = self.findings(volume, lungs, marked.candidates)
        rated = None
        if self.suspicion is not None and found:
            progress(0.97, "rating the suspicion of each nodule")
            rated = self.suspicion(volume, found)
            found = with_suspicion(found, rated)
            warnings.append(self.suspicion.words)
        chest = sides(volume, lungs)
        progress(1.0, "done")
        result = renumber(
            Findings(
                pipeline=self.card.name,
                geometry="volume",
                images=volume.images,
                findings=tuple(found),
                algorithm=self.card.algorithm,
                warnings=(*volume.remarks, *doubts(volume, lungs), *not_looked_at(chest), *marked.remarks, *warnings),
                sought=codes.NODULE,
                sought_site=codes.LUNG,
                facts={
                    "seconds": round(time.monotonic() - started, 1),
                    "detector": self.options.detector,
                    "slices": len(volume.images),
                    "lungs_ml": round(lungs.volume_ml),
                    "not_looked_at_ml": round(sum(side.airless_ml for side in chest)),
                    **marked.facts,
                },
            )
        )
        if rated is not None and self.options.attention:
            return replace(result, pictures=pictures(result, rated, found))
        return result

    # ------------------------------------------------------------------------------------------------ findings

    def findings(
        self, volume: Volume, lungs: Lungs, candidates: Sequence[Candidate]
    ) -> tuple[list[Finding], list[str]]:
        """Nodules, the most certain first (`renumbered` orders them), and warnings in words that name them."""
        fit = {id(one): self.detector.why_not(one, volume, lungs) is None for one in candidates}
        kept = sorted(candidates, key=lambda one: (not fit[id(one)], -round(one.certainty, 4), one.offset_zyx))
        warnings = []
        if sum(fit.values()) > self.options.at_most:
            warnings.append(
                f"{sum(fit.values())} candidates were found; only {self.options.at_most} are reported, the most certain"
                " and the largest. The image may be unusual (noise, disease of the whole lung)."
            )
        if volume.spacing_mm[0] > THICK_MM:
            warnings.append(
                f"slices are {volume.spacing_mm[0]:.1f} mm apart: small nodules may be missed and sizes are coarse;"
                " no nodule type is stated, and no category is suggested"
            )
        reported = cut(kept, [fit[id(one)] for one in kept], self.options.at_most)
        if self.refiner is not None:
            refined = self.refined(self.refiner, reported, volume, lungs)
            reported = [one.candidate for one in refined]
            warnings += outlines_kept(refined)
        else:
            reported = [one.candidate for one in distinct([Refined(one, None) for one in reported if fit[id(one)]])]
        found = [finding(number, candidate, volume, lungs) for number, candidate in enumerate(reported, start=1)]
        found, remarks = with_suggestions(self.options.purpose, found, volume.headers[0])
        return found, warnings + remarks

    def mix(self) -> Mix | None:
        """The detector's; a threshold that the route names counts there too."""
        mix = self.detector.mix
        if mix is None or "threshold" not in self.options.model_fields_set:
            return mix
        return replace(mix, threshold=self.options.threshold)

    def refined(
        self, refiner: ServedUNet, detections: Sequence[Candidate], volume: Volume, lungs: Lungs
    ) -> list[Refined]:
        """The detections with the mask of a refinement where that is fit, else with their own where that is; each
        nodule once, the most certain first."""
        looked = refine(
            volume,
            detections,
            refiner,
            side=refiner.side,
            threshold=self.options.threshold,
            flips=self.options.refine_flips,
            within_mm=self.detector.within_mm,
            mix=self.mix(),
        )
        sound = []
        for detection, one in zip(detections, looked, strict=True):
            why_not = one.why_not or self.detector.why_not(one.candidate, volume, lungs)
            if why_not is None:
                sound.append(one)
            elif self.detector.why_not(detection, volume, lungs) is None:
                sound.append(Refined(detection, why_not))
        return distinct(sound)


def cut(candidates: Sequence[Candidate], fit: Sequence[bool], at_most: int) -> list[Candidate]:
    """So many of the candidates, in their order: the first and, in one place of ten, the largest fit of the others:
    what is large matters even if it is uncertain."""
    for_size = -(-at_most // 10)
    last = at_most - for_size if len(candidates) > at_most else len(candidates)
    others = [place for place in range(last, len(candidates)) if fit[place]]
    largest = sorted(others, key=lambda place: -int(candidates[place].mask.sum()))[:for_size]
    free = [place for place in range(last, len(candidates)) if place not in largest]
    kept = {*range(last), *largest, *free[: at_most - last - len(largest)]}
    return [candidate for place, candidate in enumerate(candidates) if place in kept]


def outlines_kept(refined: Sequence[Refined]) -> list[str]:
    """Which findings have the outline of the first look, and why, in words."""
    numbers: dict[str, list[str]] = {}
    for number, one in enumerate(refined, start=1):
        if one.why_not is not None:
            numbers.setdefault(one.why_not, []).append(f"Nodule {number}")
    return [
        f"{', '.join(which)}: outlined as detected, for a closer look gave no sound outline ({why_not})"
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


def laterality(candidate: Candidate, volume: Volume, lungs: Lungs) -> Code | None:
    """Right or left from the patient's x, at least 2 cm beside the middle of the lungs; else None."""
    if lungs.middle_x_mm is None:
        return None
    middle = np.array(candidate.offset_zyx) + np.array(np.nonzero(candidate.mask)).mean(axis=1)
    x_mm = volume.position_lps_mm(middle.tolist())[0] - lungs.middle_x_mm
    if abs(x_mm) < 20.0:
        return None
    return codes.LEFT if x_mm > 0 else codes.RIGHT  # LPS: x grows to the patient's left, PS3.3 C.7.6.2.1.1
