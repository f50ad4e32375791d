import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from sphere_callbacks import LayerwiseEdit


def _weights(n=3):
    return [nn.Parameter(torch.full((2, 2), float(i))) for i in range(n)]


def test_each_group_is_solved_after_the_ones_before_it_have_moved():
    weights = _weights()
    optimizer = LayerwiseEdit([{"params": [w]} for w in weights])
    seen = []

    def solve():
        seen.append([w[0, 0].item() for w in weights])
        weights[optimizer.active_group].grad = -torch.ones(2, 2)

    optimizer.step(solve)
    assert seen == [[0, 1, 2], [1, 1, 2], [1, 2, 2]]
    assert all(w.grad is None for w in weights)


def test_after_update_is_told_each_group_in_turn():
    weights, told = _weights(), []
    optimizer = LayerwiseEdit([{"params": [w]} for w in weights], after_update=told.append)

    def solve():
        weights[optimizer.active_group].grad = torch.zeros(2, 2)

    optimizer.step(solve)
    assert told == [0, 1, 2]


def test_a_missing_closure_is_refused():
    with pytest.raises(RuntimeError, match="needs a closure"):
        LayerwiseEdit(_weights(1)).step()


def test_a_missing_gradient_is_refused():
    optimizer = LayerwiseEdit([{"params": [w]} for w in _weights()])
    with pytest.raises(RuntimeError, match="group 0 has no gradient"):
        optimizer.step(lambda: None)


def test_a_stray_gradient_is_refused():
    weights = _weights()
    optimizer = LayerwiseEdit([{"params": [w]} for w in weights])

    def solve():
        weights[0].grad, weights[2].grad = torch.ones(2, 2), torch.ones(2, 2)

    with pytest.raises(RuntimeError, match="group 2 has a gradient, expected none"):
        optimizer.step(solve)
    assert torch.equal(weights[0].data, torch.zeros(2, 2))


def test_a_group_of_two_weights_is_refused():
    with pytest.raises(ValueError, match="has 2 parameters"):
        LayerwiseEdit(_weights(2))


class Plain(L.LightningModule):
    """Manual optimisation, three matrices, nothing of editing."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weights = nn.ParameterList(_weights())
        self.fired = []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def solve():
            self.weights[optimizer.active_group].grad = -torch.ones(2, 2)

        optimizer.step(solve)

    def on_before_optimizer_step(self, optimizer):
        self.fired.append([i for i, w in enumerate(self.weights) if w.grad is not None])

    def configure_optimizers(self):
        return LayerwiseEdit([{"params": [w]} for w in self.weights])


def test_lightning_fires_its_hook_for_each_layer_and_counts_one_step_a_batch(bare_trainer):
    module, trainer = Plain(), bare_trainer(max_epochs=1)
    trainer.fit(module, DataLoader([0, 1, 2, 3, 4], batch_size=None))
    assert module.fired == [[0], [1], [2]] * 5
    assert trainer.global_step == 5
    assert module.weights[0][0, 0].item() == 5
