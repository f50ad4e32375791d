"""One number, one format."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sphere_pl.progress import _scores
from sphere_pl.report.style import signed_percent
from sphere_pl.run.results import energy_change
from sphere_pl.text.numbers import MISSING, change, coefficient, difference, plain, score, total


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6))
def test_no_number_is_minus_nothing(value):
    for shown in (
        change(value),
        change(value, 0),
        change(value, 1),
        difference(value),
        score(value),
        coefficient(value),
    ):
        digits = shown.split(" ")[0]
        assert not (digits.startswith("-") and float(digits) == 0), shown


@given(st.floats(min_value=2e-6, max_value=100))
def test_a_small_change_keeps_its_sign(size):
    assert change(size).startswith("+")
    assert change(-size) == change(size).replace("+", "-")
    assert float(change(size).split()[0]) == pytest.approx(100 * size, rel=0.06, abs=6e-5)


def test_a_change_reads_the_same_wherever_it_is_shown():
    energies = {"a": {"before": 10.0, "after": 9.99998}, "b": {"before": 1000.0, "after": 1000.0}}
    found = energy_change(energies)  # of the sum it would be another number
    line = _scores(type("Trainer", (), {"callback_metrics": {"energy/change": found}}))
    assert change(found) == "-0.0001 %"
    assert line == "energy -0.0001 %"
    assert signed_percent(found) == "−0.0001 %"


@pytest.mark.parametrize("show", [change, difference, plain, score, total, coefficient])
def test_what_is_not_known_is_a_dash(show):
    assert show(math.nan) == MISSING
