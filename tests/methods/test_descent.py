"""Fine-tuning of one matrix, on a loss whose gradient is known."""

import torch

from sphere_pl.methods import FT, LocFTBF
from sphere_pl.methods.descent import Descent, descend

D_IN, D_OUT, N = 6, 3, 5


class Squares:
    """Loss of request i: half the squared distance of `W k_i` from `v_i`."""

    def __init__(self, weight=None):
        self.weight = torch.zeros(D_OUT, D_IN, dtype=torch.float64) if weight is None else weight
        generator = torch.Generator().manual_seed(0)
        self.keys = torch.randn(N, D_IN, generator=generator, dtype=torch.float64)
        self.values = torch.randn(N, D_OUT, generator=generator, dtype=torch.float64)
        self.asked = []

    def __len__(self):
        return N

    def loss_and_gradient(self, weight, chosen):
        self.asked.append(chosen.tolist())
        missing = self.keys[chosen] @ weight.T - self.values[chosen]
        return 0.5 * missing.square().sum(1), missing.T @ self.keys[chosen] / len(chosen)


def literal_adam(objective, weight, batches, rate):
    w, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for t, chosen in enumerate(batches, start=1):
        _, g = objective.loss_and_gradient(w, torch.tensor(chosen))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w - weight


def test_every_epoch_passes_over_all_requests_with_one_adam_step_a_mini_batch():
    weight = torch.ones(D_OUT, D_IN, dtype=torch.float64)
    objective = Squares(weight)
    found = descend(objective, Descent(0.01, 3, 2, 0.0))
    assert objective.asked == [[0, 1], [2, 3], [4]] * 3
    expected = literal_adam(Squares(), weight, [[0, 1], [2, 3], [4]] * 3, 0.01)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert (weight == 1).all()


def test_the_norm_constraint_is_a_box_around_the_weight_before_the_batch():
    weight = torch.ones(D_OUT, D_IN, dtype=torch.float64)
    found = FT(learning_rate=0.1, epochs=20, norm_constraint=0.03).update(Squares(weight), {})
    torch.testing.assert_close(found.abs().max(), torch.tensor(0.03, dtype=torch.float64))
    assert FT(norm_constraint=0.03).name == "FT-L"
    assert FT().name == "FT"


def test_fine_tuning_stops_at_the_epoch_whose_mean_loss_is_low_enough():
    objective = Squares()
    descend(objective, Descent(0.05, 1000, N, 0.05))
    epochs = len(objective.asked)
    assert 1 < epochs < 1000
    for enough, stops in ((epochs - 1, False), (epochs, True)):
        start = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
        moved = start + literal_adam(objective, start, [list(range(N))] * (enough - 1), 0.05)
        losses, _ = objective.loss_and_gradient(moved, torch.arange(N))
        assert bool(losses.mean() < 0.05) is stops


def test_a_mini_batch_that_has_converged_takes_no_step():
    objective = Squares()
    objective.values[:2] = 0
    found = descend(objective, Descent(0.05, 1, 2, 0.05))
    expected = literal_adam(objective, torch.zeros(D_OUT, D_IN, dtype=torch.float64), [[2, 3], [4]], 0.05)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_locft_bf_shuffles_anew_each_epoch_and_the_same_way_when_resumed():
    method, weight = LocFTBF(epochs=2, batch_size=2, stop_loss=0.0), torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    first, again, later = Squares(), Squares(), Squares()
    state = method.initial_state(weight, None)
    method.update(first, state)
    method.update(again, state)
    method.update(later, method.remember(later, state))
    assert first.asked == again.asked != later.asked
    epochs = [[place for chosen in half for place in chosen] for half in (first.asked[:3], first.asked[3:])]
    assert epochs[0] != epochs[1]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)


def test_locft_bf_learns_the_end_of_the_text_too_by_default():
    assert LocFTBF().end_of_text
    assert not LocFTBF(end_of_text=False).end_of_text
