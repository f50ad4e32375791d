"""EAMET's alignment against loops over pairs in float64, and in the optimisation of targets."""

from dataclasses import replace

import pytest
import torch

from sphere_pl.editing.alignment import Alignment
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.editing.targets import optimize_targets
from sphere_pl.errors import UserError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(keys, shifts, weight, neighbors, own):
    """The penalty of shift number `own`."""
    n = len(keys)
    others = [j for j in range(n) if j != own]
    cos = torch.nn.functional.cosine_similarity
    of_keys = torch.stack([cos(keys[own], keys[j], dim=0) for j in others])
    of_shifts = torch.stack([cos(shifts[own], shifts[j].detach(), dim=0) for j in others])
    p_k, p_r = of_keys.softmax(0), of_shifts.softmax(0)
    nearest = of_keys.argsort(descending=True)[:neighbors]
    squares = (of_shifts - of_keys)[nearest].square().mean()
    return weight * ((p_r * (p_r.log() - p_k.log())).sum() + squares)


def test_the_penalty_and_its_gradient_are_those_of_the_pairs():
    keys, shifts = normal(6, 9), normal(6, 5, seed=1).requires_grad_()
    found = Alignment(keys, 0.7, neighbors=3)
    expected = torch.stack([reference(keys, shifts, 0.7, 3, own) for own in range(6)])
    torch.testing.assert_close(found.penalty(shifts), expected, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(expected.sum(), shifts)
    torch.testing.assert_close(found.gradient(shifts), gradient, rtol=0, atol=1e-6)


def test_shifts_that_lie_as_their_keys_do_are_left_alone():
    keys = normal(5, 8)
    found = Alignment(keys, 1.0)
    torch.testing.assert_close(found.penalty(3 * keys), torch.zeros(5).double(), rtol=0, atol=1e-6)
    assert float(found.gradient(3 * keys).abs().max()) < 1e-5


@pytest.mark.parametrize("shifts", [torch.zeros(4, 3), torch.tensor([[1.0, 0, 0]] + [[0.0, 0, 0]] * 3)])
def test_what_has_no_direction_yet_is_not_aligned(shifts):
    found = Alignment(normal(4, 8), 1.0)
    assert torch.equal(found.penalty(shifts), torch.zeros(4))
    assert torch.equal(found.gradient(shifts), torch.zeros(4, 3))


def test_one_shift_alone_has_no_neighbours():
    assert torch.equal(Alignment(normal(1, 8), 1.0).gradient(torch.ones(1, 3)), torch.zeros(1, 3))


def test_aligned_targets_lie_more_as_their_keys_do(tiny_lm, requests):
    lm, settings = tiny_lm(), TargetSettings(steps=12, learning_rate=0.3, clamp=4.0, stop_loss=0.0, kl_weight=0.0)
    keys = normal(4, 16, seed=5).float()
    keys[1] = keys[0] + 0.3 * keys[1]  # near keys, whose targets are others
    start = optimize_targets(lm, requests, [""], 1, replace(settings, steps=1)).values
    penalty = []
    for weight in (0.0, 5.0):
        found = optimize_targets(lm, requests, [""], 1, replace(settings, align=weight), keys=keys)
        penalty.append(float(Alignment(keys, 1.0).penalty(found.values - start).sum()))
    assert penalty[1] < 0.8 * penalty[0]


def test_without_alignment_keys_change_no_bit(tiny_lm, requests):
    lm, settings = tiny_lm(), TargetSettings(steps=3, learning_rate=0.3)
    plain = optimize_targets(lm, requests, [""], 1, settings)
    given = optimize_targets(lm, requests, [""], 1, settings, keys=normal(4, 16).float())
    assert torch.equal(plain.values, given.values)


@pytest.mark.parametrize("arguments", [{"align": -1.0}, {"align": 1.0, "optimizer": "polyak"}])
def test_arguments_that_do_not_go_together_are_refused(arguments):
    with pytest.raises(UserError, match=r"targets\.align"):
        TargetSettings(**arguments)
