"""A module's matrices are copies of the model's own, which follow them when they are told to."""

import pytest
import torch

from sphere_pl.editing.edited_module import EditedModule


@pytest.fixture
def module(tiny_lm):
    module = EditedModule()
    module.lm = tiny_lm("gpt2", dtype=torch.bfloat16)  # which stores them transposed
    module.take_matrices([1, 2])
    return module


def test_matrices_are_float32_copies_under_the_names_of_the_models_own(module):
    stored = {site.name: site.stored for site in module.language_model.sites([1, 2])}
    assert list(module.matrices) == list(stored)
    for name, matrix in module.matrices.items():
        assert matrix.dtype == torch.float32
        assert torch.equal(matrix, stored[name].T.float())


def test_matrices_are_taken_once(module):
    edited = [weight.add_(1) for weight in module.matrices.values()]
    module.take_matrices([1, 2])
    assert len(module.weights) == 2
    assert all(torch.equal(a, b) for a, b in zip(module.weights, edited, strict=True))


def test_the_model_follows_the_matrices_when_it_is_refreshed(module):
    before = {name: matrix.clone() for name, matrix in module.matrices.items()}
    for matrix in module.matrices.values():
        matrix.add_(1)
    assert all(torch.equal(site.read(), before[site.name]) for site in module.sites)
    module.refresh_model()
    for site, weight in zip(module.sites, module.weights, strict=True):
        assert torch.equal(weight, before[site.name] + 1)
        assert torch.equal(site.read(), weight.detach().bfloat16().float())


def test_norms_are_those_of_each_matrix(module):
    expected = [torch.linalg.matrix_norm(matrix) for matrix in module.matrices.values()]
    torch.testing.assert_close(module.norms(), expected)


def test_the_optimizer_has_a_group_for_each_matrix_under_its_name(module):
    groups = module.configure_optimizers().param_groups
    assert [group["name"] for group in groups] == list(module.matrices)
    assert [group["params"][0] for group in groups] == list(module.weights)


def test_a_model_that_is_not_loaded_is_asked_for_in_vain():
    with pytest.raises(RuntimeError, match="configure_model"):
        _ = EditedModule().language_model
