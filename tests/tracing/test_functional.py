"""The arithmetic of causal tracing on numbers that can be checked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sphere_pl.tracing.functional import (
    ROLES,
    average,
    by_role,
    indirect_effects,
    subject_noise,
    suggest_layers,
    token_roles,
    windows,
)


def names(subject, after):
    return [ROLES[role] for role in token_roles(subject, after)]


def test_every_token_has_the_role_of_its_place():
    assert names(4, 4) == [
        "first subject token", "middle subject tokens", "middle subject tokens", "last subject token",
        "first subsequent token", "further tokens", "further tokens", "last token",
    ]  # fmt: skip
    assert names(2, 2) == ["first subject token", "last subject token", "first subsequent token", "last token"]
    assert names(1, 1) == ["last subject token", "last token"]
    assert names(2, 0) == ["first subject token", "last subject token"]


@given(subject=st.integers(1, 9), after=st.integers(0, 9))
def test_no_token_is_left_without_a_role(subject, after):
    roles = token_roles(subject, after)
    assert len(roles) == subject + after
    assert roles == sorted(roles)
    assert roles.count(2) == 1


def test_a_window_lies_around_its_layer_and_ends_with_the_model():
    for layers, width in ((48, 10), (30, 6), (7, 3), (4, 1), (3, 9)):
        start, stop = windows(layers, width)
        for layer in range(layers):
            # the authors' bounds
            expected = range(max(0, layer - width // 2), min(layers, layer - (-width // 2)))
            assert range(int(start[layer]), int(stop[layer])) == expected


def test_noise_has_the_scale_asked_for_and_follows_its_generator():
    def noise(seed):
        return subject_noise(50, 4, 100, 3.0, torch.Generator().manual_seed(seed))

    assert noise(0).shape == (50, 4, 100)
    assert float(noise(0).std()) == pytest.approx(3.0, rel=0.02)
    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))


def test_an_indirect_effect_is_the_mean_gain_over_samples():
    restored, corrupted = torch.rand(3, 5, 4, 2), torch.tensor([0.1, 0.3])
    expected = (restored[1, 2, 3, 0] - 0.1 + restored[1, 2, 3, 1] - 0.3) / 2
    torch.testing.assert_close(indirect_effects(restored, corrupted)[1, 2, 3], expected)


def test_tokens_of_one_role_count_as_one():
    effects = torch.arange(24.0).reshape(1, 8, 3)
    found = by_role(effects, torch.tensor(token_roles(4, 4)))
    assert found.shape == (1, 6, 3)
    torch.testing.assert_close(found[0, 1], (effects[0, 1] + effects[0, 2]) / 2)
    torch.testing.assert_close(found[0, 5], effects[0, 7])
    assert by_role(effects[:, :2], torch.tensor([2, 5]))[0, [0, 1, 3, 4]].isnan().all()


def test_an_average_leaves_out_facts_that_lack_a_role():
    values = torch.tensor([[0.2, math.nan], [0.4, 1.0], [0.9, 3.0]], dtype=torch.float64)
    found = average(values)
    torch.testing.assert_close(found.mean, torch.tensor([0.5, 2.0], dtype=torch.float64))
    expected = [torch.tensor([0.2, 0.4, 0.9]).std() / math.sqrt(3), torch.tensor([1.0, 3.0]).std() / math.sqrt(2)]
    torch.testing.assert_close(found.standard_error, torch.stack(expected).double())
    assert found.facts.tolist() == [3, 2]
    assert average(values[:1]).standard_error.isnan().all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12), st.data())
def test_the_suggested_layers_are_neighbours_whose_effects_sum_highest(effects, data):
    count = data.draw(st.integers(1, len(effects)))
    found = suggest_layers(torch.tensor(effects, dtype=torch.float32), count)
    sums = [sum(effects[first : first + count]) for first in range(len(effects) - count + 1)]
    assert found == list(range(found[0], found[0] + count))
    assert found[0] == sums.index(max(sums))
