import math

import pytest

from study.runs import Estimate, correlation, pairs, shares
from study.tests.made import WEIGHT, make_pairs, make_run


def test_the_collapse_is_the_first_validation_below_sixty_percent():
    assert make_run("counterfact-memit-plain-draw1-300", [0.9, 0.6, 0.59]).collapse == 300
    assert make_run("counterfact-memit-plain-draw1-300", [0.9, 0.6, 0.6]).collapse is None


def test_a_method_that_never_worked_has_not_collapsed():
    assert make_run("counterfact-memit-plain-draw1-300", [0.1, 0.2, 0.3]).collapse is None
    assert make_run("counterfact-memit-plain-draw1-300", [0.1, 0.7, 0.3]).collapse == 300


def test_a_pair_is_compared_where_both_were_measured():
    runs = make_pairs([0.9, 0.8, 0.7], [0.9, 0.85], draws=(1,))
    (pair,) = pairs(runs)
    assert pair.edits == 200
    difference = pair.difference("val/efficacy")
    assert difference.value == pytest.approx(0.05)
    assert difference.error == pytest.approx(math.sqrt((0.85 * 0.15 + 0.8 * 0.2) / 200))


def test_a_difference_is_told_from_zero_by_its_interval():
    assert [Estimate(value, 1.0).side for value in (2.0, 1.9, -1.9, -2.0)] == [1, 0, 0, -1]
    assert Estimate(2.0, 1.0, freedom=2).side == 0  # three draws: 4.3 standard errors


def test_anchored_runs_are_paired_with_each_other():
    names = ("plain", "anchored_plain", "anchored_current", "two_sided")
    runs = [make_run(f"counterfact-alphaedit-{name}-draw1-200", [0.9, 0.8]) for name in names]
    found = {(pair.sphere.key.variant, pair.plain.key.variant) for pair in pairs(runs, None)}
    assert found == {("anchored_current", "anchored_plain"), ("two_sided", "plain")}


def test_correlations_need_points():
    assert (
        correlation(make_run("counterfact-memit-plain-draw1-300", [0.9, 0.8, 0.7]), "val/efficacy", differences=0)
        is None
    )
    run = make_run("counterfact-memit-plain-draw1-500", [0.9, 0.8, 0.7, 0.6, 0.5])
    assert correlation(run, "val/efficacy", differences=False).rho == pytest.approx(-1)


def test_shares_are_means_over_the_batches():
    run = make_run("counterfact-memit-plain-draw1-200", [0.9, 0.8], share=0.2, chance=0.1)
    assert shares(run) == {WEIGHT: pytest.approx((0.2, 0.1))}
