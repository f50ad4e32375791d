"""Which configuration to take, and what holds more than it."""

import pytest
import yaml

from sphere_pl.model.known import config_folder
from study.families import read_spec
from study.recommendation import recommendation, stronger, told_apart
from study.tests.made_families import make_result

HALF, MOST = "+" * 10 + "-" * 10, "+" * 18 + "-" * 2


@pytest.mark.parametrize(
    "other",
    [
        make_result("memit_seq", written=HALF),  # no more
        make_result("memit_seq", written="-" * 20),  # less
        make_result("scr_unconfirmed", written=MOST),  # edits nothing
        make_result("memit_seq", written=MOST, edits=8),  # other facts
        make_result("memit_seq", written=""),  # broke off
    ],
)
def test_only_an_editor_that_holds_more_of_the_same_facts_is_named(other):
    assert stronger([make_result(written=HALF), other], read_spec()).startswith("No other editor")


def test_what_holds_more_is_named_with_its_command_and_what_it_costs():
    other = make_result("memit_seq", "wide", written=MOST, neighbor="-" * 20, after={"perplexity": 60.0})
    said = stronger([make_result(written=HALF), other], read_spec())
    assert "after 4 edits of SmolLM2-135M-Instruct, MEMIT with memory, layers 2 to 8 " in said
    assert "(`--config method/memit_seq --model.layers [2,3,4,5,6,7,8]`) **+0.40 ± 0.11**, p 0.008" in said
    assert (
        "others as before **-0.50 ± 0.11**, p 0.002, perplexity x1.50 where that of AlphaEdit is x1.10. `--config rec"
        in said
    )


def test_the_table_has_the_recommended_one_and_what_holds_more_at_no_higher_perplexity():
    rows = [make_result(written=HALF), make_result("memit_seq", written=HALF), make_result("rlsedit", written=MOST)]
    rows += [make_result("suit", written="-" * 20), make_result("eamet", written=MOST, after={"perplexity": 60.0})]
    mine, better = recommendation(rows, read_spec()).splitlines()[2:]
    assert mine.startswith(
        "| up to 4 facts | SmolLM2-135M-Instruct | `--config recommended --retry 0 --data.batch_size 2` | 0.50"
    )
    assert mine.endswith("|  | +0.00 ± 0.00, p 1.000 |  |")
    assert "| `--config method/rlsedit --data.batch_size 2` | 0.90" in better
    assert better.endswith("| **+0.40 ± 0.11**, p 0.008 | **+0.40 ± 0.11**, p 0.008 |  |")


def test_the_row_that_is_recommended_was_run_as_the_file_says():
    said = yaml.safe_load((config_folder() / "recommended.yaml").read_text(encoding="utf-8"))
    assert f"--retry={said['retry']}" in read_spec().variants["retry"]
    assert f"--projection.strength={said['projection']['strength']:g}" in read_spec().variants["retry"]


def test_what_is_recommended_edits_failed_facts_again_where_that_was_run():
    rows = [
        make_result(written=HALF),
        make_result("memit_seq", written=HALF),
        make_result(variant="retry", written=MOST),
    ]
    (mine,) = recommendation(rows, read_spec()).splitlines()[2:]
    assert "| `--config recommended --data.batch_size 2` | 0.90" in mine
    assert mine.endswith("| **+0.40 ± 0.11**, p 0.008 | **+0.40 ± 0.11**, p 0.008 |  |")
    said = told_apart(rows)
    assert (
        "it holds more than MEMIT with memory in 1 of 1 settings and fewer in 0, and more than without that in 1"
        in said
    )
    assert said.endswith("Without that it holds more than MEMIT with memory in 0 of 1 settings and fewer in 0.")


@pytest.mark.parametrize(
    ("perplexity", "taken"), [(60.0, "--config recommended --retry 0"), (90.0, "--config method/scr")]
)
def test_retrieval_is_taken_where_the_recommended_one_breaks_the_model(perplexity, taken):
    rows = [make_result(written=HALF, after={"perplexity": perplexity}), make_result("scr_unconfirmed", written=MOST)]
    (line,) = recommendation(rows, read_spec()).splitlines()[2:]
    assert f"`{taken}" in line


def test_a_rival_whose_failed_facts_were_edited_again_is_the_one_to_beat():
    rows = [
        make_result(written=HALF),
        make_result("memit_seq", written=HALF),
        make_result(variant="retry", written=MOST),
        make_result("memit_seq", "retry", written=MOST),
    ]
    (mine,) = recommendation(rows, read_spec()).splitlines()[2:]
    assert mine.endswith("| **+0.40 ± 0.11**, p 0.008 | +0.00 ± 0.00, p 1.000 |  |")
    assert told_apart(rows).endswith(
        "Where both edit failed facts again it holds more than MEMIT with memory in 0 of 1 settings and fewer in 0."
    )
