import json

from study import page
from study.runs import load
from study.tests.made import make_pairs, make_run


def geometry():
    return json.loads(page.GEOMETRY.read_text(encoding="utf-8"))


def test_the_page_shows_every_run_and_what_was_not_run():
    runs = make_pairs([0.9, 0.5], [0.9, 0.7], draws=(1,))
    runs.append(make_run("counterfact-memit-plain-tune_weight1000-draw0-200", [0.9, 0.8]))
    text = page.page(runs, geometry())
    assert "| alphaedit, draw 1 | 200 | 0.500 ± 0.035 |" in text
    assert "| alphaedit current, draw 1 | 200 | 0.700 ± 0.032 |" in text
    assert "| memit tune_weight1000 | 200 | **0.667 ± 0.023** | 0.800 |" in text
    assert "- counterfact-alphaedit-ridge1-draw1-800: plain, current\n" in text


def test_the_page_says_how_much_of_the_plan_was_run_and_with_which_builds():
    versions = {"torch": "2.13.0+cpu", "transformers": "5.17.0", "python": "3.11.7"}
    everything = [make_run(cell.name, [0.9], versions=versions) for cell in page.FULL]
    every = f"{len(page.FULL)} cells of the full plan are finished, with torch 2.13.0+cpu and transformers 5.17.0."
    assert f"All {every}" in page.what_was_run(everything)
    text = page.what_was_run(everything[1:])
    assert f"{len(page.FULL) - 1} of the {every}" in text
    assert "runs what is left:\n\n- counterfact-alphaedit-ridge1-draw1-800: plain" in text


def test_runs_are_ranked_by_the_harmonic_mean_of_their_scores():
    runs = [
        make_run("counterfact-ft-plain-draw1-800", [0.2] * 8),
        make_run("counterfact-rome-plain-draw1-800", [0.9] * 8),
    ]
    lines = page.ranking([*runs, make_run("counterfact-memit-plain-draw1-300", [0.9] * 3)]).splitlines()
    assert lines[-2:] == [
        "| rome, draw 1 | **0.688 ± 0.012** | 0.900 | 0.500 | 0.800 | 50.0 |",
        "| ft, draw 1 | 0.364 ± 0.016 | 0.200 | 0.500 | 0.800 | 50.0 |",
    ]


def test_what_some_run_has_measured_beside_is_shown_and_the_rest_named():
    run = make_run("counterfact-ft-plain-draw1-200", [0.9, 0.8])
    assert "any of them: retention by age, general abilities," in page.page([run], geometry())
    run.found["validations"]["retention/earliest/efficacy"] = [0.9, 0.25]
    text = page.page([run], geometry())
    assert "## Retention by age\n\n| run | earliest/efficacy |\n|---|---|\n| ft, draw 1 | 0.250 |" in text
    assert "any of them: general abilities," in text
    more = make_run("counterfact-ft-plain-draw1-200", [0.9, 0.8], after={"generation/efficacy": 0.125})
    assert "## Free generation\n\n| run | efficacy |\n|---|---|\n| ft, draw 1 | 0.125 |" in page.page(
        [more], geometry()
    )


def test_a_run_that_broke_off_says_so():
    run = make_run("counterfact-ft-plain-draw1-800", [0.9, 0.5], failed="error: collapsed")
    assert "| ft, draw 1 | 200, broke off |" in page.page([run], geometry())


def test_the_figures_are_drawn_and_those_of_runs_that_are_gone_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FIGURES", tmp_path)
    (tmp_path / "counterfact-gone.png").write_bytes(b"")
    page.draw_figures(make_pairs([0.9, 0.5], [0.9, 0.7], draws=(1, 2)))
    assert {path.name for path in tmp_path.iterdir()} == {
        "counterfact-alphaedit.png",
        "shares.png",
        "changes.png",
        "short.png",
    }


def test_the_page_in_the_repository_is_the_one_that_the_results_make():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(load(page.RESULTS), geometry())
