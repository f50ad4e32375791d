"""Two versions take turns, and what fills the caches does not count."""

from pathlib import Path

import pytest

from benchmarks.speed import HERE, Taken, fit, in_turns, main, medians, read


def test_versions_take_turns_and_the_first_run_of_each_does_not_count():
    order, seconds = [], iter([90, 9, 1, 2, 3, 4])

    def run(version):
        order.append(version)
        return Taken(next(seconds), 0, 0, ())

    other, this = in_turns(run, ["other", "this"], 2)
    assert order == ["other", "this"] * 3
    assert [each.edit for each in other] == [1, 3]
    assert medians(this)[0] == 3


def test_perplexity_counts_as_growth():
    scores = {"efficacy": 1.0, "generalization": 0.5, "neighborhood_agreement": 0.8, "perplexity": 44.0}
    results = {"after": scores, "before": {"perplexity": 40.0}, "seconds_per_edit": 0.5, "seconds_total": 9.0}
    assert read(results, 12.0) == Taken(0.5, 9.0, 12.0, (1.0, 0.5, 0.8, pytest.approx(1.1)))


def test_a_folder_without_the_package_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed", "--against", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "holds no sphere_pl" in capsys.readouterr().err


@pytest.mark.slow
def test_a_version_runs_in_a_process_of_its_own(tmp_path):
    taken = fit(HERE, tmp_path, ["--data.limit=2", "--model.statistics.tokens=2000", "--model.evaluation.sample=2"])
    assert taken.whole > taken.edit > 0
    assert len(taken.scores) == 4
    assert Path(HERE, "sphere_pl").is_dir()
