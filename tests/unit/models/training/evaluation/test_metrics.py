"""Figures against values worked out by hand."""

import numpy as np
import pytest

from models.training.evaluation.metrics import auc, bootstrap, calibration_error, dice, iou, macro_f1


def test_overlap():
    a, b = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(a, b) == pytest.approx(2 / 3)
    assert iou(a, b) == pytest.approx(1 / 2)
    assert dice(~(a | True), ~(a | True)) == iou(~(a | True), ~(a | True)) == 1


def test_auc_counts_ordered_pairs_and_halves_ties():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 1, 0, 1])
    assert auc(scores, positive) == pytest.approx(3.5 / 4)
    assert np.isnan(auc(scores, np.zeros(4)))


def test_macro_f1_and_calibration():
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 3) == pytest.approx(2 / 3)
    assert calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0])) == pytest.approx(0.4)


def test_bootstrap_draws_patients_not_rows():
    values = np.array([0.0] * 50 + [1.0] * 50)
    by_patient = bootstrap(lambda rows: values[rows].mean(), ["a"] * 50 + ["b"] * 50, rounds=200)
    by_row = bootstrap(lambda rows: values[rows].mean(), [str(i) for i in range(100)], rounds=200)
    assert by_patient.value == by_row.value == 0.5
    assert (by_patient.low, by_patient.high) == (0.0, 1.0)  # two patients: everything is possible
    assert 0.35 < by_row.low < 0.45 < 0.55 < by_row.high < 0.65
