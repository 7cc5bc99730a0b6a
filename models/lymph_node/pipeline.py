"""lymph-node: a CT of chest or abdomen in, what may be lymph nodes out. Experimental.

Round places of a node's density are proposed, recurrent attention scores each on nine slices, of two that are near the
more certain stays, and what is left is outlined and measured on the source grid. HU become network input by the very
function that training uses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.sr.coding import Code

from dicom_sr import attributes, codes
from dicom_sr.findings import Finding, Findings
from dicom_sr.importance import renumber
from models import weights
from models.attention_picture import explanation
from models.candidate_server import CandidateServer
from models.grid import in_common
from models.lymph_node.card import CARD, VERSION
from models.lymph_node.options import Options
from models.lymph_node.outline import outline
from models.lymph_node.propose import Proposal, propose
from models.lymph_node.regions import Region, find_regions
from models.measure import measure_nodule
from models.patches import SOFT_TISSUE, patch
from models.pipeline import Progress, UnfitInput
from models.read import Volume, read_ct
from models.runtime import Runtime

CHECKPOINT = "recurrent_attention_phantoms_w16"
COARSE_MM = 2.5  # slices further apart show less than the network was made for
THICKEST_MM = 5.0
SITES: dict[Region, Code] = {"mediastinum": codes.MEDIASTINUM, "abdomen": codes.ABDOMEN}
EXPERIMENTAL = "experimental: this algorithm was made on phantoms, and never tried on a real lymph node"


class LymphNode:
    """Pipeline "lymph-node". Research use only, not for diagnostic use."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = Options.read(options)
        runtime = Runtime.choose(device, threads=self.options.threads)
        path = Path(self.options.checkpoint) if self.options.checkpoint else weights.packed("lymph_node", CHECKPOINT)
        self.network = CandidateServer(path, SOFT_TISSUE, runtime)
        loaded = self.network.loaded
        self.certainty = self.options.certainty
        if self.certainty is None:
            self.certainty = float(loaded.about.get("operating_point", {}).get("certainty", 0.5))
        self.card = replace(
            CARD,
            algorithm=replace(CARD.algorithm, version=f"{VERSION}+{loaded.sha256[:8]}"),
            weights_sha256={loaded.name: loaded.sha256},
        )

    def warm(self) -> None:
        self.network.warm()

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        started = time.monotonic()
        progress(0.0, "reading the images")
        volume = read_ct(files)
        refuse_unfit(volume)
        progress(0.1, "looking for mediastinum and abdomen")
        searched = find_regions(volume)
        progress(0.3, "looking for candidates")
        proposals = propose(searched, self.options.candidates)
        progress(0.6, f"looking at {len(proposals)} candidates")
        places = [one.centre_zyx(volume.spacing_mm) for one in proposals]
        patches = [patch(volume.hu, place, volume.spacing_mm) for place in places]
        said = self.network(np.stack(patches)) if patches else None
        scores = said.probability.tolist() if said is not None else []
        progress(0.8, "outlining what may be nodes")
        kept = self.apart(proposals, scores)
        findings: list[Finding] = []
        seen: dict[tuple[int, int, int], int] = {}  # where a finding lies -> which candidate it was
        for at in kept:
            found = self.finding(volume, proposals[at], float(scores[at]), len(findings) + 1)
            if found is not None and not any(is_same(found, other) for other in findings):
                findings.append(found)
                seen[found.offset_zyx] = at
        warnings = warnings_of(volume)
        if len(findings) > self.options.at_most:
            warnings.append(
                f"{len(findings)} were found; only {self.options.at_most} are reported, the most certain. The image may"
                " be unusual."
            )
            findings = findings[: self.options.at_most]
        regions = searched.regions
        warnings.append(f"looked at: {' and '.join(regions) or 'nothing'}")
        progress(1.0, "done")
        result = renumber(
            Findings(
                pipeline=self.card.name,
                geometry="volume",
                images=volume.images,
                findings=tuple(findings),
                algorithm=self.card.algorithm,
                warnings=(*volume.remarks, EXPERIMENTAL, *warnings),
                sought=codes.LYMPH_NODE,
                sought_site=SITES[searched.largest] if len(regions) == 1 else None,
                facts={
                    "seconds": round(time.monotonic() - started, 1),
                    "device": str(self.network.device),
                    "slices": len(volume.images),
                    "candidates": len(proposals),
                    "regions": " and ".join(regions) or "none",
                },
            )
        )
        if not self.options.attention or said is None:
            return result
        return replace(
            result,
            pictures=tuple(
                explanation(one, patches[seen[one.offset_zyx]], said, seen[one.offset_zyx]) for one in result.findings
            ),
        )

    def apart(self, proposals: Sequence[Proposal], scores: Sequence[float]) -> list[int]:
        """Indices of those that are certain enough, the most certain first, and none near a more certain one."""
        assert self.certainty is not None
        order = sorted(
            (i for i, score in enumerate(scores) if score >= self.certainty),
            key=lambda i: (-round(scores[i], 4), proposals[i].centre_mm),
        )
        kept: list[int] = []
        for i in order:
            here = np.array(proposals[i].centre_mm)
            if all(np.linalg.norm(here - proposals[k].centre_mm) >= self.options.apart_mm for k in kept):
                kept.append(i)
        return kept

    def finding(self, volume: Volume, proposal: Proposal, score: float, number: int) -> Finding | None:
        """What was outlined and measured; None when there is no outline, or its short axis is out of range."""
        outlined = outline(volume, proposal.centre_zyx(volume.spacing_mm), proposal.radius_mm)
        if outlined is None:
            return None
        mask, offset = outlined
        sizes = measure_nodule(mask, offset, volume)
        short_mm = next(one.value for one in sizes.measurements if one.name == codes.SHORT_AXIS)
        if not self.options.smallest_mm <= short_mm <= self.options.largest_mm:
            return None
        return Finding(
            number=number,
            label=f"Lymph node {number}",
            category=codes.ANATOMICAL_STRUCTURE,
            type=codes.LYMPH_NODE,
            site=SITES[proposal.region],  # no station: nothing here knows the anatomy that they are named by
            laterality=None,
            mask=mask,
            offset_zyx=offset,
            key_image=sizes.key_image,
            certainty=score,
            long_axis=sizes.long_axis,
            short_axis=sizes.short_axis,
            measurements=sizes.measurements,
        )


def is_same(one: Finding, other: Finding) -> bool:
    """Half of the smaller mask, or more, is the other's, too."""
    shared = in_common(one.mask, one.offset_zyx, other.mask, other.offset_zyx)
    return bool(2 * shared >= min(one.mask.sum(), other.mask.sum()))


def refuse_unfit(volume: Volume) -> None:
    """Raise UnfitInput in words when the network would be asked something it never learned."""
    if volume.spacing_mm[0] > THICKEST_MM + 0.1:
        raise UnfitInput(
            f"slices are {volume.spacing_mm[0]:.1f} mm apart; lymph nodes are looked for in slices of"
            f" {THICKEST_MM:g} mm or less"
        )
    if not all(0.2 <= mm <= 2.0 for mm in volume.spacing_mm[1:]):
        raise UnfitInput(
            f"pixels of {volume.spacing_mm[1]:.2f} x {volume.spacing_mm[2]:.2f} mm; 0.2 to 2 mm are expected"
        )


def warnings_of(volume: Volume) -> list[str]:
    out = []
    if volume.spacing_mm[0] > COARSE_MM:
        out.append(
            f"limited z-resolution: slices are {volume.spacing_mm[0]:.1f} mm apart, the network was made for"
            f" {COARSE_MM:g} mm or less"
        )
    if not any(attributes.text(header, "ContrastBolusAgent") for header in volume.headers):
        out.append(
            "no contrast agent is stated (ContrastBolusAgent): without one vessels look like lymph nodes, and are"
            " marked"
        )
    return out
