import logging

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from sphere_callbacks import HypersphericalEnergy, Loop, SparseProjection
from sphere_callbacks._weights import edited_weights
from sphere_callbacks.functional import principal_directions, project_out


class Experts(torch.nn.Module):
    """Two experts in one block, and a matrix."""

    def __init__(self):
        super().__init__()
        self.experts = torch.nn.Parameter(torch.ones(2, 3, 6))
        self.down = torch.nn.Linear(3, 3)


def test_a_pattern_that_matches_a_block_of_matrices_says_that_it_is_left_alone(caplog):
    model = Experts()
    loop = Loop([torch.optim.SGD(model.parameters())])
    energy = HypersphericalEnergy(modules="*")
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks"):
        energy.on_train_start(loop, model)
    assert list(energy.initial) == ["down.weight"]
    (said,) = [record.getMessage() for record in caplog.records if "no matrix" in record.getMessage()]
    assert said.startswith("`HypersphericalEnergy(modules='*')` leaves alone what is no matrix: experts [2, 3, 6].")


def test_without_a_pattern_blocks_are_passed_over_in_silence(caplog):
    model = Experts()
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks._weights"):
        HypersphericalEnergy().on_train_start(Loop([torch.optim.SGD(model.parameters())]), model)
    assert caplog.records == []


def test_a_pattern_that_matches_only_a_block_is_refused_with_its_shape():
    model = Experts()
    loop = Loop([torch.optim.SGD(model.parameters())])
    with pytest.raises(MisconfigurationException, match=r"hold: down\.weight\. No matrix is experts \[2, 3, 6\]\."):
        HypersphericalEnergy(modules="experts").on_train_start(loop, model)


def test_a_weight_that_two_optimizers_share_is_one_weight():
    model = torch.nn.Linear(3, 2)
    optimizers = [torch.optim.SGD(model.parameters()), torch.optim.AdamW(model.parameters())]
    energy = HypersphericalEnergy()
    energy.on_train_start(Loop(optimizers), model)
    assert list(energy.initial) == ["weight"]


@pytest.mark.parametrize("when", ["layer", "step"])
def test_each_of_two_optimizers_that_share_a_weight_is_projected(when):
    model = torch.nn.Linear(6, 5, bias=False)
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0) for _ in range(2)]
    loop, projection = Loop(optimizers), SparseProjection(when=when)
    projection.on_train_start(loop, model)
    expected, update = model.weight.detach().clone(), torch.arange(30.0).view(5, 6) / 30
    for optimizer in optimizers:
        expected += project_out(update, principal_directions(expected, 0.5), 0.5)
        model.weight.grad = -update
        projection.on_before_optimizer_step(loop, model, optimizer)
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), expected)


def test_two_weights_in_unnamed_groups_that_the_module_does_not_know_are_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)])
    with pytest.raises(MisconfigurationException, match="several weights named weight"):
        HypersphericalEnergy().on_train_start(Loop([optimizer]), torch.nn.Linear(2, 2))


def test_biases_are_listed_on_request_and_never_transposed():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "fan_in_fan_out": True}])
    found = edited_weights([optimizer], model, any_shape=True)
    assert [(each.name, each.fan_in_fan_out) for each in found] == [("weight", True), ("bias", False)]


@pytest.mark.parametrize("modules", [["*down_proj*"], 3])
def test_a_pattern_that_is_no_string_is_refused(modules):
    with pytest.raises(TypeError, match=r"`SparseProjection\(modules=.*must be one shell-style pattern"):
        SparseProjection(modules=modules)


@pytest.mark.parametrize("wrapped", ["fabric", "compiled", "compiled inside", "checkpointed"])
def test_a_wrapped_module_has_the_names_and_patterns_of_the_bare_one(wrapped):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    bare = [found.name for found in edited_weights([torch.optim.SGD(model.parameters())], model)]
    if wrapped == "fabric":
        model = Fabric(accelerator="cpu", devices=1).setup(model)
    elif wrapped == "compiled":
        model = torch.compile(model, backend="eager")
    elif wrapped == "compiled inside":
        model[1] = torch.compile(model[1], backend="eager")
    else:
        model[1] = checkpoint_wrapper(model[1])
    optimizers = [torch.optim.SGD(model.parameters())]
    assert len(set(bare) & {name for name, _ in model.named_parameters()}) < 2
    assert [found.name for found in edited_weights(optimizers, model)] == bare == ["0.weight", "1.0.weight"]
    assert [found.name for found in edited_weights(optimizers, model, "1.*")] == ["1.0.weight"]


def test_a_layer_of_ones_own_that_ends_like_a_wrapper_keeps_its_name():
    model = torch.nn.ModuleDict({"my_orig_mod": torch.nn.Linear(3, 2)})
    assert [found.name for found in edited_weights([torch.optim.SGD(model.parameters())], model)] == [
        "my_orig_mod.weight"
    ]
