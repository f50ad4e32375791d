import logging
import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import PrincipalDirections
from sphere_callbacks.functional import leading_directions, subspace_overlap


@pytest.fixture
def updates(make_updates, weights):
    return make_updates(weights, batches=4, scale=0.5)


@pytest.mark.parametrize("transposed", [False, True])
def test_logs_describe_the_directions_after_each_batch(run, weights, recording_logger, transposed):
    module, _ = run(PrincipalDirections(0.5), logger=recording_logger, transposed=transposed)
    start = {name: leading_directions(weight, 0.5)[0] for name, weight in weights.items()}
    expected = {"rank": [], "top_share": [], "overlap": [], "overlap_chance": []}
    for seen in module.seen:
        now = {name: leading_directions(weight, 0.5) for name, weight in seen.items()}
        expected["rank"].append(sum(now[n][0].shape[1] for n in now) / 2)
        expected["top_share"].append(sum(float(now[n][1][0] / now[n][1].sum()) for n in now) / 2)
        expected["overlap"].append(sum(float(subspace_overlap(start[n], now[n][0])) for n in now) / 2)
        chances = [max(now[n][0].shape[1], start[n].shape[1]) / start[n].shape[0] for n in now]
        expected["overlap_chance"].append(sum(chances) / 2)
    for name, series in expected.items():
        assert recording_logger.series(f"principal/{name}") == pytest.approx(series, rel=1e-4)
    assert expected["overlap"][-1] < 0.99


def test_directions_that_do_not_turn_overlap_fully(run, updates, recording_logger):
    for update in updates:
        for change in update.values():
            change.zero_()
    run(PrincipalDirections(), logger=recording_logger)
    assert recording_logger.series("principal/overlap") == pytest.approx([1.0] * 4, abs=1e-5)


def test_a_resumed_run_compares_with_the_first_start(run, recording_logger, save_after, tmp_path):
    run(PrincipalDirections(), save_after(2, tmp_path / "two.ckpt"), logger=recording_logger)
    whole = recording_logger.series("principal/overlap")
    recording_logger.metrics.clear()
    run(PrincipalDirections(), logger=recording_logger, ckpt_path=tmp_path / "two.ckpt")
    assert recording_logger.series("principal/overlap") == whole[2:]


def test_nan_is_logged_and_reported_once(run, updates, caplog, recording_logger):
    updates[1]["layers.0.down_proj"][0, 0] = math.nan
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.directions"):
        run(PrincipalDirections(), logger=recording_logger)
    assert [math.isnan(value) for value in recording_logger.series("principal/overlap")] == [False, True, True, True]
    assert len(caplog.records) == 1


def test_works_in_a_module_that_knows_nothing_of_editing(make_plain, make_trainer, regression_batches):
    trainer = make_trainer(PrincipalDirections())
    trainer.fit(make_plain("AdamW"), regression_batches)
    assert 0 < float(trainer.callback_metrics["principal/overlap"]) < 1
    assert float(trainer.callback_metrics["principal/rank"]) >= 1


def test_a_pattern_that_matches_nothing_is_refused(run):
    with pytest.raises(MisconfigurationException, match=r"PrincipalDirections\(modules='q'\)"):
        run(PrincipalDirections(modules="q"))


@pytest.mark.parametrize("arguments", [{"cumulative_ratio": 1.0}, {"every_n_batches": 0}], ids=str)
def test_bad_arguments_are_refused_as_they_were_written(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        PrincipalDirections(**arguments)


def test_measuring_changes_nothing(run, weights):
    plain, watched = run()[0], run(PrincipalDirections())[0]
    assert all(torch.equal(plain.weights[name], watched.weights[name]) for name in weights)
