import math

import pytest

from study.table1 import table1
from study.tests.made import make_pairs, make_run


def rows(runs):
    return [row.split(" | ") for row in table1(runs).splitlines() if row.startswith("| ")][1:]


def test_every_method_has_a_row_without_and_one_with_sphere():
    (name, edits, draws, efficacy, *_), (sphere, _, _, behind, *_) = rows(
        make_pairs([0.9, 0.5], [0.9, 0.5], draws=(1, 2))
    )
    assert (name, edits, draws, sphere) == ("| alphaedit", "200", "2", "| + SPHERE")
    assert efficacy == behind == f"0.500 ± {math.sqrt(0.25 / 200 / 2):.3f}"


def test_the_scores_are_means_over_the_draws():
    runs = make_pairs([0.9, 0.5], [0.9, 0.6], draws=(1,)) + make_pairs([0.9, 0.7], [0.9, 0.8], draws=(2,))
    without, behind = rows(runs)
    assert (without[3].split()[0], behind[3].split()[0]) == ("0.600", "**0.700")


@pytest.mark.parametrize(("plain", "sphere", "bold"), [(0.5, 0.9, 1), (0.9, 0.5, 0), (0.50, 0.52, None)])
def test_the_better_score_is_bold_where_the_difference_excludes_zero(plain, sphere, bold):
    found = rows(make_pairs([0.9, plain], [0.9, sphere], draws=(1,)))
    assert [row[3].startswith("**") for row in found] == [bold == 0, bold == 1]


def test_methods_are_compared_where_both_runs_were_scored():
    runs = [
        make_run("counterfact-memit-plain-draw1-300", [0.9, 0.5, 0.1]),
        make_run("counterfact-memit-current-draw1-200", [0.9, 0.8]),
    ]
    assert rows(runs)[0][1:4] == ["200", "1", "0.500 ± 0.035"]


def test_there_is_no_table_without_a_pair():
    assert table1([make_run("counterfact-memit-plain-draw1-300", [0.9])]) == ""


def test_it_says_how_many_would_be_bold_by_chance():
    runs = [run for name in ("ft", "memit", "rect", "rome", "prune") for run in make_pairs([0.9], [0.9], name)]
    assert "of 20 differences about 1 would be so by chance alone" in table1(runs)
