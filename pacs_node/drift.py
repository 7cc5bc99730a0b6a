"""Has what a pipeline sees and says changed since its first weeks? The population stability index, and chance.

    PSI = sum over the steps of (q - p) ln(q / p), p the share of a step in the first weeks, q in the last ones

Below 0.1 nothing has changed that matters, from 0.25 on the population is another one: Siddiqi, Credit Risk Scorecards,
2006, a rule of thumb. Where nothing has changed at all, PSI is distributed as (1/n + 1/m) times chi squared with as
many degrees of freedom as there are steps less one: Yurdakul, Naranjo, J. Risk Model Validation 14(4), 2020. With few
series chance alone goes beyond any threshold, so what is beyond the limit must be beyond chance, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, sqrt

LITTLE, MUCH = 0.1, 0.25
Z95 = 1.6449  # of the normal distribution: 95 % lie below
NEVER = 0.5  # what a step counts that was never seen: else one series would make PSI infinite


@dataclass(frozen=True)
class Drift:
    psi: float
    by_chance: float  # 95 % of comparisons lie below where nothing has changed
    reference: int  # series in the first weeks
    recent: int  # and in the last ones

    def beyond(self, limit: float) -> bool:
        return self.psi > limit and self.psi > self.by_chance


def drift(reference: Mapping[str, int], recent: Mapping[str, int]) -> Drift | None:
    """value -> how many series. None: there are none to compare, or all of them have one value."""
    n, m, values = sum(reference.values()), sum(recent.values()), {*reference, *recent}
    if not n or not m:
        return None
    if len(values) < 2:
        return Drift(0.0, 0.0, n, m)
    p, q = _shares(reference, values), _shares(recent, values)
    psi = sum((q[value] - p[value]) * log(q[value] / p[value]) for value in values)
    return Drift(psi, (1 / n + 1 / m) * chi_squared_95(len(values) - 1), n, m)


def _shares(counts: Mapping[str, int], values: set[str]) -> dict[str, float]:
    filled = {value: counts.get(value, 0) or NEVER for value in values}
    every = sum(filled.values())
    return {value: count / every for value, count in filled.items()}


def chi_squared_95(degrees: int) -> float:
    """95 % lie below; within 3 % from one degree on: Wilson, Hilferty, PNAS 17, 1931."""
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + Z95 * sqrt(part)) ** 3)
