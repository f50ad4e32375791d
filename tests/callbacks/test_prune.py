import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import SpectrumRestraint
from sphere_callbacks.functional import principal_directions, project_out, restrain_spectrum, spectral_norm


@pytest.fixture
def updates(make_updates, weights):
    """Updates so large that the accumulated change soon exceeds the weight's own spectrum."""
    return make_updates(weights, batches=4, scale=4.0)


@pytest.fixture
def watched(make_editing):
    class Watched(make_editing):
        """Remembers the weights that each kind of evaluation has seen."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.evaluated = []

        def validation_step(self, batch, batch_idx):
            self.evaluated.append(self.weights)

        def test_step(self, batch, batch_idx):
            self.evaluated.append(self.weights)

        def predict_step(self, batch, batch_idx):
            self.evaluated.append(self.weights)
            return batch

    return Watched


@pytest.fixture
def run(watched, make_trainer, edit_stream, weights, updates):
    def edit(*callbacks, transposed=False, ckpt_path=None, **options):
        module = watched(weights, updates, transposed)
        trainer = make_trainer(*callbacks, val_check_interval=1, **options)
        trainer.fit(module, edit_stream(4), edit_stream(1), ckpt_path=ckpt_path)
        return module, trainer

    return edit


def restrained(weight, original, ratio=0.5, strength=0.0):
    change = restrain_spectrum(weight - original, float(spectral_norm(original)))
    return original + project_out(change, principal_directions(original, ratio), strength)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_validation_sees_restrained_weights_and_the_fit_does_not(run, weights, strength, transposed):
    plain = run()[0]
    module, _ = run(SpectrumRestraint(project_strength=strength), transposed=transposed)
    for seen, expected, evaluated in zip(module.seen, plain.seen, module.evaluated, strict=True):
        for name, original in weights.items():
            assert torch.equal(seen[name], expected[name])
            wanted = restrained(seen[name], original, strength=strength)
            torch.testing.assert_close(evaluated[name], wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(module.evaluated[-1]["layers.0.down_proj"], module.seen[-1]["layers.0.down_proj"])


def test_a_change_within_the_limit_is_seen_bit_for_bit(run, updates):
    for update in updates:
        for name in update:
            update[name] *= 1e-3
    module, _ = run(SpectrumRestraint())
    for seen, evaluated in zip(module.seen, module.evaluated, strict=True):
        assert all(torch.equal(seen[name], evaluated[name]) for name in seen)


def test_weights_are_back_bit_for_bit_after_every_validation(run, weights):
    plain, module = run()[0], run(SpectrumRestraint())[0]
    assert all(torch.equal(plain.weights[name], module.weights[name]) for name in weights)


@pytest.mark.parametrize("kind", ["validate", "test", "predict"])
def test_later_evaluations_see_restrained_weights_too(run, edit_stream, weights, kind):
    module, trainer = run(SpectrumRestraint())
    live = module.weights
    module.evaluated.clear()
    getattr(trainer, kind)(module, edit_stream(1))
    for name, original in weights.items():
        torch.testing.assert_close(module.evaluated[0][name], restrained(live[name], original), rtol=1e-5, atol=1e-5)
        assert torch.equal(module.weights[name], live[name])


def test_a_checkpoint_holds_restrained_weights_and_resumes_from_live_ones(run, weights, save_after, tmp_path):
    whole, _ = run(SpectrumRestraint(), save_after(2, tmp_path / "two.ckpt", hook="on_validation_end"))
    saved = torch.load(tmp_path / "two.ckpt", weights_only=True)
    for index, (name, original) in enumerate(weights.items()):
        torch.testing.assert_close(
            saved["state_dict"][f"masters.{index}"], restrained(whole.seen[1][name], original), rtol=1e-5, atol=1e-5
        )
    resumed, _ = run(SpectrumRestraint(), ckpt_path=tmp_path / "two.ckpt")
    assert len(resumed.seen) == 2
    for name in weights:
        assert torch.equal(resumed.weights[name], whole.weights[name])
        assert torch.equal(resumed.evaluated[-1][name], whole.evaluated[-1][name])


def test_a_checkpoint_without_a_record_of_the_first_weights_is_refused(run, weights, updates, save_after, tmp_path):
    run(save_after(2, tmp_path / "two.ckpt"))  # two updates, and nobody noted the weights before them
    with pytest.raises(MisconfigurationException, match=r"`SpectrumRestraint\(\)`.*no record.*start a new fit"):
        run(SpectrumRestraint(), ckpt_path=tmp_path / "two.ckpt")


def test_a_checkpoint_saved_within_a_validation_resumes_from_live_weights(run, weights, save_after, tmp_path):
    path = tmp_path / "within.ckpt"
    whole, _ = run(SpectrumRestraint(), save_after(2, path, hook="on_validation_batch_end"))
    saved = torch.load(path, weights_only=True)
    for index, name in enumerate(weights):
        assert torch.equal(saved["spectrum_restraint"][f"masters.{index}"], whole.seen[1][name])
        assert torch.equal(saved["state_dict"][f"masters.{index}"], whole.evaluated[1][name])


def test_a_checkpoint_evaluates_alike_in_a_process_that_has_not_fitted(
    run, watched, make_trainer, edit_stream, weights, updates, save_after, tmp_path
):
    whole, _ = run(SpectrumRestraint(), save_after(4, tmp_path / "end.ckpt", hook="on_validation_end"))
    module = watched(weights, updates)
    make_trainer(SpectrumRestraint()).validate(module, edit_stream(1), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    for name in weights:
        assert torch.equal(module.evaluated[0][name], whole.evaluated[-1][name])


def test_weights_are_back_when_a_validation_breaks_off(run, watched, make_trainer, edit_stream, weights, updates):
    module = watched(weights, updates)

    def boom(batch, batch_idx):
        raise RuntimeError("boom")

    module.validation_step = boom
    with pytest.raises(RuntimeError, match="boom"):
        make_trainer(SpectrumRestraint(), val_check_interval=1).fit(module, edit_stream(4), edit_stream(1))
    for name, weight in weights.items():
        assert torch.equal(module.weights[name], weight + updates[0][name])


def test_the_sanity_check_sees_the_weights_as_they_are(run, weights):
    callback = SpectrumRestraint()
    run(callback)
    module, _ = run(callback, num_sanity_val_steps=1)
    assert all(torch.equal(module.evaluated[0][name], weights[name]) for name in weights)


def test_swapped_holds_restrained_weights_and_nests(run, weights):
    callback = SpectrumRestraint()
    module, _ = run(callback)
    live, name = module.weights, "layers.0.down_proj"
    wanted = restrained(live[name], weights[name])
    with callback.swapped(module):
        with callback.swapped(module):
            torch.testing.assert_close(module.weights[name], wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.weights[name], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(module.weights[name], live[name])


def test_swapped_swaps_back_after_an_error(run):
    callback = SpectrumRestraint()
    module, _ = run(callback)
    live = module.weights
    with pytest.raises(RuntimeError, match="boom"), callback.swapped(module):
        raise RuntimeError("boom")
    assert all(torch.equal(module.weights[name], live[name]) for name in live)


def test_logs_the_share_of_the_change_that_was_removed(run, weights, recording_logger):
    module, _ = run(SpectrumRestraint(), logger=recording_logger)
    shares = []
    for name, original in weights.items():
        change = module.seen[-1][name] - original
        kept = restrain_spectrum(change, float(spectral_norm(original)))
        shares.append(float((change - kept).norm() ** 2 / change.norm() ** 2))
    assert recording_logger.series("prune/removed")[-1] == pytest.approx(sum(shares) / 2, rel=1e-4)
    assert min(shares) > 0


@pytest.mark.parametrize("arguments", [{"project_cumulative_ratio": 1.0}, {"project_strength": 2.0}], ids=str)
def test_bad_arguments_are_refused_as_they_were_written(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=rf"SpectrumRestraint\({name}={value}\)"):
        SpectrumRestraint(**arguments)
