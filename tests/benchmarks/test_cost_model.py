"""The cost model against costs that were measured, and in what it says of growth."""

import json
from pathlib import Path

import pytest

from benchmarks import cost_model
from benchmarks.cost_model import CORE, GPU, SHAPES, Work, edit, forward, targets

MEASURED = {
    row["name"]: row for row in json.loads((Path(cost_model.__file__).with_name("costs.json")).read_text("utf-8"))
}
DEFAULT = SHAPES["SmolLM2-135M"]
PAPER = Work(batch=20, contexts=6, before=13, depth=9 / 30, evaluations=25, longest=25)  # nothing was shared then
WITHIN = 0.25


def measured(beginning):
    (row,) = (row for name, row in MEASURED.items() if name.startswith(beginning))
    return row


def test_targets_of_the_papers_work_take_what_they_were_measured_to():
    assert targets(DEFAULT, CORE, PAPER) == pytest.approx(measured("z per edit, 25")["seconds"], rel=WITHIN)


def test_scoring_takes_what_it_was_measured_to():
    row = measured("evaluation of 500")
    tokens = row["share_of_ceiling"] * row["seconds"] * CORE.rate / (2 * DEFAULT.layers * DEFAULT.block)
    assert forward(DEFAULT, CORE, tokens, DEFAULT.layers) == pytest.approx(row["seconds"], rel=WITHIN)


def test_second_moments_take_what_they_were_measured_to():
    sums = 5 * 2 * 2072 * DEFAULT.width**2 / CORE.exact
    found = forward(DEFAULT, CORE, 2072, 9) + sums
    assert found == pytest.approx(measured("second moments")["seconds"], rel=WITHIN)


def test_a_batch_of_the_default_run_takes_what_it_was_measured_to():
    assert 10 * targets(DEFAULT, CORE, Work(before=17)) == pytest.approx(
        13.5, rel=WITHIN
    )  # before beginnings were shared


def test_larger_models_cost_more_larger_batches_and_more_devices_less():
    work = Work(batch=100, contexts=6)
    for machine in (CORE, GPU):
        by_size = [edit(shape, machine, work) for shape in SHAPES.values()]
        assert by_size == sorted(by_size)
        by_batch = [edit(DEFAULT, machine, work._replace(batch=batch)) for batch in (1, 10, 100, 1000)]
        assert by_batch == sorted(by_batch, reverse=True)
    assert edit(DEFAULT, GPU._replace(devices=8), work) < edit(DEFAULT, GPU, work)


def test_the_tables_name_every_model(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost_model"])
    cost_model.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in SHAPES)
