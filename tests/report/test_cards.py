"""The cards with figures: one that would show nothing is left out, and says why."""

import json

from sphere_pl.report.cards import ONE_POINT, TOO_SHORT, Absent, coefficient, figure_cards
from sphere_pl.report.correlations import RankCorrelation
from sphere_pl.report.reading import read_run


def absent(run):
    return {card.title: card.reason for card in figure_cards(run) if isinstance(card, Absent)}


def test_a_whole_run_leaves_out_no_card(make_run):
    assert absent(read_run(make_run())) == {}


def test_a_curve_of_one_point_is_left_out(make_run):
    reasons = absent(read_run(make_run(batches=1)))
    assert reasons["Do the edits last?"] == ONE_POINT
    assert reasons["Time and targets"] == ONE_POINT


def test_trends_need_several_validations(make_run):
    reasons = absent(read_run(make_run(batches=2, finished=False)))
    assert reasons["Energy against metrics"] == reasons["Changes of energy, changes of metrics"] == TOO_SHORT


def test_what_was_never_measured_says_what_to_add(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"edits": 100, "after": {"efficacy": 0.9}}))
    assert "add the HypersphericalEnergy callback" in absent(read_run(tmp_path))["Energy and perplexity"]


def test_a_coefficient_without_an_interval_stands_alone():
    assert coefficient(RankCorrelation(-0.5, p=0.5, n=3)) == "−0.50"
