import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import Loop, SpectrumRestraint
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


def test_the_share_is_logged_as_one_of_all_ranks(run, watched, monkeypatch):
    """Lightning warns of a metric of an epoch that is not, and who fits cannot help it."""
    given, log_dict = [], watched.log_dict
    monkeypatch.setattr(watched, "log_dict", lambda self, *a, **k: given.append(k) or log_dict(self, *a, **k))
    run(SpectrumRestraint())
    assert [each["sync_dist"] for each in given] == [True] * 4


@pytest.fixture
def started():
    """Three layers and a restraint that has recorded them; then the first moves far."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    restraint = SpectrumRestraint()
    restraint.on_train_start(Loop([torch.optim.SGD(model.parameters())]), model)
    with torch.no_grad():
        model[0].weight.add_(100 * torch.eye(4))
    return restraint, model


def test_a_weight_that_cannot_be_restrained_is_named_and_leaves_the_others_as_they_were(started):
    restraint, model = started
    live = model[0].weight.detach().clone()
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="has no singular values") as raised, restraint.swapped(model):
        pass
    assert raised.value.__notes__ == ["This is about `1.weight`."]
    assert torch.equal(model[0].weight, live)


def test_a_nan_under_a_trainer_is_reported_as_it_is(run, updates):
    updates[1]["layers.0.down_proj"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="has no singular values"):
        run(SpectrumRestraint())


@pytest.mark.parametrize(("value", "said"), [(0.0, "is 0: it is all zeros"), (torch.nan, "is nan: it has NaN")])
def test_a_weight_without_a_largest_singular_value_is_refused_at_the_start(run, weights, value, said):
    weights["layers.1.down_proj"].fill_(value)
    with pytest.raises(MisconfigurationException, match=rf"`layers\.1\.down_proj` {said}.*Leave it out"):
        run(SpectrumRestraint())


def test_a_checkpoint_restrains_a_shared_weight_under_all_its_names(
    make_plain, make_trainer, regression_batches, tmp_path
):
    class Shared(make_plain):
        def __init__(self):
            super().__init__("SGD")
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))
            self.net[1].weight = self.net[0].weight

    restraint, module = SpectrumRestraint("net.0.*"), Shared()
    trainer = make_trainer(restraint)
    trainer.fit(module, regression_batches)
    with torch.no_grad():
        module.net[0].weight.add_(100 * torch.eye(6))
    trainer.save_checkpoint(tmp_path / "shared.ckpt")
    loaded = Shared()
    loaded.load_state_dict(torch.load(tmp_path / "shared.ckpt")["state_dict"])
    with restraint.swapped(module):
        assert torch.equal(loaded.net[0].weight, module.net[0].weight)
    assert loaded.net[0].weight.norm() < 50 < module.net[0].weight.norm()


def test_another_module_than_the_fitted_one_is_refused_unless_it_loads_the_checkpoint(
    run, watched, edit_stream, weights, updates, tmp_path
):
    module, trainer = run(SpectrumRestraint())
    trainer.save_checkpoint(tmp_path / "fit.ckpt")
    trainer.validate(module, edit_stream(1), verbose=False)
    other = watched(weights, updates)
    with pytest.raises(MisconfigurationException, match="before the fit of another module"):
        trainer.validate(other, edit_stream(1), verbose=False)
    trainer.validate(other, edit_stream(1), ckpt_path=tmp_path / "fit.ckpt", verbose=False)
    for name in weights:
        assert torch.equal(other.evaluated[-1][name], module.evaluated[-1][name])


def test_a_resumed_fit_restrains_only_what_it_is_asked_to(run, save_after, tmp_path):
    run(SpectrumRestraint(), save_after(2, tmp_path / "two.ckpt"))
    module, _ = run(SpectrumRestraint("layers.0.*"), ckpt_path=tmp_path / "two.ckpt")
    assert torch.equal(module.evaluated[-1]["layers.1.down_proj"], module.seen[-1]["layers.1.down_proj"])
    assert not torch.equal(module.evaluated[-1]["layers.0.down_proj"], module.seen[-1]["layers.0.down_proj"])


@pytest.mark.parametrize("arguments", [{"project_cumulative_ratio": 1.0}, {"project_strength": 2.0}], ids=str)
def test_bad_arguments_are_refused_as_they_were_written(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=rf"SpectrumRestraint\({name}={value}\)"):
        SpectrumRestraint(**arguments)
