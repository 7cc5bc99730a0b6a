"""Free-response ROC of a detector: how many lesions it finds at a given number of false positives per scan.

Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules in
computed tomography images: the LUNA16 challenge", Med. Image Anal. 42 (2017) 1-13: a mark nearer to a lesion's centre
than its radius hits it; the lesion counts with the highest score of its marks, and further marks on it count neither
way; a mark that hits nothing is a false positive. CPM is the mean sensitivity at RATES (Niemeijer et al., IEEE Trans.
Med. Imaging 30 (2011) 215-223). LUNA16's own script interpolates between thresholds; here a sensitivity counts only
where some threshold attains it, so figures are never higher than that script's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.training.evaluation.metrics import Interval, draws

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)  # false positives per scan: LUNA16


class Sphere(Protocol):
    """A lesion as far as it is hit or missed: centre and diameter on one grid of 1 mm voxels."""

    @property
    def centre_zyx(self) -> tuple[float, float, float]: ...

    @property
    def diameter_mm(self) -> float: ...


class Scored(Protocol):
    """What a detector points at, on the grid of the truth; the higher the score, the surer."""

    @property
    def centre_zyx(self) -> tuple[float, float, float]: ...

    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Mark:
    """The plainest Scored: a place in voxels of 1 mm and a score."""

    centre_zyx: tuple[float, float, float]
    score: float


@dataclass(frozen=True, eq=False)
class Froc:
    """The curve and its figures, each with the 95 % interval over the drawn scans.

    thresholds        (n,) distinct scores, descending
    false_positives   (n,) per scan, of the marks that reach the threshold
    sensitivity       (n,) share of the lesions they hit
    at                false positives per scan (RATES) -> sensitivity
    cpm               mean of `at`
    """

    scans: int
    lesions: int
    thresholds: np.ndarray
    false_positives: np.ndarray
    sensitivity: np.ndarray
    at: dict[float, Interval]
    cpm: Interval

    def figures(self) -> dict[str, Interval]:
        """By name, as the cards and tables show them."""
        return {f"sensitivity at {rate:g} FP/scan": one for rate, one in self.at.items()} | {"CPM": self.cpm}


@dataclass(frozen=True, eq=False)
class Events:
    """What changes the curve, by descending score: a lesion found (its best mark), or a false positive.

    score, scan, is_hit   (n,) of each event
    lesions               (scans,) in each scan, found or not
    shares                (scans,) of a whole scan
    lesion                (n,) of a hit: which of all lesions, scan by scan; None where lesions are not told apart
    """

    score: np.ndarray
    scan: np.ndarray
    is_hit: np.ndarray
    lesions: np.ndarray
    shares: np.ndarray
    lesion: np.ndarray | None = None

    def curve(
        self, times: np.ndarray, lesion_times: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(thresholds, false positives per scan, sensitivity) when scan i counts times[i] times, its lesions as often,
        or as lesion_times says: (lesions,), scan by scan."""
        last = np.flatnonzero(np.append(self.score[1:] != self.score[:-1], True))[: self.score.size]  # of equal scores
        counted, lesions = times[self.scan], int(times @ self.lesions)
        if lesion_times is not None and self.lesion is not None:
            counted = np.where(self.is_hit, lesion_times[self.lesion], counted)
            lesions = int(lesion_times.sum())
        hits = np.cumsum(counted * self.is_hit)[last]
        false = np.cumsum(counted * ~self.is_hit)[last]
        sensitivity = hits / lesions if lesions else np.full(len(last), np.nan)
        return self.score[last], false / (times @ self.shares), sensitivity

    def at(self, rates: Sequence[float], times: np.ndarray, lesion_times: np.ndarray | None = None) -> np.ndarray:
        """(rates,) sensitivity at the lowest threshold with no more false positives per scan; nan without lesions."""
        _, false, sensitivity = self.curve(times, lesion_times)
        nothing = np.where(times @ self.lesions if lesion_times is None else lesion_times.sum(), 0.0, np.nan)
        return np.append(nothing, sensitivity)[np.searchsorted(false, rates, side="right")]


def froc(
    found: Sequence[Sequence[Scored]],
    truth: Sequence[Sequence[Sphere]],
    *,
    irrelevant: Sequence[Sequence[Sphere]] | None = None,
    shares: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
    lesion_groups: Sequence[Sequence[str]] | None = None,
    rounds: int = 1000,
    seed: int = 2024,
) -> Froc:
    """Marks and lesions of each scan -> the curve, and its figures with bootstraps over scans.

    irrelevant   findings of each scan that are neither lesions nor mistakes (LUNA16: those of too few readers); marks
                 that hit one of these and no lesion count neither way
    shares       how much of a whole scan each one shows, where some show a part: false positives are counted per whole
                 scan, so that half a chest does not halve them; each is whole when not given
    groups       what is drawn together in a bootstrap, for example the patient of each scan; each scan by itself when
                 not given
    lesion_groups  of each lesion of each scan, where a lesion is not the scan's own but was pasted: whose it is. Both
                 are drawn then, each by itself, and a lesion counts as often as its scan times as often as its owner
                 (the pigeonhole bootstrap: Owen, Ann. Appl. Stat. 1 (2007) 386-411)

    Raises ValueError when the sequences differ in length, when there is no scan or no lesion, or a score is no number.
    """
    irrelevant = irrelevant if irrelevant is not None else [()] * len(truth)
    shares = shares if shares is not None else [1.0] * len(truth)
    owners = list(groups) if groups is not None else [str(i) for i in range(len(truth))]
    if not len(found) == len(truth) == len(irrelevant) == len(shares) == len(owners):
        raise ValueError(f"marks of {len(found)} scans, but the truth of {len(truth)}; give one entry to each scan")
    if lesion_groups is not None and [*map(len, lesion_groups)] != [*map(len, truth)]:
        raise ValueError("the owners of the pasted lesions are not as many as the lesions; name one for each lesion")
    if not all(0 < share <= 1 for share in shares):
        raise ValueError("a scan's share of a whole one is above 0 and at most 1")
    if not any(len(lesions) for lesions in truth):
        raise ValueError("no scan has a lesion: there is no sensitivity to measure")
    events = events_of(found, truth, irrelevant, shares)

    def figures(times: np.ndarray, lesion_times: np.ndarray | None = None) -> np.ndarray:
        at = events.at(RATES, times, lesion_times)
        return np.append(at, at.mean())

    once = np.ones(len(truth), int)
    drawn_scans = (np.bincount(rows, minlength=len(truth)) for rows in draws(owners, rounds, seed))
    if lesion_groups is None:
        drawn = np.array([figures(times) for times in drawn_scans])
    else:
        pasted = [owner for each in lesion_groups for owner in each]
        drawn_lesions = (np.bincount(rows, minlength=len(pasted)) for rows in draws(pasted, rounds, seed + 1))
        pairs = zip(drawn_scans, drawn_lesions, strict=True)
        drawn = np.array([figures(times, np.repeat(times, events.lesions) * each) for times, each in pairs])
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    intervals = [Interval(*map(float, one)) for one in zip(figures(once), low, high, strict=True)]
    thresholds, false, sensitivity = events.curve(once)
    return Froc(
        scans=len(truth),
        lesions=int(events.lesions.sum()),
        thresholds=thresholds,
        false_positives=false,
        sensitivity=sensitivity,
        at=dict(zip(RATES, intervals, strict=False)),
        cpm=intervals[-1],
    )


def events_of(
    found: Sequence[Sequence[Scored]],
    truth: Sequence[Sequence[Sphere]],
    irrelevant: Sequence[Sequence[Sphere]],
    shares: Sequence[float],
) -> Events:
    score, scan, is_hit, lesion = [], [], [], []
    before = 0  # lesions of earlier scans
    for index, (marks, lesions, neither) in enumerate(zip(found, truth, irrelevant, strict=True)):
        scores = np.array([mark.score for mark in marks], float)
        if not np.isfinite(scores).all():
            raise ValueError(f"scan {index}: a mark's score is no finite number")
        hits = hitting(marks, lesions)
        best = [float(scores[on].max()) for on in hits.T if on.any()]
        false = scores[~hits.any(axis=1) & ~hitting(marks, neither).any(axis=1)]
        score += [*best, *false]
        is_hit += [True] * len(best) + [False] * len(false)
        lesion += [*(before + np.flatnonzero(hits.any(axis=0))), *[0] * len(false)]
        before += len(lesions)
        scan += [index] * (len(best) + len(false))
    order = np.argsort(-np.array(score, float), kind="stable")
    return Events(
        np.array(score, float)[order],
        np.array(scan, int)[order],
        np.array(is_hit, bool)[order],
        np.array([len(lesions) for lesions in truth]),
        np.array(shares, float),
        np.array(lesion, int)[order],
    )


def hitting(marks: Sequence[Scored], spheres: Sequence[Sphere]) -> np.ndarray:
    """bool (marks, spheres): nearer to the centre than the radius"""
    points = np.array([mark.centre_zyx for mark in marks], float).reshape(-1, 1, 3)
    centres = np.array([sphere.centre_zyx for sphere in spheres], float).reshape(1, -1, 3)
    radii = np.array([sphere.diameter_mm for sphere in spheres], float) / 2
    return np.linalg.norm(points - centres, axis=-1) < radii
