"""Spearman's coefficients of a run: those that it recorded, or those of its curves so far."""

import math

import numpy as np
import torch

from sphere_callbacks.functional.statistics import spearman_test
from sphere_pl.report.correlations import correlations
from sphere_pl.report.reading import read_run


def test_recorded_correlations_are_taken_over(make_run):
    found = correlations(read_run(make_run()))
    assert set(found) == {"efficacy", "generalization", "specificity", "neighborhood_agreement", "perplexity"}
    assert found["efficacy"].levels == (-0.93, 0.0002, -0.99, -0.71, 15)
    assert found["efficacy"].differences.rho == -0.31


def test_names_and_nulls_of_a_real_results_file_are_understood(make_run):
    levels = {"rho": None, "p_value": 0.5, "low": None, "high": None, "n": 12}  # a series that never changes
    spearman = {"val/efficacy": {"levels": levels, "differences": levels, "partial": None}}
    found = correlations(read_run(make_run(changes={"spearman": spearman})))
    assert math.isnan(found["efficacy"].levels.rho)
    assert found["efficacy"].levels.p == 0.5


def test_correlations_of_fewer_points_than_they_need_are_left_out(make_run):
    levels = {"rho": None, "p_value": None, "low": None, "high": None, "n": 1}
    spearman = {"val/efficacy": {"levels": levels, "differences": levels | {"n": 0}, "partial": None}}
    assert correlations(read_run(make_run(changes={"spearman": spearman}))) == {}


def test_correlations_of_an_unfinished_run_are_computed(make_run, curves):
    columns = curves(batches=8)
    energy, metric = (torch.tensor(columns[name]) for name in ("energy/mean", "val/specificity"))
    found = correlations(read_run(make_run(batches=8, finished=False)))
    expected = spearman_test(energy.diff(), metric.diff())
    np.testing.assert_allclose(found["specificity"].differences, expected, rtol=1e-6)
    assert correlations(read_run(make_run("short", batches=3, finished=False))) == {}
