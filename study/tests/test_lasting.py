"""What lasts longest, against the goal."""

import pytest

from study.lasting import draw_lasting, lasting_elsewhere, lasting_short, lasting_table, lasting_words, longest, reaches
from study.tests.made_families import make_result

SCORES = {
    "edits": [2.0, 4.0],
    "val/efficacy": [1.0, 0.9],
    "val/perplexity": [42.0, 44.0],
    **{
        f"retention/{age}/efficacy": [1.0, value]
        for age, value in (("earliest", 0.8), ("middle", 0.9), ("latest", 1.0))
    },
}


def made(written="+++++++++-", perplexity=44.0, probability=0.9, **more):
    after = {"perplexity": perplexity, "probability/efficacy": probability}
    batches = {"edits": [2.0, 4.0], "drift/kl": [0.1, 0.25]}
    return make_result(written=written, after=after, validations=SCORES, batches=batches, **more)


@pytest.mark.parametrize(
    ("more", "whole"),
    [
        ({}, True),
        ({"written": "+" * 7 + "-" * 3}, False),
        ({"perplexity": 52.0}, False),  # 1.3 times
        ({"probability": 0.84}, False),
        ({"probability": None}, False),
    ],
)
def test_the_goal_is_reached_by_all_three_alone(more, whole):
    assert reaches(made(**more)) is whole
    assert ("AlphaEdit reaches all three" in lasting_words([made(**more)])) is whole


def test_only_the_runs_with_the_most_edits_that_ended_are_compared():
    rows = [made(edits=8), made(), made(method="memit_seq", edits=8), make_result("memit", written="", edits=8)]
    rows.append(made(model="gemma3_270m", edits=9))
    assert longest(rows) == [rows[0], rows[2]]
    assert longest([rows[-1]]) == []
    assert lasting_words([]) == ""
    assert lasting_table([]) == []


def test_the_table_goes_by_the_number_of_edits_and_by_age():
    rows = [made(), made("++++++++++", method="memit_seq", variant="wide")]
    head, _, alphaedit, wide = lasting_table(rows)
    assert head.startswith("| composition | after 2 | after 4 | by probability |")
    assert alphaedit == (
        "| AlphaEdit | 1.00 | 0.90 | 0.90 | 0.80, 0.90, 1.00 | 0.90 ± 0.09 | 0.90 ± 0.09 | x1.10 | 0.25 |  |"
    )
    assert wide.startswith("| MEMIT with memory, layers 2 to 8 |")
    assert wide.endswith("| +0.10 ± 0.09, p 1.000 |")


def test_what_failed_facts_that_were_edited_again_bring_stands_beside_what_held_before():
    twice = made()
    looks = {name: [*values, values[-1]] for name, values in SCORES.items()} | {"val/efficacy": [1.0, 0.6, 0.9]}
    twice.found["validations"] = looks
    _, _, row = lasting_table([twice])
    assert row.startswith("| AlphaEdit | 1.00 | 0.60 → 0.90 | 0.90 |")


def test_a_line_says_what_the_usual_method_and_the_best_hold():
    rows = [made("+++++-----"), made("++++++++--", method="memit_seq"), made("++++++----", method="rlsedit")]
    said = lasting_short(rows)
    assert "50% with AlphaEdit (perplexity x1.10) and 80% with MEMIT with memory" in said
    assert lasting_short(rows[:1]).endswith("still says 50% with AlphaEdit (perplexity x1.10).")
    assert lasting_short([]).startswith("No run")


def test_long_streams_on_other_models_are_told_of_and_short_ones_are_not():
    long = make_result(model="gemma3_270m", edits=1000, written="+" * 300 + "-" * 700, after={"perplexity": 160.0})
    short = make_result(model="qwen2_5_coder_0_5b", edits=300)
    said = lasting_elsewhere([long, short])
    assert "30% of 1,000 on Gemma-3-270M (perplexity x4.00)" in said
    assert "Qwen" not in said
    assert lasting_elsewhere([short]) == ""


def test_the_figure_is_drawn(tmp_path):
    rows = [made(), made(method="memit_seq")]
    assert draw_lasting(rows, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
