"""Scores in memory, and the numbers with names that files hold them as."""

import math

from sphere_pl.evaluation.scored import Scored, from_plain, shown, to_plain

SCORES = {"efficacy": Scored(0.5, 0.1), "probability/efficacy": Scored(0.25, 0.0), "perplexity": Scored(24.0)}


def test_scores_come_back_from_a_file_as_they_were():
    assert from_plain(to_plain(SCORES)) == SCORES


def test_files_hold_errors_under_names_of_their_own_and_none_that_is_not_known():
    names = ["efficacy", "efficacy_standard_error", "probability/efficacy", "probability/efficacy_standard_error"]
    assert list(to_plain(SCORES)) == [*names, "perplexity"]


def test_what_a_file_holds_as_null_or_as_no_number_is_not_known():
    scores = from_plain({"perplexity": None, "efficacy": "high", "efficacy_standard_error": None})
    assert set(scores) == {"perplexity", "efficacy"}
    assert all(math.isnan(number) for score in scores.values() for number in score)


def test_a_measured_nan_keeps_its_place():
    assert math.isnan(to_plain({"perplexity": Scored(math.nan)})["perplexity"])


def test_shares_have_three_decimals_and_others_three_digits():
    assert shown("val/efficacy", Scored(0.98765)) == "0.988"
    assert shown("fluency", Scored(5.3, 0.2)) == "5.30 ± 0.200"
    assert shown("perplexity", Scored(math.inf)) == "∞"
    assert shown("efficacy", Scored(math.nan)) == "–"
