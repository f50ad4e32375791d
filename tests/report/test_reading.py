import json
import math

import numpy as np
import pytest

from sphere_pl.errors import UserError
from sphere_pl.report.correlations import paired
from sphere_pl.report.reading import Series, read_run


def test_columns_are_read_from_sparse_rows(make_run, curves):
    run = read_run(make_run(batches=6))
    for name, values in curves(batches=6).items():
        assert run.series(name).edits == tuple(range(100, 700, 100))
        np.testing.assert_allclose(run.series(name).values, values)
    assert "step" not in run.columns
    assert "epoch" not in run.columns
    assert run.finished
    assert run.method == "AlphaEdit + SPHERE"
    assert run.edits == 600


def test_validations_that_come_every_third_batch_keep_their_edits(make_run):
    run = read_run(make_run(batches=7, validate_every=3))
    assert run.series("val/efficacy").edits == (300, 600)
    assert len(run.series("energy/mean").edits) == 7
    edits, energy, efficacy = paired(run.series("energy/mean"), run.series("val/efficacy"))
    assert edits == [300, 600]
    assert energy == [run.series("energy/mean").values[i] for i in (2, 5)]
    assert efficacy == list(run.series("val/efficacy").values)


def test_rows_that_do_not_say_how_many_edits_are_placed_by_their_step(tmp_path):
    rows = [
        "step,edits,target/loss,val/efficacy",
        "0,,3.0,",
        "1,,2.0,",
        "1,100,,0.9",
        "2,,1.0,",
        "3,,0.5,",
        "3,200,,0.8",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    run = read_run(tmp_path)
    assert run.series("target/loss") == Series((50.0, 100.0, 150.0, 200.0), (3.0, 2.0, 1.0, 0.5))
    assert run.series("val/efficacy") == Series((100.0, 200.0), (0.9, 0.8))
    assert run.progress == "edits so far"


def test_a_run_that_never_says_how_many_edits_counts_batches(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/efficacy\n0,0.9\n1,0.8\n")
    run = read_run(tmp_path)
    assert run.series("val/efficacy").edits == (1.0, 2.0)
    assert run.progress == "batches so far"


def test_later_row_of_a_resumed_run_counts(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,edits,val/efficacy\n0,100,0.9\n1,200,0.8\n1,200,0.7\n2,300,0.6\n")
    assert read_run(tmp_path).series("val/efficacy") == Series((100.0, 200.0, 300.0), (0.9, 0.7, 0.6))


def test_half_written_last_line_loses_its_broken_cell_only(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,edits,val/efficacy,val/perplexity\n0,100,0.9,58\n1,200,0.8,1e")
    run = read_run(tmp_path)
    assert run.series("val/efficacy").values == (0.9, 0.8)
    assert run.series("val/perplexity").values == (58.0,)


def test_unfinished_run_takes_its_last_validation(make_run, curves):
    run = read_run(make_run(batches=5, finished=False))
    assert not run.finished
    assert run.method == "run"
    assert run.edits == 500
    assert run.after("efficacy") == pytest.approx(curves(batches=5)["val/efficacy"][-1])
    assert math.isnan(run.before("efficacy"))
    assert math.isnan(run.standard_error("efficacy"))


def test_infinite_perplexity_survives_null_in_results(make_run):
    folder = make_run(batches=4, changes={"after": {"efficacy": 0.5, "perplexity": None}})
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        header = file.readline().strip().split(",")
    cells = {"step": "4", "edits": "500", "val/perplexity": "inf"}
    with (folder / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write(",".join(cells.get(name, "") for name in header) + "\n")
    assert read_run(folder).after("perplexity") == math.inf


def test_folder_that_is_missing_or_holds_no_run_is_refused(tmp_path, make_run):
    with pytest.raises(UserError, match=r"is no run folder: it is no folder.*sphere_pl fit"):
        read_run(tmp_path / "nowhere")
    make_run("first"), make_run("second")
    with pytest.raises(UserError, match=r"holds none of metrics.csv.*It contains run folders: first, second"):
        read_run(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[1]", "must hold a JSON object, got a list")])
def test_broken_results_are_named(make_run, text, words):
    folder = make_run()
    (folder / "results.json").write_text(text)
    with pytest.raises(UserError, match=words):
        read_run(folder)


def test_results_alone_are_enough(make_run):
    folder = make_run()
    (folder / "metrics.csv").unlink()
    run = read_run(folder)
    assert run.columns == {}
    assert run.after("efficacy") == json.loads((folder / "results.json").read_text())["after"]["efficacy"]
