import logging
import math

import pytest
import torch

from sphere_callbacks import EnergyCorrelation, HypersphericalEnergy
from sphere_callbacks.functional import partial_spearman, spearman, spearman_test


@pytest.fixture
def run(make_editing, make_trainer, edit_stream, make_updates, weights):
    """A function that validates after each of ten edit batches."""
    updates = make_updates(weights, batches=10, scale=0.2)

    class LogsLate(make_editing):
        """Logs one metric from the step and one from the hook that runs after those of the callbacks."""

        def validation_step(self, batch, batch_idx):
            self.log("val/norm", sum(p.norm() for p in self.masters), batch_size=1)

        def on_validation_epoch_end(self):
            self.log("val/late", self.masters[0].sum())

    def edit(*callbacks, ckpt_path=None, **options):
        module = LogsLate(weights, updates)
        trainer = make_trainer(*callbacks, val_check_interval=1, **options)
        trainer.fit(module, edit_stream(10), edit_stream(1), ckpt_path=ckpt_path)
        return module, trainer

    return edit


@pytest.mark.parametrize("energy_first", [True, False])
def test_series_pair_each_validation_with_the_energy_of_its_batch(run, recording_logger, energy_first):
    callback, energy = EnergyCorrelation(), HypersphericalEnergy()
    order = (energy, callback) if energy_first else (callback, energy)
    module, _ = run(*order, logger=recording_logger)
    points = torch.tensor(callback.series["val/late"])
    assert points[:, 0].tolist() == pytest.approx(recording_logger.series("energy/mean"))
    assert points[:, 1].tolist() == pytest.approx([float(s["layers.0.down_proj"].sum()) for s in module.seen])
    assert set(callback.series) == {"val/norm", "val/late"}


def test_correlations_are_logged_from_the_first_sufficient_validation(run, recording_logger):
    callback = EnergyCorrelation(min_points=4)
    _, trainer = run(HypersphericalEnergy(), callback, logger=recording_logger)
    points = torch.tensor(callback.series["val/norm"], dtype=torch.float64)
    expected = [float(spearman(points[:n, 0], points[:n, 1])) for n in range(4, 11)]
    assert recording_logger.series("spearman/val/norm") == pytest.approx(expected)
    expected = [float(spearman(points[:n, 0].diff(), points[:n, 1].diff())) for n in range(4, 11)]
    assert recording_logger.series("spearman_diff/val/norm") == pytest.approx(expected)
    steps = [step for step, values in recording_logger.metrics if "spearman/val/norm" in values]
    assert steps == [step for step, values in recording_logger.metrics if "val/norm" in values][3:]
    assert float(trainer.callback_metrics["spearman_diff/val/norm"]) == pytest.approx(expected[-1])


def test_the_correlations_do_not_become_metrics_themselves(run):
    callback = EnergyCorrelation(metrics=["*"])
    run(HypersphericalEnergy(), callback)
    assert not any(name.startswith("spearman") or name == "energy/mean" for name in callback.series)
    assert "energy/change" in callback.series


def test_summary_gives_levels_differences_and_partial(run):
    callback = EnergyCorrelation(metrics=["val/norm"])
    run(HypersphericalEnergy(), callback)
    energy, metric = torch.tensor(callback.series["val/norm"], dtype=torch.float64).unbind(1)
    found = callback.summary()
    assert list(found) == ["val/norm"]
    assert found["val/norm"].levels == spearman_test(energy, metric)
    assert found["val/norm"].differences == spearman_test(energy.diff(), metric.diff())
    assert found["val/norm"].differences.n == 9
    position = torch.arange(10.0)
    assert found["val/norm"].partial == pytest.approx(float(partial_spearman(energy, metric, position)), nan_ok=True)


def test_a_resumed_run_continues_the_series(run, tmp_path, save_after):
    whole = EnergyCorrelation()
    run(HypersphericalEnergy(), whole, save_after(6, tmp_path / "six.ckpt", hook="on_validation_end"))
    resumed = EnergyCorrelation()
    run(HypersphericalEnergy(), resumed, ckpt_path=tmp_path / "six.ckpt")
    assert resumed.series == whole.series


def test_a_second_fit_starts_a_new_series(run):
    callback = EnergyCorrelation()
    run(HypersphericalEnergy(), callback)
    run(HypersphericalEnergy(), callback)
    assert len(callback.series["val/norm"]) == 10


def test_the_sanity_check_and_a_later_validation_are_passed_over_in_silence(run, edit_stream, caplog):
    callback = EnergyCorrelation()
    caplog.set_level(logging.WARNING, logger="sphere_callbacks.correlation")
    module, trainer = run(HypersphericalEnergy(), callback, num_sanity_val_steps=1)
    assert len(callback.series["val/norm"]) == 10
    trainer.validate(module, edit_stream(1), verbose=False)
    assert len(callback.series["val/norm"]) == 10
    assert caplog.records == []


def test_a_metric_that_never_changes_has_no_correlation(run, make_editing, weights):
    callback = EnergyCorrelation(metrics=["energy/constant"], energy="energy/mean", min_points=3)
    callback.series = {"val/constant": [(float(i), 1.0) for i in range(5)]}
    found = callback.summary()["val/constant"]
    assert math.isnan(found.levels.rho)
    assert math.isnan(found.differences.p_value)
    assert math.isnan(found.partial)


def test_a_missing_energy_is_reported_once_with_what_there_is(run, caplog):
    callback = EnergyCorrelation()
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.correlation"):
        run(callback)
    assert callback.series == {}
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 1
    assert "Logged so far: val/late, val/norm" in texts[0]


@pytest.mark.parametrize("metrics", ["val/*", []])
def test_patterns_must_be_a_list(metrics):
    with pytest.raises(ValueError, match=r"must be a list of patterns"):
        EnergyCorrelation(metrics=metrics)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="min_points=2"):
        EnergyCorrelation(min_points=2)
