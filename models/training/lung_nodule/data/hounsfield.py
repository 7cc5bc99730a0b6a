"""Hounsfield units of crops that were stretched to 0..255 by their own minimum and maximum.

What `calibrate.py` found is stored in two files: `hu_range.csv`, the HU of grey 0 and 255 of every crop it has seen,
and `hu_population.json`, how often each HU occurs in such crops, by which any other crop's range is estimated.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
HU_RANGE = HERE / "hu_range.csv"
HU_POPULATION = HERE / "hu_population.json"


class Population:
    """How often each HU occurs in matched crops; fits the range of an unmatched one by maximum likelihood."""

    EDGES = np.arange(-3200, 3401, 10)
    HIGHS = np.arange(100.0, 3100.0, 20.0)  # HU of 255 that are tried

    def __init__(self, counts: np.ndarray, lows: np.ndarray) -> None:
        """counts: pixels of each 10 HU of EDGES, none of them 0; lows: HU of grey 0 that are tried."""
        counts = np.convolve(counts, np.ones(3) / 3, "same")
        self.log_density = np.log(counts / counts.sum())
        self.lows = lows

    @staticmethod
    def counted(images: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(counts, lows) of crops (n, h, w) whose ranges (n, 2) are known."""
        counts = np.ones(len(Population.EDGES) - 1, dtype=np.int64)
        for image, (low, high) in zip(images, ranges, strict=True):
            counts += np.histogram(low + image.ravel() * ((high - low) / 255), Population.EDGES)[0]
        lows = np.quantile(ranges[:, 0], np.linspace(0, 1, 41))
        return counts, np.unique(np.concatenate([lows, [-1024.0, -1000.0]]))

    @classmethod
    def of(cls, images: np.ndarray, ranges: np.ndarray) -> Population:
        return cls(*cls.counted(images, ranges))

    @classmethod
    def load(cls) -> Population:
        """The population of the crops that `calibrate.py` matched."""
        about = json.loads(HU_POPULATION.read_text("utf-8"))
        return cls(np.array(about["counts"]), np.array(about["lows"], dtype=float))

    @cached_property
    def _tried(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lows and highs (m) and the log density of each grey value under them (m, 256)."""
        low, high = (side.ravel() for side in np.meshgrid(self.lows, self.HIGHS, indexing="ij"))
        hu = low[:, None] + ((high - low) / 255)[:, None] * np.arange(256)
        place = np.clip(((hu - self.EDGES[0]) / 10).astype(int), 0, len(self.log_density) - 1)
        return low, high, self.log_density[place]

    def fit(self, image: np.ndarray) -> tuple[float, float]:
        """HU of grey 0 and 255 of a uint8 crop."""
        grey = np.bincount(image.ravel(), minlength=256)
        grey[[0, 255]] = 0  # padding and the single brightest pixel say nothing about the scale between them
        low, high, density = self._tried
        likelihood = density @ grey + grey.sum() * np.log((high - low) / 255)
        best = int(likelihood.argmax())
        return float(low[best]), float(high[best])


def key(patient: str, nodule: str, file: str) -> str:
    """How hu_range.csv names a crop."""
    return f"{patient}/{nodule}/{file.removesuffix('.png')}"


def checksum(image: np.ndarray) -> str:
    """CRC-32 of the pixels: a crop of a known name but other pixels is another crop."""
    return f"{zlib.crc32(np.ascontiguousarray(image).tobytes()):08x}"


def ranges_of(images: np.ndarray, keys: Sequence[str]) -> np.ndarray:
    """float32 (n, 2), HU of grey 0 and 255 of uint8 crops: as stored for a known crop, else the most likely."""
    with HU_RANGE.open() as file:
        known = {row["crop"]: row for row in csv.DictReader(file)}
    ranges = np.empty((len(images), 2), np.float32)
    population: Population | None = None
    for index, (image, name) in enumerate(zip(images, keys, strict=True)):
        row = known.get(name)
        if row is not None and row["crc32"] == checksum(image):
            ranges[index] = float(row["hu_of_0"]), float(row["hu_of_255"])
        else:
            population = population or Population.load()
            ranges[index] = population.fit(image)
    return ranges
