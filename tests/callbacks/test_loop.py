"""The callbacks in a loop of one's own: bare PyTorch, and Fabric."""

import pytest
import torch
from lightning.fabric import Fabric

from sphere_callbacks import (
    CollapseGuard,
    EnergyCorrelation,
    HypersphericalEnergy,
    Loop,
    PerturbationBound,
    PrincipalDirections,
    PrincipalShares,
    RelativeMask,
    SparseProjection,
    SpectrumRestraint,
)
from sphere_callbacks.functional import hyperspherical_energy, principal_directions, principal_share, project_out


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def train(model, optimizer, loop, call, batches, validate=False):
    """A training loop that calls the hooks where a Trainer would."""
    call("on_train_start", loop, model)
    for index, (inputs, outputs) in enumerate(batches):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), outputs).backward()
        call("on_before_optimizer_step", loop, model, optimizer)
        optimizer.step()
        loop.global_step += 1
        call("on_train_batch_end", loop, model, None, (inputs, outputs), index)
        if validate:
            call("on_validation_epoch_start", loop, model)
            loop.callback_metrics["val/loss"] = torch.nn.functional.mse_loss(model(inputs), outputs).detach()
            call("on_validation_epoch_end", loop, model)
            call("on_validation_end", loop, model)
    call("on_train_end", loop, model)


def caller(callbacks):
    def call(hook, *args):
        for callback in callbacks:
            getattr(callback, hook)(*args)

    return call


@pytest.mark.parametrize("when", ["layer", "step"])
def test_projection_in_a_bare_loop_matches_the_same_thing_written_with_functions(regression_batches, when):
    by_callback, by_hand = make_model(), make_model()
    optimizer = torch.optim.SGD(by_callback.parameters(), lr=0.1)
    callbacks = [SparseProjection(strength=0.8, modules="0.*", when=when)]
    train(by_callback, optimizer, Loop([optimizer]), caller(callbacks), regression_batches)

    optimizer, weight = torch.optim.SGD(by_hand.parameters(), lr=0.1), by_hand[0].weight
    for inputs, outputs in regression_batches:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(by_hand(inputs), outputs).backward()
        weight.grad = project_out(weight.grad, principal_directions(weight, 0.5), 0.8)
        optimizer.step()
    for got, expected in zip(by_callback.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_every_callback_runs_in_a_bare_loop_and_logs(regression_batches, recording_logger):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    loop = Loop([optimizer], loggers=[recording_logger])
    guard, correlation = CollapseGuard(max_energy_change=10.0, action="rollback"), EnergyCorrelation(min_points=3)
    callbacks = [
        RelativeMask(0.5),
        SparseProjection(),
        HypersphericalEnergy(),
        PerturbationBound(),
        PrincipalDirections(),
        PrincipalShares(),
        SpectrumRestraint(),
        correlation,
        guard,
    ]
    train(model, optimizer, loop, caller(callbacks), regression_batches, validate=True)
    prefixes = {name.split("/")[0] for name in loop.callback_metrics}
    expected = {
        "rect",
        "projection",
        "energy",
        "bound",
        "principal",
        "prune",
        "shares",
        "spearman",
        "spearman_diff",
        "val",
    }
    assert prefixes == expected
    assert [step for step, values in recording_logger.metrics if "energy/mean" in values] == [1, 2, 3, 4]
    assert guard.last_reason == ""
    assert len(correlation.series["val/loss"]) == 4


def test_step_projection_of_strength_zero_leaves_even_a_step_that_cannot_be_added_up():
    class Jump(torch.optim.SGD):
        """Lands where ``start + (now - start)`` rounds to 0."""

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.fill_(1e-10)

    model = torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = Jump(model.parameters(), lr=1.0)
    SparseProjection(strength=0.0, when="step").on_train_start(Loop([optimizer]), model)
    optimizer.step()
    assert torch.equal(model.weight.detach(), torch.full((2, 3), 1e-10))


def test_starting_twice_leaves_one_hook_on_the_optimizer():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = SparseProjection(when="step")
    for _ in range(2):
        callback.on_train_start(Loop([optimizer]), model)
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_guard_asks_a_bare_loop_to_stop(regression_batches):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = Loop([optimizer])
    guard = CollapseGuard(max_weight_growth=1e-3, action="stop")
    train(model, optimizer, loop, caller([guard]), regression_batches)
    assert loop.should_stop


def test_callbacks_run_through_fabric(regression_batches, recording_logger):
    projection, energy = SparseProjection(strength=1.0, modules="*0.weight"), HypersphericalEnergy(modules="*0.weight")
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[projection, energy], loggers=recording_logger)
    model = make_model()
    start = model[0].weight.detach().clone()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loop = Loop([optimizer], fabric.loggers)
    train(model, optimizer, loop, fabric.call, regression_batches[:1])
    weight = next(value for name, value in model.named_parameters() if name.endswith("0.weight")).detach()
    assert float((weight - start).norm()) > 1e-3
    assert float(principal_share(weight - start, principal_directions(start, 0.5))) < 1e-9
    assert list(energy.latest.values()) == pytest.approx([float(hyperspherical_energy(weight))])
    assert recording_logger.series("energy/mean") == pytest.approx([float(hyperspherical_energy(weight)) / 20])


def test_step_projection_through_fabric(regression_batches):
    model = make_model()
    start = model[0].weight.detach().clone()
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[SparseProjection(strength=1.0, when="step")])
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    train(model, optimizer, Loop([optimizer]), fabric.call, regression_batches[:1])
    weight = next(value for name, value in model.named_parameters() if name.endswith("0.weight")).detach()
    assert float((weight - start).norm()) > 1e-3
    assert float(principal_share(weight - start, principal_directions(start, 0.5))) < 1e-9
