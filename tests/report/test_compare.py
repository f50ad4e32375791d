import csv
import math
import re

import numpy as np
import pytest

from sphere_pl.errors import UserError
from sphere_pl.report import across, write_comparison
from sphere_pl.report.groups import best, group_runs, pairs
from sphere_pl.report.reading import read_run
from sphere_pl.report.tables import latex_table


@pytest.fixture
def runs(make_run):
    """MEMIT and AlphaEdit without and with SPHERE, AlphaEdit with two seeds."""
    return [
        make_run("memit", method="MEMIT", seed=3, collapse=350.0),
        make_run("memit_sphere", method="MEMIT + SPHERE", seed=4, collapse=620.0),
        make_run("alpha_1", method="AlphaEdit", seed=1, collapse=800.0),
        make_run("alpha_2", method="AlphaEdit", seed=2, collapse=830.0),
        make_run("alpha_sphere", method="AlphaEdit + SPHERE", seed=5, collapse=1400.0),
    ]


@pytest.fixture
def groups(runs):
    return group_runs([read_run(folder) for folder in runs])


def test_runs_that_differ_by_their_seed_share_a_row(runs, groups):
    assert [group.label for group in groups] == ["MEMIT", "MEMIT + SPHERE", "AlphaEdit", "AlphaEdit + SPHERE"]
    values = [read_run(folder).after("efficacy") for folder in runs[2:4]]
    found = groups[2].estimate("efficacy")
    assert found.mean == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(2))
    alone = groups[0].runs[0]
    assert groups[0].estimate("efficacy") == (alone.after("efficacy"), alone.standard_error("efficacy"))


def test_same_seed_or_another_configuration_is_no_repetition(make_run):
    folders = [make_run(name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    (folders[2] / "config.yaml").write_text("seed_everything: 2\nmodel:\n  layers: [3]\n")
    found = group_runs([read_run(folder) for folder in folders])
    assert [group.label for group in found] == [f"AlphaEdit + SPHERE ({name})" for name in "abc"]
    assert len({group.look for group in found}) == 3


def test_labels_name_what_differs(make_run):
    folders = [make_run("a", changes={"model": "small"}), make_run("b", changes={"model": "large"})]
    assert [group.label for group in group_runs(map(read_run, folders))] == [
        "AlphaEdit + SPHERE · small",
        "AlphaEdit + SPHERE · large",
    ]


def test_best_is_the_highest_and_the_lowest_perplexity(groups):
    winners = {key for key, won in best(groups).items() if won}
    assert ("AlphaEdit + SPHERE", "efficacy") in winners
    assert ("AlphaEdit + SPHERE", "perplexity") in winners
    assert len([key for key in winners if key[1] == "efficacy"]) == 1
    assert best(groups[:1]) == {}


def test_equal_to_the_digits_shown_is_equally_good(make_run):
    scores = [{"efficacy": value, "perplexity": 60.0} for value in (0.90001, 0.90002, 0.8)]
    folders = [
        make_run(f"run{place}", method=f"method {place}", changes={"after": each}) for place, each in enumerate(scores)
    ]
    found = best(group_runs([read_run(folder) for folder in folders]))
    assert [found[f"method {place}", "efficacy"] for place in range(3)] == [True, True, False]


def test_what_lies_within_a_standard_error_of_the_best_is_as_good_and_all_of_it_is_no_winner(make_run):
    def found(*values):
        ends = [{"efficacy": each, "efficacy_standard_error": 0.05, "perplexity": 60.0 + each} for each in values]
        folders = [
            make_run(f"{len(values)}{place}", method=f"method {place}", changes={"after": each})
            for place, each in enumerate(ends)
        ]
        won = best(group_runs([read_run(folder) for folder in folders]))
        return [[won[f"method {place}", each] for place in range(len(values))] for each in ("efficacy", "perplexity")]

    assert found(0.90, 0.86, 0.80) == [[True, True, False], [False] * 3]
    assert found(0.90, 0.86) == [[False] * 2, [False] * 2]


def test_one_validation_is_no_course(make_run):
    folder = make_run()
    (folder / "metrics.csv").write_text("step,edits,val/efficacy,energy/change\n0,3,1.0,0.1\n")
    found = group_runs([read_run(folder)])
    assert across.course_figures(found, ["val/efficacy"]) == {}
    assert across.trend_figures(found) == {}


def test_sphere_is_paired_with_its_base_method(groups):
    assert [(a.label, b.label) for a, b in pairs(groups)] == [
        ("MEMIT", "MEMIT + SPHERE"),
        ("AlphaEdit", "AlphaEdit + SPHERE"),
    ]


def test_what_a_method_is_called_by_its_author_is_not_taken_apart(make_run):
    """A run says which part of its name is the method; only old results have to be read from the name."""
    changes = [{"method_name": "My + Method", "transforms": transforms} for transforms in ([], ["SPHERE"])]
    runs = [
        make_run("plain", method="My + Method", seed=1, changes=changes[0]),
        make_run("sphere", method="My + Method + SPHERE", seed=2, changes=changes[1]),
    ]
    ((plain, sphere),) = pairs(group_runs([read_run(run) for run in runs]))
    assert (plain.has_sphere, sphere.has_sphere) == (False, True)
    assert sphere.base == plain.method == "My + Method"


def test_bars_courses_and_clouds_show_the_runs(groups):
    bars = across.gain_figures(groups)["generalization"]
    np.testing.assert_allclose(
        bars.data[1]["y"], [groups[1].estimate("generalization").mean, groups[3].estimate("generalization").mean]
    )
    np.testing.assert_allclose(
        bars.data[0]["error_y"]["array"],
        [groups[0].estimate("generalization").error, groups[2].estimate("generalization").error],
    )
    course = across.course_figures(groups, ["val/efficacy", "val/nothing"])
    assert list(course) == ["val/efficacy"]
    assert len(course["val/efficacy"].data) == 5
    clouds = across.cloud_figures(groups)
    assert sum(each["mode"] == "markers" for each in clouds["efficacy"].data) == 4
    assert sum(each["name"] == "regression line" for each in clouds["efficacy"].data) == 1
    assert len(across.trend_figures(groups)) == 4


def test_ability_tasks_are_found_by_their_prefix(make_run):
    folder = make_run()
    (folder / "metrics.csv").write_text("step,edits,abilities/rte,val/perplexity\n0,100,0.6,58\n1,200,0.5,60\n")
    found = group_runs([read_run(folder)])
    assert across.ability_columns(found) == ["abilities/rte", "val/perplexity"]
    (course,) = across.course_figures(found, ["abilities/rte"]).values()
    np.testing.assert_allclose(course.data[0]["y"], [0.6, 0.5])


def test_comparison_writes_page_csv_and_latex(runs, tmp_path):
    path = write_comparison(runs, tmp_path / "out")
    assert path == tmp_path / "out" / "comparison.html"
    text = path.read_text(encoding="utf-8")
    assert re.search(r"<b>40\.4 ± 1\.3</b>", text)
    assert "mean of 2 runs" in text
    assert "<body>" in text
    with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["unedited", "MEMIT", "MEMIT + SPHERE", "AlphaEdit", "AlphaEdit + SPHERE"]
    assert float(rows[4]["efficacy"]) == read_run(runs[4]).after("efficacy")
    assert rows[3]["runs"] == "2"
    assert float(rows[0]["perplexity"]) == 57.4
    assert r"$\mathbf{40.4}_{\pm 1.3}$" in path.with_suffix(".tex").read_text(encoding="utf-8")


def test_latex_has_one_row_for_each_method_and_escapes(make_run):
    folders = [
        make_run("a", method="A_1 & 50%", changes={"model": "x_y"}),
        make_run("b", method="B", changes={"model": "x_y"}),
    ]
    text = latex_table(group_runs([read_run(folder) for folder in folders]))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert all(row.count(" & ") == 6 for row in rows)
    assert r"A\_1 \& 50\%" in text
    assert r"x\_y (1,500 edits)" in text


def test_unfinished_run_is_compared_by_its_last_validation(runs, make_run, tmp_path):
    live = make_run("live", finished=False, batches=6)
    text = write_comparison([*runs[:1], live], tmp_path / "table.html").read_text(encoding="utf-8")
    assert "still running" in text
    assert "600 edits so far" in text
    assert '<body data-refresh="30">' in text
    assert "compare numbers only within a block" in text
    assert "<b>" not in text.split("<script")[0]


def test_folder_given_twice_counts_once_and_none_is_refused(runs, tmp_path):
    path = write_comparison([runs[0], runs[0], runs[4]], tmp_path / "twice.html")
    assert path.with_suffix(".csv").read_text(encoding="utf-8").count("\n") == 4
    with pytest.raises(UserError, match="no run folder was given"):
        write_comparison([], tmp_path)
    with pytest.raises(UserError, match="is no run folder"):
        write_comparison([runs[0], tmp_path / "nowhere"], tmp_path)
