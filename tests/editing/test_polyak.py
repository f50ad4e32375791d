"""Polyak's steps: no learning rate, fewer evaluations, and never beyond the bound."""

from dataclasses import replace

import pytest
import torch

from sphere_pl.editing.output_targets import optimize_outputs
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.editing.walks import PolyakWalk
from sphere_pl.errors import UserError


def test_a_step_is_as_long_as_the_loss_has_to_fall_over_the_gradient():
    base = torch.full((2, 4), 100.0)
    walk = PolyakWalk(base, stop_loss=0.4, longest=0.15)
    gradient = torch.tensor([[2.0, 0, 0, 0], [0, 0.5, 0, 0]])
    walk.step(gradient, torch.tensor([2.2, 1.2]), torch.full((2, 1), 1e6))
    torch.testing.assert_close(walk.shift.detach(), torch.tensor([[-1.0, 0, 0, 0], [0, -2.0, 0, 0]]))
    walk.step(torch.zeros(2, 4), torch.tensor([0.0, 0.0]), torch.full((2, 1), 1e6))  # half of the last step follows
    torch.testing.assert_close(walk.shift.detach(), torch.tensor([[-1.5, 0, 0, 0], [0, -3.0, 0, 0]]))


def test_no_step_is_longer_than_a_share_of_the_state_and_no_shift_than_its_bound():
    walk = PolyakWalk(torch.full((1, 4), 1.0), stop_loss=0.4, longest=0.15)  # norm 2
    walk.step(torch.tensor([[1e-6, 0, 0, 0]]), torch.tensor([5.0]), torch.tensor([[0.2]]))
    assert walk.shift.norm().item() == pytest.approx(0.2)
    walk = PolyakWalk(torch.full((1, 4), 1.0), stop_loss=0.4, longest=0.15)
    walk.step(torch.tensor([[1e-6, 0, 0, 0]]), torch.tensor([5.0]), torch.tensor([[10.0]]))
    assert walk.shift.norm().item() == pytest.approx(0.3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_it_gets_below_the_stop_loss_in_fewer_evaluations_than_adam(tiny_lm, requests, family):
    lm = tiny_lm(family)
    common = {"steps": 60, "clamp": 4.0, "kl_weight": 0.0, "stop_loss": 6.2}
    adam, polyak = (
        optimize_targets(lm, requests[:3], [""], 1, TargetSettings(**common, **own))
        for own in ({}, {"optimizer": "polyak"})
    )
    assert (polyak.loss < 6.2)[adam.loss < 6.2].all()
    assert polyak.steps.mean() <= adam.steps.mean()


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2"])
def test_where_a_norm_lies_behind_the_matrices_steps_are_short(tiny_lm, requests, family):
    lm = tiny_lm(family)
    settings = TargetSettings(optimizer="polyak", steps=2, clamp=4.0, stop_loss=1e-3)  # two evaluations, one step
    sites = lm.sites([1])  # the output of a second matrix would change by the first one's as well
    blank, found = (
        optimize_outputs(lm, requests[:3], [""], sites, replace(settings, steps=steps)).outputs for steps in (1, 2)
    )
    shift = ((found - blank) / blank.square().mean(2, keepdim=True).sqrt()).flatten(1).norm(dim=1)
    width = blank[0].numel() ** 0.5  # the norm of outputs in units of their rms
    assert (shift > 0).all()
    assert (shift <= 0.0251 * width).all()


def test_a_learning_rate_beside_it_is_refused():
    with pytest.raises(UserError, match="optimizer adam"):
        TargetSettings(optimizer="polyak", learning_rate=0.1)
    with pytest.raises(UserError, match="adam or polyak"):
        TargetSettings(optimizer="sgd")
