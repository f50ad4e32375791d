import logging
import math
from itertools import pairwise

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy
from sphere_callbacks.functional import hyperspherical_energy


def energies(weights, s=2.0):
    return {name: float(hyperspherical_energy(weight, s)) for name, weight in weights.items()}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("s", [0.0, 2.0])
def test_the_energy_of_each_weight_is_logged_after_each_batch(run, weights, recording_logger, s, transposed):
    module, _ = run(HypersphericalEnergy(s=s), logger=recording_logger, transposed=transposed)
    for name in weights:
        expected = [energies(seen, s)[name] for seen in module.seen]
        assert recording_logger.series(f"energy/{name}") == pytest.approx(expected, rel=1e-6)


def test_mean_and_changes_follow_their_definitions(run, weights, recording_logger):
    module, _ = run(HypersphericalEnergy(), logger=recording_logger)
    points = [energies(seen) for seen in (weights, *module.seen)]
    pairs = {name: weight.shape[0] * (weight.shape[0] - 1) for name, weight in weights.items()}
    mean = [sum(point[n] / pairs[n] for n in weights) / 2 for point in points[1:]]
    change = [sum(point[n] / points[0][n] - 1 for n in weights) / 2 for point in points[1:]]
    step = [sum(b[n] / a[n] - 1 for n in weights) / 2 for a, b in pairwise(points)]
    assert recording_logger.series("energy/mean") == pytest.approx(mean, rel=1e-6)
    assert recording_logger.series("energy/change") == pytest.approx(change, rel=1e-4)
    assert recording_logger.series("energy/step_change") == pytest.approx(step, rel=1e-4)


def test_initial_and_latest_hold_plain_numbers_for_a_final_table(run, weights):
    callback = HypersphericalEnergy()
    module, _ = run(callback)
    assert callback.initial == pytest.approx(energies(weights))
    assert callback.latest == pytest.approx(energies(module.weights))
    assert callback.initial != pytest.approx(callback.latest, rel=1e-6)


def test_measures_only_every_n_batches(run, recording_logger):
    callback = HypersphericalEnergy(every_n_batches=3)
    module, _ = run(callback, logger=recording_logger)
    third = energies(module.seen[2])
    assert callback.latest == pytest.approx(third)
    # Lightning repeats the last value of a step metric until it is logged again.
    assert recording_logger.series("energy/layers.0.down_proj") == pytest.approx([third["layers.0.down_proj"]] * 2)


def test_a_resumed_run_counts_changes_from_the_first_start(run, weights, recording_logger, tmp_path, save_after):
    whole = HypersphericalEnergy(every_n_batches=2)
    run(whole, save_after(3, tmp_path / "three.ckpt"))
    resumed = HypersphericalEnergy(every_n_batches=2)
    run(resumed, logger=recording_logger, ckpt_path=tmp_path / "three.ckpt")
    assert resumed.state_dict() == whole.state_dict()
    assert len(recording_logger.series("energy/change")) == 1


def test_a_second_fit_starts_afresh(run, weights):
    callback = HypersphericalEnergy()
    run(callback)
    first = dict(callback.initial)
    for weight in weights.values():
        weight.add_(0.5)
    run(callback)
    assert callback.initial == pytest.approx(energies(weights))
    assert callback.initial != pytest.approx(first, rel=1e-3)


def test_a_checkpoint_that_was_only_evaluated_is_no_start_of_the_next_fit(
    make_plain, make_trainer, regression_batches, tmp_path
):
    class Validated(make_plain):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx), batch_size=4)

    callback, correlation = HypersphericalEnergy(), EnergyCorrelation()
    trainer = make_trainer(callback, correlation)
    trainer.fit(Validated(), regression_batches, regression_batches)
    trainer.save_checkpoint(tmp_path / "fit.ckpt")
    trainer.validate(dataloaders=regression_batches, ckpt_path=tmp_path / "fit.ckpt", verbose=False)
    fresh = Validated()
    expected = energies({name: value for name, value in fresh.named_parameters() if value.ndim == 2})
    make_trainer(callback, correlation).fit(fresh, regression_batches, regression_batches)
    assert callback.initial == pytest.approx(expected)
    assert [len(points) for points in correlation.series.values()] == [1]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_works_in_a_module_that_knows_nothing_of_editing(make_plain, make_trainer, regression_batches, optimizer):
    module, callback = make_plain(optimizer), HypersphericalEnergy()
    make_trainer(callback).fit(module, regression_batches)
    expected = {"net.0.weight": module.net[0].weight, "net.2.weight": module.net[2].weight}
    assert callback.latest == pytest.approx(energies(expected))


def test_nothing_in_the_run_changes(run, weights):
    plain, watched = run()[0], run(HypersphericalEnergy())[0]
    assert all(torch.equal(plain.weights[name], watched.weights[name]) for name in weights)


def test_degenerate_rows_are_reported_once_and_do_not_stop_the_run(run, weights, caplog):
    first, second = weights.values()
    first[1] = 2 * first[0]
    second[2] = 0
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.energy"):
        run(HypersphericalEnergy())
    texts = [record.getMessage() for record in caplog.records]
    assert sum("pairs of rows with the same direction" in text for text in texts) == 1
    assert sum("zero rows" in text for text in texts) == 1


def test_nan_is_logged_and_reported(run, weights, updates, caplog, recording_logger):
    updates[1]["layers.0.down_proj"][0, 0] = math.nan
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.energy"):
        run(HypersphericalEnergy(), logger=recording_logger)
    found = recording_logger.series("energy/layers.0.down_proj")
    assert [math.isnan(value) for value in found] == [False, True, True, True]
    assert sum("rows with NaN or infinity" in record.getMessage() for record in caplog.records) == 1


def test_weights_of_one_row_have_no_energy_and_no_change(make_editing, make_trainer, edit_stream):
    weights = {"row": torch.ones(1, 4)}
    trainer = make_trainer(HypersphericalEnergy())
    trainer.fit(make_editing(weights, [{"row": torch.ones(1, 4)}]), edit_stream(1))
    assert float(trainer.callback_metrics["energy/mean"]) == 0
    assert float(trainer.callback_metrics["energy/change"]) == 0


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(run):
    with pytest.raises(MisconfigurationException, match=r"HypersphericalEnergy\(modules='mlp'\).*layers\.0\.down_proj"):
        run(HypersphericalEnergy(modules="mlp"))


def test_two_weights_under_one_name_are_refused(make_editing, make_trainer, edit_stream, updates):
    module = make_editing({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, updates)
    module.names = ["a", "a"]
    with pytest.raises(MisconfigurationException, match="several weights named a"):
        make_trainer(HypersphericalEnergy()).fit(module, edit_stream(1))


def test_a_pattern_that_matches_an_integer_matrix_is_refused(make_plain):
    from sphere_callbacks._weights import edited_weights

    module = torch.nn.Module()
    module.codes = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    module.other = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert [weight.name for weight in edited_weights([optimizer], module)] == ["other"]
    with pytest.raises(TypeError, match=r"`codes`, whose dtype torch\.int8"):
        edited_weights([optimizer], module, "c*")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"s": -1.0}, r"s=-1\.0"),
        ({"block_size": 0}, "block_size=0"),
        ({"every_n_batches": 0}, "every_n_batches=0"),
    ],
)
def test_bad_arguments_are_refused_as_they_were_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        HypersphericalEnergy(**arguments)
