import logging
import math
from itertools import pairwise

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from sphere_callbacks import CollapseGuard, HypersphericalEnergy

BAD = 3  # the batch, counted from 1, whose update is destructive


@pytest.fixture
def updates(make_updates, weights):
    updates = make_updates(weights, batches=6, scale=0.01)
    updates[BAD - 1]["layers.1.down_proj"] *= 5000
    return updates


@pytest.fixture
def run(make_editing, make_trainer, edit_stream, weights, updates):
    class Validated(make_editing):
        def validation_step(self, batch, batch_idx):
            self.log("val/norm", max(p.norm() for p in self.masters), batch_size=1)

    def edit(*callbacks, ckpt_path=None, validate_every=1, **options):
        module = Validated(weights, updates)
        trainer = make_trainer(*callbacks, val_check_interval=validate_every, **options)
        trainer.fit(module, edit_stream(6), edit_stream(1), ckpt_path=ckpt_path)
        return module, trainer

    return edit


def without(weights, updates, *left_out):
    expected = {name: weight.clone() for name, weight in weights.items()}
    for batch, update in enumerate(updates, start=1):
        if batch not in left_out:
            expected = {name: weight + update[name] for name, weight in expected.items()}
    return expected


def test_warn_names_the_batch_the_weight_and_the_limit_and_goes_on(run, weights, updates, caplog):
    guard = CollapseGuard(max_weight_growth=2.0)
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.guard"):
        module, trainer = run(guard)
    assert trainer.global_step == 6
    assert guard.crossings == 4
    assert guard.skipped == 0
    first = caplog.records[0].getMessage()
    assert first.startswith(f"After batch {BAD}, `layers.1.down_proj` has ")
    assert "(limit 2); the run continues." in first
    expected = without(weights, updates)
    assert all(torch.equal(module.weights[name], expected[name]) for name in weights)


def test_stop_ends_the_run_after_the_bad_batch(run):
    guard = CollapseGuard(max_weight_growth=2.0, action="stop")
    _, trainer = run(guard)
    assert trainer.global_step == BAD
    assert guard.last_reason.endswith("the run stops.")


def test_rollback_leaves_out_exactly_the_bad_batch(run, weights, updates):
    guard = CollapseGuard(max_weight_growth=2.0, action="rollback")
    module, trainer = run(guard)
    expected = without(weights, updates, BAD)
    assert trainer.global_step == 6
    assert (guard.crossings, guard.skipped) == (1, 1)
    assert guard.last_reason.endswith(f"the weights are back to where they were after batch {BAD - 1}.")
    assert all(torch.equal(module.weights[name], expected[name]) for name in weights)


def test_rollback_counts_each_of_several_bad_batches_once(run, weights, updates):
    updates[BAD]["layers.0.down_proj"] *= 5000
    guard = CollapseGuard(max_weight_growth=2.0, action="rollback")
    module, _ = run(guard)
    expected = without(weights, updates, BAD, BAD + 1)
    assert (guard.crossings, guard.skipped) == (2, 2)
    assert all(torch.equal(module.weights[name], expected[name]) for name in weights)


def test_energy_change_of_the_same_batch_is_seen(run, weights, updates):
    guard = CollapseGuard(max_energy_change=0.02, action="rollback")
    module, _ = run(HypersphericalEnergy(), guard)
    assert guard.skipped == 1
    assert f"After batch {BAD}, `energy/change` is" in guard.last_reason
    expected = without(weights, updates, BAD)
    assert all(torch.equal(module.weights[name], expected[name]) for name in weights)


def test_nan_in_a_weight_is_always_caught(run, weights, updates):
    updates[BAD - 1]["layers.1.down_proj"][0, 0] = math.nan
    guard = CollapseGuard(action="rollback")
    module, _ = run(guard)
    assert "`layers.1.down_proj` has NaN or infinity" in guard.last_reason
    expected = without(weights, updates, BAD)
    assert all(torch.equal(module.weights[name], expected[name]) for name in weights)


def test_metrics_of_a_validation_roll_back_to_the_last_good_validation(run, weights, updates):
    guard = CollapseGuard(above={"val/*": 60.0}, action="rollback", check="validation")
    module, _ = run(guard, validate_every=2)  # validates after 2, 4 and 6: the bad batch takes 3 and 4 with it
    assert (guard.crossings, guard.skipped) == (1, 2)
    assert guard.last_reason.startswith("After batch 4, `val/norm` is ")
    expected = without(weights, updates, BAD, BAD + 1)
    assert all(torch.equal(module.weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"above": {"val/norm": 0.0}}, "(upper limit 0)"),
        ({"below": {"val/norm": 1e9}}, "(lower limit 1e+09)"),
    ],
)
def test_limits_of_metrics_work_from_both_sides(run, limits, said):
    guard = CollapseGuard(**limits, check="validation")
    run(guard)
    assert guard.crossings == 6
    assert said in guard.last_reason


def test_a_metric_of_nan_crosses_its_limit(run, make_editing, make_trainer, edit_stream, weights, updates):
    class Nan(make_editing):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(math.nan), batch_size=1)

    guard = CollapseGuard(above={"val/loss": 1.0}, check="validation")
    make_trainer(guard, val_check_interval=1).fit(Nan(weights, updates), edit_stream(1), edit_stream(1))
    assert "`val/loss` is nan" in guard.last_reason


class NaNLoss:
    """Mixed into a module: the loss of the second batch is NaN, and so are all gradients."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if batch_idx == 1 else loss


def test_rollback_undoes_what_a_nan_did_to_biases(make_plain, make_trainer, regression_batches):
    torch.manual_seed(0)
    guarded, without = type("Guarded", (NaNLoss, make_plain), {})("SGD"), make_plain("SGD")
    without.load_state_dict(guarded.state_dict())
    guard = CollapseGuard(action="rollback")
    make_trainer(guard).fit(guarded, regression_batches)
    regression_batches.batches.pop(1)
    make_trainer().fit(without, regression_batches)
    assert (guard.crossings, guard.skipped) == (1, 1)
    for name, value in without.state_dict().items():
        assert torch.equal(guarded.state_dict()[name], value), name


def test_a_rollback_of_a_nan_is_the_end_of_it_also_for_the_moments_of_an_optimizer(
    make_plain, make_trainer, regression_batches
):
    module, guard = type("Guarded", (NaNLoss, make_plain), {})("AdamW"), CollapseGuard(action="rollback")
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append(pl_module.net[0].weight.detach().clone())

    trainer = make_trainer(guard, Watch())
    trainer.fit(module, regression_batches)
    assert (guard.crossings, guard.skipped) == (1, 1)
    assert [torch.equal(*pair) for pair in pairwise(seen)] == [True, False, False]  # batch 2 undone, then on
    moments = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
    assert moments
    assert all(bool(value.isfinite().all()) for value in moments)


def test_moments_that_are_finite_stay_after_a_rollback(make_plain, make_trainer, regression_batches):
    trainer = make_trainer(CollapseGuard(max_weight_growth=1e-3, action="rollback"))
    trainer.fit(make_plain("AdamW"), regression_batches)
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}


def test_a_nan_in_a_bias_is_noticed_before_it_is_taken_for_good(make_plain, make_trainer, regression_batches):
    class NaNBias(make_plain):
        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 1:
                self.net[2].bias.grad.fill_(math.nan)

    module, guard = NaNBias("SGD"), CollapseGuard(action="rollback")
    make_trainer(guard).fit(module, regression_batches)
    assert guard.last_reason.startswith("After batch 2, `net.2.bias` has NaN or infinity")
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_parameters_outside_the_pattern_are_not_rolled_back(make_plain, make_trainer, regression_batches):
    module, guard = (
        type("Guarded", (NaNLoss, make_plain), {})("SGD"),
        CollapseGuard(action="rollback", modules="net.0.*"),
    )
    make_trainer(guard).fit(module, regression_batches)
    finite = {name: bool(value.isfinite().all()) for name, value in module.state_dict().items()}
    assert finite == {"net.0.weight": True, "net.0.bias": True, "net.2.weight": False, "net.2.bias": False}


def test_a_guard_of_more_modules_resumes_from_one_of_fewer(
    make_plain, make_trainer, regression_batches, save_after, tmp_path
):
    narrow = CollapseGuard(action="rollback", modules="net.0.*")
    make_trainer(narrow, save_after(2, tmp_path / "two.ckpt")).fit(make_plain("SGD"), regression_batches)
    wide = CollapseGuard(action="rollback", max_weight_growth=1e-3)
    make_trainer(wide).fit(make_plain("SGD"), regression_batches, ckpt_path=tmp_path / "two.ckpt")
    assert wide.skipped == 2


@pytest.mark.parametrize(("name", "warnings"), [("val/nrom", 1), ("val/*", 0)])
def test_a_limit_that_guarded_nothing_is_named_at_the_end(run, caplog, name, warnings):
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.guard"):
        run(CollapseGuard(above={name: math.inf}, check="validation"))
    said = [record.getMessage() for record in caplog.records if "no check found a metric" in record.getMessage()]
    assert len(said) == warnings
    assert all(f"limits for {name}, " in message and "Logged were: val/norm." in message for message in said)


def test_only_metrics_with_a_limit_are_read():
    class Unread:
        def __float__(self):
            raise AssertionError("read")

    guard = CollapseGuard(above={"val/*": 1.0})
    assert list(guard._crossed({"energy/a": Unread(), "val/b": torch.tensor(2.0)})) == ["`val/b` is 2 (upper limit 1)"]


def test_growth_is_not_rounded_to_the_precision_of_the_weight(make_editing, make_trainer, edit_stream):
    weight = torch.ones(4, 4, dtype=torch.bfloat16)
    update = torch.zeros_like(weight)
    update[0, 0] = 0.03125  # the norm grows by 0.2 %, less than bfloat16 can tell at 4
    guard = CollapseGuard(max_weight_growth=1.001)
    make_trainer(guard).fit(make_editing({"w": weight}, [{"w": update}]), edit_stream(1))
    assert guard.crossings == 1


def test_a_guard_whose_limits_hold_changes_nothing(run, weights):
    plain, _ = run()
    module, _ = run(CollapseGuard(max_weight_growth=1e6, action="rollback"))
    assert all(torch.equal(plain.weights[name], module.weights[name]) for name in weights)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_resumed_run_guards_as_the_whole_one(run, weights, save_after, tmp_path, step):
    options = {"max_weight_growth": 2.0, "action": "rollback"}
    whole = CollapseGuard(**options)
    module, _ = run(whole, save_after(step, tmp_path / "saved.ckpt"))
    resumed = CollapseGuard(**options)
    again, _ = run(resumed, ckpt_path=tmp_path / "saved.ckpt")
    assert all(torch.equal(again.weights[name], module.weights[name]) for name in weights)
    assert (resumed.crossings, resumed.skipped) == (whole.crossings, whole.skipped) == (1, 1)
    assert resumed.last_reason == whole.last_reason


def test_the_saved_state_holds_weights_only_for_rollback(run):
    guard = CollapseGuard(max_weight_growth=1e6)
    run(guard)
    assert guard.state_dict()["good"] == {}


def test_guards_of_batches_and_of_validations_can_stand_side_by_side(run):
    guards = CollapseGuard(max_weight_growth=2.0), CollapseGuard(above={"val/norm": 60.0}, check="validation")
    run(*guards)
    assert [guard.crossings for guard in guards] == [4, 4]


def test_works_in_a_module_that_knows_nothing_of_editing(make_plain, make_trainer, regression_batches):
    guard = CollapseGuard(max_weight_growth=1e-3, action="rollback")
    module = make_plain("SGD")
    start, bias = module.net[0].weight.detach().clone(), module.net[0].bias.detach().clone()
    make_trainer(guard).fit(module, regression_batches)
    assert guard.skipped == 4
    assert torch.equal(module.net[0].weight.detach(), start)
    assert not torch.equal(module.net[0].bias.detach(), bias)


@pytest.mark.parametrize("order", ["missing", "behind"])
def test_watching_the_energy_needs_it_in_front(run, order):
    guard = CollapseGuard(max_energy_change=0.1)
    with pytest.raises(MisconfigurationException, match="`HypersphericalEnergy` must stand before it"):
        run(guard, *([HypersphericalEnergy()] if order == "behind" else []))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "halt"}, "action='halt'"),
        ({"check": "epoch"}, "check='epoch'"),
        ({"max_energy_change": 0.0}, r"max_energy_change=0\.0"),
        ({"max_weight_growth": -1.0}, r"max_weight_growth=-1\.0"),
    ],
)
def test_bad_arguments_are_refused_as_they_were_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        CollapseGuard(**arguments)
