"""docs/study.md: its tables and figures, and that it is what the committed results make."""

import pytest

from study import summary
from study.chart import Effect, draw_comparison, draw_effects
from study.command import RESULTS
from study.comparison import read_all
from study.energy_part import answer, effects
from study.families import read_spec
from study.runs import Estimate, load
from study.summary import processors
from study.tables import sphere_table, verdict_table
from study.tests.made import make_pairs
from study.tests.made_families import make_result

RIGHT, HALF = "+" * 40, "+" * 20 + "-" * 20


def test_the_page_in_the_repository_is_the_one_that_the_results_make():
    made = summary.page(read_all(read_spec()), load(RESULTS))
    assert summary.PAGE.read_text(encoding="utf-8") == made


def test_the_page_shows_the_figures_and_they_are_there():
    text = summary.PAGE.read_text(encoding="utf-8")
    for name in ("comparison.png", "sphere.png", "lasting.png"):
        assert f"(../study/models/{name})" in text
        assert (summary.FIGURES / name).read_bytes().startswith(b"\x89PNG")


def test_a_table_compares_every_method_with_alphaedit_and_with_retrieval_fact_by_fact():
    rows = [make_result("scr_unconfirmed", written=HALF), make_result(written=RIGHT), make_result("memit", written="")]
    lines = verdict_table(rows, "smollm2_135m")
    assert lines[0] == "### SmolLM2-135M-Instruct, 4 edits in batches of 2"
    scr, alphaedit, memit = lines[4:7]
    assert scr.startswith(
        "| SCR, unconfirmed | 0.50 ± 0.08 (20 of 40) | 0.50 ± 0.08 | 0.50 ± 0.25 | 0.50 ± 0.08 | x1.100"
    )
    assert scr.endswith("| **-0.50 ± 0.08**, p < 0.001 |  |")
    assert alphaedit.endswith("|  | **+0.50 ± 0.08**, p < 0.001 |")
    assert memit.startswith("| MEMIT | broke off: error: collapsed |")
    assert {line.count("|") for line in lines[2:7]} == {10}


def test_sphere_is_compared_with_the_same_method_without():
    rows = [make_result(written=RIGHT), make_result(variant="sphere", written=HALF, neighbor=RIGHT)]
    (row,) = sphere_table(rows)[2:]
    assert row.startswith("| SmolLM2-135M-Instruct | AlphaEdit | 4 | yes | **-0.50 ± 0.08**, p < 0.001 |")
    assert row.endswith("| +0.00 ± 0.00, p 1.000 |")


@pytest.mark.parametrize(("gain", "word"), [(0.0, "No"), (0.1, "In part")])
def test_the_answer_on_energy_counts_intervals_of_methods_that_remember(gain, word):
    found = [
        Effect("a", Estimate(gain, 0.01), remembers=True),
        Effect("b", Estimate(-0.1, 0.01), remembers=True),
        Effect("c", Estimate(0.3, 0.01), remembers=False),
    ]
    said = answer(found, 1)
    assert said.startswith(f"**{word}.** Of 2 comparisons")
    assert "fewer in 1" in said
    assert "Of 1 comparisons of methods that forget them, it leaves more standing in 1." in said


def test_runs_on_another_kind_of_processor_are_named():
    rows = [make_result(), make_result("memit", bfloat16_units=False), make_result("suit", bfloat16_units=True)]
    assert processors(rows).startswith("SmolLM2-135M-Instruct's MEMIT ran on a processor without units")
    assert processors(rows[:1]) == ""


def test_pairs_of_both_studies_are_counted():
    new = [make_result(written=HALF), make_result(variant="sphere", written=RIGHT)]
    old = make_pairs([0.9, 0.8], [0.9, 0.8]) + make_pairs([0.9, 0.5], [0.9, 0.8], "memit")
    found = effects(new, old)
    assert [(each.remembers, each.difference.side) for each in found] == [(True, 1), (True, 0), (False, 1)]


def test_both_figures_are_drawn(tmp_path):
    rows = [make_result("scr"), make_result(), make_result("memit", written="")]
    rows.append(make_result(model="gemma3_270m"))
    assert draw_comparison(rows, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    found = [Effect("a", Estimate(0.1, 0.1), remembers=True), Effect("b", Estimate(0.3, 0.1), remembers=False)]
    assert draw_effects(found, tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
