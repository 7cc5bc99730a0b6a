"""monai-bundle: a CT or MR volume in, what a published MONAI bundle marks on it out.

The bundle reads a NIfTI file, as it did when it was trained; its answer comes back to the grid of the images by the
inverse of its own transforms, and is used only if it does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from dicom_sr.findings import Algorithm, Findings
from models.label_map import findings_of, marked_channels, marked_labels, not_found, sought_of
from models.monai_bundle.bundle import Bundle
from models.monai_bundle.card import VERSION, card
from models.monai_bundle.options import Options
from models.pipeline import Progress
from models.read import Volume, read_ct, read_volume
from models.runtime import Runtime
from models.scratch import scratch_folder

ANSWER = "the bundle's label map"
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes to the left and to the back, NIfTI's to the right and the front


class MonaiBundle:
    """Pipeline "monai-bundle". Research use only, not for diagnostic use."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        self.options = Options.read(options)
        runtime = Runtime.choose(device, threads=self.options.threads)
        self.bundle = Bundle.load(Path(self.options.bundle), self.options.configuration, runtime)
        version = "+".join(part for part in (VERSION, self.bundle.version, self.bundle.sha256[:8]) if part)
        self.card = replace(
            card(self.options),
            algorithm=Algorithm(f"MONAI bundle {self.bundle.name}"[:64], version),
            weights_sha256={self.bundle.name: self.bundle.sha256},
        )

    def warm(self) -> None:
        """Nothing: what a bundle does with a constant image is its maker's affair."""

    def run(self, files: Sequence[Path], progress: Progress) -> Findings:
        started = time.monotonic()
        progress(0.0, "reading the images")
        modality = self.options.modality
        volume = read_ct(files) if modality == "CT" else read_volume(files)
        progress(0.1, f"running the bundle {self.bundle.name}")
        with scratch_folder() as folder:
            file = folder / "image.nii"
            save_nifti(volume, file)
            answer = self.bundle.label_map(file)
        progress(0.9, "measuring what it marked")
        channels = answer.transpose(0, 3, 2, 1)  # (c, x, y, z) -> (c, z, y, x)
        labels = self.options.by_number
        if len(channels) == 1:
            marked = marked_labels(channels[0], labels, ANSWER)
        else:
            marked = marked_channels(channels, labels, ANSWER)
        found, remarks = findings_of(marked, volume, modality)
        sought, sought_site = sought_of([*labels.values()])
        progress(1.0, "done")
        return Findings(
            pipeline=self.card.name,
            geometry="volume",
            images=volume.images,
            findings=tuple(found),
            algorithm=self.card.algorithm,
            warnings=(
                *volume.remarks,
                *self.remarks(),
                *remarks,
                *not_found([*labels.values()], [finding.label for finding in found]),
            ),
            sought=sought,
            sought_site=sought_site,
            facts={
                "seconds": round(time.monotonic() - started, 1),
                "bundle": self.bundle.name,
                "slices": len(volume.images),
            },
        )

    def remarks(self) -> list[str]:
        if self.bundle.inverts:
            return []
        return [
            "the bundle does not return to the grid of the images; its masks were brought back there by nearest"
            " neighbour, edges may be off by one of its voxels"
        ]


def save_nifti(volume: Volume, file: Path) -> None:
    """The volume as a NIfTI file, (x, y, z), in the order of the stored pixels; no attribute of the patient in it."""
    affine = RAS @ volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.values.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)
