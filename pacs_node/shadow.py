"""A shadow route and a live one on the same series: what both found, what one found alone, and what differs.

A finding is noted in figures when its job ends (`places_of`), so that many series are compared without a single file.
Pure decisions over these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from dicom_sr.classes import likeliest
from dicom_sr.frames import frame
from dicom_sr.importance import size

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_sr.findings import Finding, Findings, ImageRef, Measurement

# Two findings on the same images are the same one if their middles lie nearer than half the larger diameter, as LUNA16
# counts hits (Setio, Med Image Anal 42:1), and than this where they are small: models outline them differently.
NEAR_MM = 5.0
NEAR_PX = 12.0  # of images without millimetres
NOTABLE_MM = 1.5  # a difference of sizes beyond the error of measuring, Lung-RADS v2022
WORDS = "shadow: seen by nobody but this page"  # what stands beside everything that a shadow says


# ---- what a job notes


def places_of(findings: Findings, header_of: Callable[[str], Dataset]) -> dict[str, Any]:
    """Where each finding lies, how large it is, and of which class. header_of: by SOP Instance UID.

    Raises what reading a header may raise.
    """
    return {
        "class": class_of(findings.measurements),
        "findings": [_place(each, findings.images, header_of) for each in findings.findings],
    }


def class_of(measurements: Sequence[Measurement]) -> str | None:
    """The likeliest class; None where there are not several to choose from."""
    found = likeliest(measurements)
    return None if found is None else found[0]


def _place(finding: Finding, images: Sequence[ImageRef], header_of: Callable[[str], Dataset]) -> dict[str, Any]:
    import numpy as np

    in_mm, extent = size(finding)
    key, box, lps_mm = images[finding.key_image], None, None
    if finding.extent != "none":
        z, row, column = (float(each) for each in np.argwhere(finding.mask).mean(axis=0) + finding.offset_zyx)
        lps_mm = _lps_mm(images[round(z)], row, column, header_of)
        _, rows, columns = finding.mask.shape
        _, top, left = finding.offset_zyx
        box = [left, top, left + columns - 1, top + rows - 1]
    return {
        "number": finding.number,
        "kind": finding.type.meaning,
        "image": key.sop_instance_uid,
        "frame": key.frame,
        "lps_mm": lps_mm,
        "box": box,
        "size": round(extent, 2),
        "in_mm": bool(in_mm),
        "class": class_of(finding.measurements),
    }


def _lps_mm(image: ImageRef, row: float, column: float, header_of: Callable[[str], Dataset]) -> list[float] | None:
    """The place of a pixel's middle in the patient, PS3.3 C.7.6.2.1.1; None of an image that lies nowhere."""
    one = frame(header_of(image.sop_instance_uid), image.frame)
    if not one.values("ImagePositionPatient"):
        return None
    position, cosines = one.numbers("ImagePositionPatient", 3), one.numbers("ImageOrientationPatient", 6)
    between_rows, between_columns = one.numbers("PixelSpacing", 2)
    along = zip(position, cosines[:3], cosines[3:], strict=True)
    return [round(p + x * between_columns * column + y * between_rows * row, 2) for p, x, y in along]


# ---- two jobs about one series


@dataclass(frozen=True)
class Pair:
    """What a live route and a shadow say of one series. A job: its plain facts, with `places`."""

    series_uid: str
    live: Mapping[str, Any]
    shadow: Mapping[str, Any]
    both: tuple[tuple[int, int], ...] = ()  # indices into the findings of either

    @property
    def ran(self) -> bool:
        return all(job["state"] == "done" and job["places"] is not None for job in (self.live, self.shadow))

    @property
    def alone(self) -> tuple[int, int]:
        """How many findings the live route has alone, and how many the shadow."""
        return tuple(len(found(job)) - len(self.both) for job in (self.live, self.shadow))  # type: ignore[return-value]

    @property
    def sizes_mm(self) -> list[tuple[float, float]]:
        """Of each finding of both, as the live route and as the shadow measured it."""
        pairs = [(found(self.live)[i], found(self.shadow)[j]) for i, j in self.both]
        return [(a["size"], b["size"]) for a, b in pairs if a["in_mm"] and b["in_mm"]]

    @property
    def classes(self) -> list[tuple[str, str]]:
        """Of the series, else of each finding of both: the class in the words of either."""
        if not self.ran:
            return []
        of_series = self.live["places"]["class"], self.shadow["places"]["class"]
        if all(of_series):
            return [of_series]
        pairs = [(found(self.live)[i]["class"], found(self.shadow)[j]["class"]) for i, j in self.both]
        return [(a, b) for a, b in pairs if a and b]

    def differs(self) -> str | None:
        """In what, in words; None: they say the same."""
        if not self.ran:
            jobs = {"live": self.live, "shadow": self.shadow}
            ended = [f"{who} {job['state']}: {job['reason']}" for who, job in jobs.items() if job["state"] != "done"]
            same = self.live["state"] == self.shadow["state"]
            return None if same else "; ".join(ended) or "where it found what is not known"
        live, shadow = self.alone
        said = [f"{n} found by the {who} alone" for n, who in ((live, "live route"), (shadow, "shadow")) if n]
        sizes = [f"{a:g} mm, by the shadow {b:g} mm" for a, b in self.sizes_mm if abs(b - a) > NOTABLE_MM]
        classes = [f"{a}, by the shadow {b}" for a, b in self.classes if a != b]
        return "; ".join((*said, *sizes, *classes)) or None


def found(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return job["places"]["findings"] if job["places"] else []


def paired(series_uid: str, live: Mapping[str, Any], shadow: Mapping[str, Any]) -> Pair:
    """With the findings that are the same, each at most once."""
    some, others = found(live), found(shadow)
    if not some or not others:
        return Pair(series_uid, live, shadow)
    import numpy as np

    from models.pairing import pairing  # scipy, for who compares

    apart = np.array([[_apart(a, b) for b in others] for a in some])
    return Pair(series_uid, live, shadow, tuple(pairing(apart[..., 0], apart[..., 1])))


def _apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """How far two findings lie apart, and how far they may: in mm, or in pixels of one image."""
    if a["lps_mm"] and b["lps_mm"]:
        apart = sqrt(sum((x - y) ** 2 for x, y in zip(a["lps_mm"], b["lps_mm"], strict=True)))
        return apart, max([NEAR_MM, *(each["size"] / 2 for each in (a, b) if each["in_mm"])])
    if a["image"] != b["image"]:
        return float("inf"), 1.0
    if a["box"] and b["box"]:
        (x, y, wide), (u, v, high) = _middle(a["box"]), _middle(b["box"])
        return sqrt((x - u) ** 2 + (y - v) ** 2), max(NEAR_PX, wide / 2, high / 2)
    return (0.0 if a["frame"] == b["frame"] else float("inf")), 1.0


def _middle(box: Sequence[float]) -> tuple[float, float, float]:
    """(column, row, longer side)"""
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) + 1


# ---- many series


def agreement(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Of the series that both ran on, in figures."""
    ran = [each for each in pairs if each.ran]
    alone = [each.alone for each in ran]
    return {
        "series": len(ran),
        "not_both": len(pairs) - len(ran),
        "found": {
            "both": sum(len(each.both) for each in ran),
            "live_alone": sum(live for live, _ in alone),
            "shadow_alone": sum(shadow for _, shadow in alone),
        },
        "sizes": differences([shadow - live for each in ran for live, shadow in each.sizes_mm]),
        "classes": kappa([each for pair in ran for each in pair.classes]),
        "seconds": {
            "live": _took([each.live for each in ran]),
            "shadow": _took([each.shadow for each in ran]),
        },
    }


def differences(of_mm: Sequence[float]) -> dict[str, Any]:
    """Shadow minus live: the mean and the limits of agreement, 1.96 standard deviations about it (Bland and Altman,
    Lancet 327:307, 1986)."""
    if not of_mm:
        return {"number": 0, "mean_mm": None, "low_mm": None, "high_mm": None}
    mean, spread = fmean(of_mm), 1.96 * stdev(of_mm) if len(of_mm) > 1 else None
    limits = (None, None) if spread is None else (round(mean - spread, 2), round(mean + spread, 2))
    return {"number": len(of_mm), "mean_mm": round(mean, 2), "low_mm": limits[0], "high_mm": limits[1]}


def kappa(said: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Agreement of classes beyond chance (Cohen, Educ Psychol Meas 20:37, 1960). None: of one class alone, or none."""
    number, agree = len(said), sum(a == b for a, b in said)
    live, shadow = Counter(a for a, _ in said), Counter(b for _, b in said)
    by_chance = sum(live[each] * shadow[each] for each in live) / number**2 if number else 1.0
    known = number and by_chance < 1
    return {
        "number": number,
        "agree": agree,
        "kappa": round((agree / number - by_chance) / (1 - by_chance), 3) if known else None,
        "table": [{"live": a, "shadow": b, "number": count} for (a, b), count in sorted(Counter(said).items())],
    }


def _took(jobs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Seconds of inference."""
    seconds = [float(each["seconds"]) for each in jobs if each["seconds"] is not None]
    if not seconds:
        return {"mean": None, "median": None}
    return {"mean": round(fmean(seconds), 2), "median": round(median(seconds), 2)}
