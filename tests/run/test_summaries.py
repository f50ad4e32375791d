"""What callbacks leave of themselves in a run's name and results, whoever wrote them."""

import math
from typing import NamedTuple

import lightning as L
import pytest
import torch

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy, RelativeMask, SparseProjection, SpectrumRestraint
from sphere_pl.errors import UserError
from sphere_pl.methods import MEMIT
from sphere_pl.run.results import OWN
from sphere_pl.run.summaries import check_summaries, method_name, plain, summaries_of, transforms_of


class Pair(NamedTuple):
    left: float
    right: torch.Tensor


class Own(L.Callback):
    summary_name = "own"

    def __init__(self, **values):
        self.values = values

    def summary(self):
        return self.values


class Halved(L.Callback):
    label = "HALF"


def test_a_run_is_called_after_all_that_its_updates_pass_through():
    callbacks = [SpectrumRestraint(), RelativeMask(), Halved(), L.Callback(), SparseProjection(strength=0.5)]
    assert transforms_of(callbacks) == ["PRUNE", "RECT", "HALF", "SPHERE"]
    assert method_name(MEMIT(), callbacks) == "MEMIT + PRUNE + RECT + HALF + SPHERE"
    assert transforms_of([SparseProjection(strength=0.0), None]) == []


def test_a_label_that_is_no_text_is_not_for_us():
    callback = L.Callback()
    callback.label = ["a", "b"]
    assert transforms_of([callback]) == []


def test_the_callbacks_of_the_package_and_of_the_user_leave_their_summaries():
    found = summaries_of([HypersphericalEnergy(), Own(share=0.5), EnergyCorrelation(), L.Callback()])
    assert found == {"hyperspherical_energy": {}, "own": {"share": 0.5}, "spearman": {}}


def test_two_callbacks_of_one_name_share_its_entry_and_the_first_one_counts():
    assert summaries_of([Own(a=1), Own(a=2, b=3)]) == {"own": {"a": 1, "b": 3}}


@pytest.mark.parametrize("value", [{1, 2}, L.Callback()])
def test_a_summary_that_cannot_be_written_costs_no_results(value, caplog):
    assert summaries_of([Own(bad=value), HypersphericalEnergy()]) == {"own": None, "hyperspherical_energy": {}}
    assert "`Own.summary()` failed" in caplog.text


def test_a_summary_that_raises_costs_no_results(caplog, monkeypatch):
    monkeypatch.setattr(Own, "summary", lambda self: 1 / 0)
    assert summaries_of([Own()]) == {"own": None}
    assert "division by zero" in caplog.text


def test_a_summary_under_a_name_of_the_results_own_is_refused(monkeypatch):
    monkeypatch.setattr(Own, "summary_name", "after")
    with pytest.raises(UserError, match=r"`Own\.summary_name = 'after'`.*another name"):
        check_summaries([Own()], OWN)


def test_a_name_without_a_summary_is_refused(monkeypatch):
    monkeypatch.setattr(Own, "summary", None)
    with pytest.raises(UserError, match=r"no method `summary\(\)`"):
        check_summaries([Own()], OWN)


def test_tensors_and_named_tuples_become_json():
    value = {"a": Pair(math.inf, torch.tensor([1.0, math.nan])), "b": torch.tensor(2), "c": (1, [math.nan])}
    assert plain(value) == {"a": {"left": None, "right": [1.0, None]}, "b": 2, "c": [1, [None]]}
