"""Recover Hounsfield units of the LIDC crops: each crop was stretched to 0..255 by its own minimum and maximum.

    python -m models.training.lung_nodule.data.calibrate --slices lidc_slices_128.zip --volumes lidc_voi3d.zip

The nodule volumes hold HU of the same patients on the same pixel grid, so a crop that contains one of them is matched
exactly (correlation > 0.995; the line through the pixel pairs gives the HU of 0 and 255). For the others the range is
the one under which the crop's histogram is most likely, given the HU histogram of all matched crops. The result,
`hu_range.csv`, has one line per crop: its name, a checksum of its pixels, HU of 0, HU of 255, and how it was found.
`hu_population.json` keeps the histogram, for crops of other sets (hounsfield.py).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import zipfile
from collections import defaultdict
from pathlib import Path

import nibabel
import numpy as np
from rich.progress import track
from scipy import fft

from models.training.layouts import UnknownLayout, open_root
from models.training.lung_nodule.data.crops import index_of, read_crops
from models.training.lung_nodule.data.hounsfield import HU_POPULATION, HU_RANGE, Population, checksum, key

MATCHED = 0.995  # correlation of crop and volume slice; 8-bit rounding alone leaves more than 0.999
SIDE = 192  # >= 128 + the largest volume side: no wrap-around where the volume slice fits


def volume_slices(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """HU as (z, row, column); the files store (x, y, z)."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(archive.read(name)))
    return np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0)


def match(crop: np.ndarray, templates: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Best correlation of (128, 128) with any of (z, h, w), and the HU of grey values 0 and 255 it implies."""
    _, h, w = templates.shape
    rows, columns = crop.shape[0] - h + 1, crop.shape[1] - w + 1
    image = crop.astype(np.float32)
    flat = templates - templates.mean(axis=(1, 2), keepdims=True)
    energy = (flat**2).sum(axis=(1, 2))
    spectrum = fft.rfft2(image, (SIDE, SIDE))
    dot = fft.irfft2(spectrum * np.conj(fft.rfft2(flat, (SIDE, SIDE))), (SIDE, SIDE))[:, :rows, :columns]
    total = sliding_sum(image, h, w)
    spread = sliding_sum(image**2, h, w) - total**2 / (h * w)
    correlation = dot / np.sqrt(np.maximum(spread, 1.0) * np.maximum(energy, 1.0)[:, None, None])
    k, row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
    grey = image[row : row + h, column : column + w].ravel()
    hu = templates[k].ravel()
    inside = (grey > 0) & (grey < 255)
    if inside.sum() < 50:
        return 0.0, (0.0, 0.0)
    slope, offset = np.polyfit(grey[inside], hu[inside], 1)
    return float(correlation[k, row, column]), (float(offset), float(offset + 255 * slope))


def sliding_sum(image: np.ndarray, h: int, w: int) -> np.ndarray:
    table = np.pad(image.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.training.lung_nodule.data.calibrate")
    parser.add_argument("--slices", type=Path, required=True)
    parser.add_argument("--volumes", type=Path, required=True)
    given = parser.parse_args()

    root = open_root(given.slices)
    rows = index_of(root)
    if rows is None:
        raise UnknownLayout(f"{given.slices.name} has no index.csv of crops")
    crops = read_crops(root, rows, calibrated=False)
    volumes: dict[str, list[np.ndarray]] = defaultdict(list)
    with zipfile.ZipFile(given.volumes) as archive:
        for name in archive.namelist():
            if name.startswith("image/") and name.endswith(".nii.gz"):
                volumes[name.split("/")[1][:14]].append(volume_slices(archive, name))  # "LIDC-IDRI-0001"

    ranges, matched = np.zeros((len(crops.images), 2)), np.zeros(len(crops.images), dtype=bool)
    for index in track(range(len(crops.images)), "matching"):
        for volume in volumes.get(crops.patients[index], []):
            if volume.shape[1] > 128 or volume.shape[2] > 128:
                continue
            score, found = match(crops.images[index], volume)
            if score > MATCHED:
                ranges[index], matched[index] = found, True
                break
    population = Population.of(crops.images[matched], ranges[matched])
    known = np.flatnonzero(matched)[:: max(1, int(matched.sum()) // 200)]
    error = np.array([np.subtract(population.fit(crops.images[i]), ranges[i]) for i in known])
    at_water = np.abs(error[:, 0] + (error[:, 1] - error[:, 0]) * (1024 / (1024 + 1000)))
    print(
        f"matched {matched.sum()} of {len(matched)}; the fit errs by {np.median(np.abs(error[:, 0])):.0f}"
        f" HU at 0 and {np.median(at_water):.0f} HU near water (90 %: {np.quantile(at_water, 0.9):.0f} HU)"
    )
    for unmatched in track(np.flatnonzero(~matched), "fitting"):
        ranges[unmatched] = population.fit(crops.images[unmatched])
    names = [key(row["patient"], row["nodule"], row["file"]) for row in rows]
    store(names, crops.images, ranges, matched)


def store(names: list[str], images: np.ndarray, ranges: np.ndarray, matched: np.ndarray) -> None:
    """Write both files. ranges (n, 2); matched: bool (n,), which of them are exact."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["crop", "crc32", "hu_of_0", "hu_of_255", "found_by"])
    writer.writerows(
        [name, checksum(image), round(low), round(high), "match" if exact else "fit"]
        for name, image, (low, high), exact in zip(names, images, ranges, matched, strict=True)
    )
    HU_RANGE.write_text(text.getvalue())
    counts, lows = Population.counted(images[matched], ranges[matched])
    HU_POPULATION.write_text(json.dumps({"counts": counts.tolist(), "lows": lows.round(1).tolist()}) + "\n")


if __name__ == "__main__":
    main()
