"""Layers by depth: inside every model, never the last block where there is another."""

import pytest

from sphere_pl.tuning.rules import layer_at, layers_by_depth


@pytest.mark.parametrize("n_layers", range(1, 100))
def test_layers_lie_inside_the_model_ascend_and_leave_the_last_block_alone(n_layers):
    layers = layers_by_depth(range(n_layers), n_layers)
    assert layers == list(range(layers[0], layers[-1] + 1))
    assert layers[0] >= 0
    assert layers[-1] < max(1, n_layers - 1)
    assert 1 <= len(layers) <= 5


def test_layers_of_models_that_were_searched():
    assert layers_by_depth(range(30), 30) == [2, 3, 4, 5, 6]
    assert layers_by_depth(range(24), 24) == [2, 3, 4, 5]
    assert layers_by_depth(range(18), 18) == [1, 2, 3]


def test_only_editable_layers_are_chosen():
    assert layers_by_depth([0], 24) == [0]
    assert layers_by_depth([20, 21, 22, 23], 24) == [20, 21, 22]  # 23 is the last block
    assert layers_by_depth([3], 4) == [3]  # but it is the only one here
    assert layer_at([0, 1, 9], 24, 2 / 3) == [9]
