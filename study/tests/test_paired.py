"""Methods compared order by order."""

import math

import pytest

from study.paired import exchanged, over_orders, paired, share
from study.runs import Estimate


def test_the_error_is_that_of_the_differences_and_not_of_the_scores():
    found = paired([0.2, 0.5, 0.8], [0.3, 0.6, 0.9])
    assert found.difference == pytest.approx(0.1)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.clear


def test_the_test_counts_exchanges_within_orders():
    assert paired([0.0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]).p_value == 2 / 32
    assert paired([0.0] * 3, [0.1, -0.1, 0.0]).p_value == 1
    assert paired([0.0] * 3, [0.1, 0.2, 0.3]).p_value == 0.25  # the least that three orders can give


def test_one_order_has_no_error_and_tells_nothing():
    found = paired([0.1], [0.9])
    assert math.isnan(found.error)
    assert found.p_value == 1
    assert not found.clear


def test_mean_and_error_over_orders():
    value, error = over_orders([0.4, 0.5, 0.6])
    assert (value, error) == (pytest.approx(0.5), pytest.approx(0.1 / math.sqrt(3)))


def test_orders_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        paired([1, 2, 3], [1, 2])


def test_facts_are_compared_one_by_one():
    found = exchanged("++++-----", "+++-++++-")
    assert found == (9, 4, 1)
    assert found.difference.value == pytest.approx(3 / 9)
    assert found.difference.error == pytest.approx(math.sqrt((5 / 9 - 1 / 9) / 9))
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)


def test_equal_runs_are_not_told_apart():
    assert exchanged("+-+", "+-+").p_value == 1
    assert exchanged("+-+", "+-+").difference == Estimate(0.0, 0.0)


def test_facts_that_were_not_asked_do_not_count():
    assert share("+ - ") == Estimate(0.5, math.sqrt(0.125))
    assert math.isnan(share("  ").value)


@pytest.mark.parametrize("other", ["++", "+ +", "++++"])
def test_other_facts_are_refused(other):
    with pytest.raises(ValueError, match="the same facts"):
        exchanged("+-+", other)
