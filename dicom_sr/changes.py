"""What became of each lesion since an earlier study of the patient: arithmetic, statements and words. No pixels.

When a change is more than measurement error, and what it is called:

    volume +25 % or more, -20 % or less (1/1.25)    "significant" by volumetry, BTS guideline 2015 (Callister, Thorax
                                                    70:ii1); if slices of either study are thick, only together with a
                                                    mean diameter changed by more than 1.5 mm: volumes are uncertain
                                                    there by the partial volume of the end slices
    mean diameter more than 1.5 mm up, 12 months    growth by Lung-RADS v2022, whatever the volume says

A volume doubling time (Schwartz, Cancer 14:1272, 1961) is given only for growth that is more than measurement error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log

from dicom_sr import codes
from dicom_sr.findings import ComparedWith, Evaluation, Finding, Findings, Measurement
from dicom_sr.importance import renumber
from dicom_sr.rounding import rounded

SIGNIFICANT_RATIO = 1.25  # of volumes
GROWTH_MM = 1.5  # of the mean diameter
GROWTH_DAYS = 366  # 12 months
NO_CATEGORY = (
    "No category is suggested for nodules that were compared with an earlier study: the tables here are for a baseline."
)
THIN_MM = 1.5  # slices at most this far apart: volumetry of nodules is trusted by itself


@dataclass(frozen=True)
class Size:
    mean_mm: float  # mean diameter
    volume_mm3: float


@dataclass(frozen=True)
class Lesion:
    """A lesion of the earlier report."""

    label: str
    tracking_uid: str
    size: Size


@dataclass(frozen=True)
class Match:
    """A finding and the lesion it was."""

    number: int  # Finding.number
    lesion: Lesion
    distance_mm: float  # between them, once the studies are registered
    rivals: int = 0  # other lesions or findings that lie near enough to be meant


@dataclass(frozen=True)
class Comparison:
    """Two studies registered and their lesions paired. Everything a report says of it follows from this."""

    compared_with: ComparedWith
    thin: bool  # slices of both studies are at most THIN_MM apart
    matches: tuple[Match, ...]
    new: tuple[int, ...]  # numbers of findings at places that the earlier study shows without one
    not_shown: tuple[int, ...]  # numbers of findings at places outside the earlier study's field of view
    gone: tuple[Lesion, ...]  # their places are within the present field of view, and nothing was found there
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """From one size to another in a number of days; differences are present minus earlier."""

    earlier: Size
    present: Size
    days: int
    thin: bool

    @property
    def diameter_mm(self) -> float:
        return round(self.present.mean_mm - self.earlier.mean_mm, 1)

    @property
    def diameter_percent(self) -> float:
        return _percent(self.earlier.mean_mm, self.present.mean_mm)

    @property
    def volume_percent(self) -> float:
        return _percent(self.earlier.volume_mm3, self.present.volume_mm3)

    @property
    def by_volume(self) -> int:
        """1 grew, -1 shrank, 0 within measurement error; by the volume alone."""
        ratio = self.present.volume_mm3 / self.earlier.volume_mm3
        return 1 if ratio >= SIGNIFICANT_RATIO else -1 if ratio <= 1 / SIGNIFICANT_RATIO else 0

    @property
    def trend(self) -> int | None:
        """1 grew, -1 shrank, 0 within measurement error; None where thick slices leave it open."""
        if self.growth_in_12_months:
            return 1
        if self.by_volume and not self.thin and abs(self.diameter_mm) <= GROWTH_MM:
            return None
        return self.by_volume

    @property
    def doubling_days(self) -> float | None:
        """ln 2 * days / ln(V2 / V1); None unless it grew by more than measurement error."""
        if self.trend != 1 or self.by_volume != 1:
            return None
        return round(log(2) * self.days / log(self.present.volume_mm3 / self.earlier.volume_mm3), 1)

    @property
    def growth_in_12_months(self) -> bool | None:
        """Mean diameter more than 1.5 mm larger; None when the studies are further apart than the rule speaks of."""
        return self.diameter_mm > GROWTH_MM if self.days <= GROWTH_DAYS else None

    def words(self) -> str:
        was, now = f"{self.earlier.mean_mm:.1f}", f"{self.present.mean_mm:.1f}"
        diameter, volume = (rounded(x, codes.PERCENT) for x in (self.diameter_percent, self.volume_percent))
        numbers = f"diameter {diameter:+.3g} %, volume {volume:+.5g} %"
        if self.trend == 0:
            return f"unchanged within measurement error: {now} mm, {was} mm {self.days} days before ({numbers})"
        if self.trend is None:
            return (
                f"perhaps changed, slices are too thick to tell: {now} mm, {was} mm {self.days} days before ({numbers})"
            )
        verb = "grew" if self.trend > 0 else "shrank"
        doubling = f", volume doubling time {self.doubling_days:.0f} days" if self.doubling_days is not None else ""
        return f"{verb} from {was} to {now} mm in {self.days} days ({numbers}{doubling})"


def _percent(was: float, now: float) -> float:
    return round(100 * (now / was - 1), 1)


def size_of(measurements: Sequence[Measurement]) -> Size | None:
    """Mean diameter and volume by voxel sum among a lesion's measurements; None unless both are there and above 0."""
    diameter = next((m.value for m in measurements if (m.name, m.derivation) == (codes.MEAN_DIAMETER, codes.MEAN)), 0)
    volume = next((m.value for m in measurements if m.name == codes.VOXEL_VOLUME), 0)
    return Size(diameter, volume) if diameter > 0 and volume > 0 else None


def with_comparison(findings: Findings, comparison: Comparison) -> Findings:
    """The findings, each with what became of it, and the study they were compared with; numbered anew, because what
    grew comes first."""
    matches = {match.number: match for match in comparison.matches}
    compared = comparison.compared_with
    date_ = compared.study_date.isoformat()

    def told(finding: Finding) -> Finding:
        match, size = matches.get(finding.number), size_of(finding.measurements)
        if finding.number not in comparison.not_shown:
            finding = replace(finding, evaluations=tuple(e for e in finding.evaluations if not _is_suggestion(e)))
        if match is not None and size is not None:
            return _changed(finding, match, Change(match.lesion.size, size, compared.days, comparison.thin))
        if finding.number in comparison.new:
            evaluation = Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.NEW_FINDING)
            words = f"new: not found in the study of {date_}, which shows its place"
            return replace(finding, evaluations=(*finding.evaluations, evaluation), change=words)
        if finding.number in comparison.not_shown:
            return replace(finding, change=f"not to be compared: the study of {date_} does not show its place")
        return finding

    dropped = any(_is_suggestion(e) for f in findings.findings for e in f.evaluations)
    remarks = (
        f"Compared with the study of {date_}, {compared.days} days before: {len(comparison.matches)} found again,"
        f" {len(comparison.new)} new, {len(comparison.gone)} no longer found. Lungs registered to"
        f" {compared.residual_mm:.1f} mm; lesions paired by position, to be confirmed.",
        *(
            f"{lesion.label} of that study ({lesion.size.mean_mm:.1f} mm) is no longer found at its place."
            for lesion in comparison.gone
        ),
    )
    return renumber(
        replace(
            findings,
            findings=tuple(told(finding) for finding in findings.findings),
            compared_with=replace(compared, no_longer_found=len(comparison.gone), remarks=remarks),
            warnings=(*findings.warnings, *comparison.warnings, *([NO_CATEGORY] if dropped else [])),
        )
    )


def _is_suggestion(evaluation: Evaluation) -> bool:
    return evaluation.name.meaning.startswith(codes.SUGGESTED)


def _changed(finding: Finding, match: Match, change: Change) -> Finding:
    measurements = [
        Measurement(codes.DIFFERENCE_IN_SIZE, change.diameter_mm, codes.MM, codes.MEAN),
        Measurement(codes.DIAMETER_CHANGE, change.diameter_percent, codes.PERCENT),
        Measurement(codes.VOLUME_CHANGE, change.volume_percent, codes.PERCENT),
    ]
    if change.doubling_days is not None:
        measurements.append(Measurement(codes.VOLUME_DOUBLING_TIME, change.doubling_days, codes.DAYS))
    evaluations = []
    if change.trend is not None:
        trend = {1: codes.INCREASE_IN_SIZE, -1: codes.DECREASE_IN_SIZE, 0: codes.NO_SIGNIFICANT_CHANGE}[change.trend]
        evaluations.append(Evaluation(codes.QUALITATIVE_DIFFERENCE, trend))
    if change.growth_in_12_months is not None:
        flag = codes.PRESENT if change.growth_in_12_months else codes.ABSENT
        evaluations.append(Evaluation(codes.GROWTH_IN_12_MONTHS, flag))
    words = f"{match.lesion.label} of the study before {change.words()}"
    if match.rivals:
        words += f"; uncertain, {match.rivals} more could be meant"
    return replace(
        finding,
        measurements=(*finding.measurements, *measurements),
        evaluations=(*finding.evaluations, *evaluations),
        predecessor_uid=match.lesion.tracking_uid,
        change=words,
    )
