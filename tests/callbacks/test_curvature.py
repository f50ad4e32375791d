"""CrispEdit's projection against the curvature written out as one large matrix."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import nn

from sphere_callbacks import CurvatureProjection, Loop, RelativeMask, record_factors
from sphere_callbacks.functional import curvature_basis, project_low_curvature


def moment(size, seed):
    rows = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (rows * torch.linspace(2, 0.3, size, dtype=torch.float64)).T @ rows / len(rows)


def symmetric(size, seed):
    found = moment(size, seed)
    return found @ found.T


def reference(update, a, b, ratio, strength):
    """Eigenvectors of the whole Kronecker product, those of the largest eigenvalues taken out."""
    values, vectors = torch.linalg.eigh(torch.kron(b, a))
    values, vectors = values.flip(0), vectors.flip(1)
    count = next(k for k in range(1, len(values) + 1) if values[:k].sum() > ratio * values.sum())
    inside = vectors[:, :count]
    flat = update.flatten()
    return (flat - strength * inside @ (inside.T @ flat)).view_as(update)


@pytest.fixture
def factors(weights):
    return {n: (symmetric(w.shape[1], i), symmetric(w.shape[0], 9 + i)) for i, (n, w) in enumerate(weights.items())}


@pytest.mark.parametrize(("ratio", "strength"), [(0.0, 1.0), (0.5, 1.0), (0.9, 0.7), (0.99, 1.0)])
def test_the_projection_is_that_of_the_large_matrix(ratio, strength):
    a, b, update = symmetric(5, 0), symmetric(4, 1), moment(5, 2)[:4]
    found = project_low_curvature(update, curvature_basis(a, b, ratio), strength)
    torch.testing.assert_close(found, reference(update, a, b, ratio, strength), rtol=0, atol=1e-10)


def test_projecting_twice_is_projecting_once_and_nothing_curved_is_left():
    a, b, update = symmetric(5, 0), symmetric(4, 1), moment(5, 2)[:4]
    basis = curvature_basis(a, b, 0.8)
    once = project_low_curvature(update, basis)
    torch.testing.assert_close(project_low_curvature(once, basis), once)
    assert float((basis.outputs.T @ once @ basis.inputs)[basis.high].abs().max()) < 1e-12


def test_without_curvature_nothing_is_taken_away():
    update = moment(5, 2)[:4]
    basis = curvature_basis(torch.zeros(5, 5).double(), symmetric(4, 1), 0.9)
    assert not basis.high.any()
    assert torch.equal(project_low_curvature(update, basis), update)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_batch_adds_the_projected_update(run, weights, updates, factors, transposed):
    module, _ = run(CurvatureProjection(0.8, factors=factors), transposed=transposed)
    for name, weight in weights.items():
        expected = weight.double()
        for update, seen in zip(updates, module.seen, strict=True):
            expected = expected + reference(update[name].double(), *factors[name], 0.8, 1.0)
            torch.testing.assert_close(seen[name].double(), expected, rtol=0, atol=1e-5)


def test_a_weight_in_half_precision_is_projected_as_exactly_as_its_update_allows(
    make_editing, make_trainer, edit_stream, weights, updates, factors
):
    half = {name: weight.bfloat16() for name, weight in weights.items()}
    callback, seen = CurvatureProjection(0.8, factors=factors), []

    class Spy(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.extend(p.grad.clone() for p in pl_module.parameters() if p.grad is not None)

    module = make_editing(half, [{name: update.bfloat16() for name, update in updates[0].items()}])
    make_trainer(callback, Spy()).fit(module, edit_stream(1))
    for (name, update), found in zip(module.updates[0].items(), seen, strict=True):
        expected = -reference(update.double(), *factors[name], 0.8, 1.0)
        # Each entry is rounded once, to eight bits, and nothing else is.
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)


def test_what_is_removed_of_a_small_update_does_not_vanish_in_half_precision(
    make_editing, make_trainer, edit_stream, weights, updates, factors
):
    small = {name: (1e-3 * update).half() for name, update in updates[0].items()}
    removed = []
    for dtype in (torch.float16, torch.float64):
        module = make_editing(
            {n: w.half().to(dtype) for n, w in weights.items()}, [{n: u.to(dtype) for n, u in small.items()}]
        )
        trainer = make_trainer(CurvatureProjection(0.8, factors=factors))
        trainer.fit(module, edit_stream(1))
        removed.append(float(trainer.callback_metrics["curvature/removed"]))
    assert removed[0] == pytest.approx(removed[1], rel=0.01)


def test_strength_zero_changes_no_bit(run, weights, factors):
    plain, zero = run()[0], run(CurvatureProjection(strength=0.0, factors=factors))[0]
    assert all(torch.equal(plain.weights[name], zero.weights[name]) for name in weights)


def test_the_module_is_asked_for_factors(run, make_editing, weights, factors, monkeypatch):
    asked = []
    monkeypatch.setattr(
        make_editing, "curvature_factors", lambda self, tokens: asked.append(tokens) or factors, raising=False
    )
    given = run(CurvatureProjection(0.8, factors=factors))[0].weights
    found = run(CurvatureProjection(0.8, tokens=77))[0].weights
    assert asked == [77]
    assert all(torch.equal(given[name], found[name]) for name in weights)


def test_logs_what_was_removed(run, recording_logger, factors, updates, weights):
    run(CurvatureProjection(0.8, factors=factors), logger=recording_logger)
    left = [
        reference(updates[0][n].double(), *factors[n], 0.8, 1.0).norm() ** 2 / updates[0][n].double().norm() ** 2
        for n in weights
    ]
    assert recording_logger.series("curvature/removed")[0] == pytest.approx(1 - float(sum(left)) / 2, rel=1e-4)


def test_factors_of_a_module_that_takes_its_input_by_name_are_the_same():
    layer, rows, found = nn.Linear(6, 5), torch.randn(8, 6), []
    for given in ([[rows], {}], [[], {"input": rows}]):
        with record_factors({"weight": layer}) as factors:
            layer(*given[0], **given[1]).square().sum().backward()
        found.append(factors.moments()["weight"])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_factors_of_a_plain_module_are_those_of_the_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().requires_grad_(False)
    rows = torch.randn(8, 6, dtype=torch.float64)
    with record_factors({"0.weight": net[0]}) as factors:
        for part in rows.split(3):
            net(part).square().sum().backward()
    hidden = net[0](rows).requires_grad_()
    (gradient,) = torch.autograd.grad(net[2](torch.tanh(hidden)).square().sum(), hidden)
    a, b = factors.moments()["0.weight"]
    torch.testing.assert_close(a, rows.T @ rows / 8, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b, gradient.T @ gradient / 8, rtol=1e-5, atol=1e-6)
    assert not net[0]._forward_hooks


def test_works_in_a_loop_without_a_trainer():
    layer = nn.Linear(3, 2, bias=False)
    callback = CurvatureProjection(0.5, factors={"weight": (torch.diag(torch.tensor([9.0, 1.0, 1.0])), torch.eye(2))})
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    loop = Loop([optimizer])
    callback.on_train_start(loop, layer)
    layer.weight.grad = torch.ones(2, 3)
    callback.on_before_optimizer_step(loop, layer, optimizer)
    torch.testing.assert_close(layer.weight.grad[:, 0], torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.weight.grad[:, 1:], torch.ones(2, 2))


def test_a_backward_pass_that_never_came_is_named():
    with record_factors({"w": nn.Linear(2, 2)}) as factors:
        pass
    with pytest.raises(RuntimeError, match="No gradient reached w"):
        factors.moments()


def test_weights_without_factors_are_refused(run, factors):
    with pytest.raises(MisconfigurationException, match="record_factors"):
        run(CurvatureProjection())
    with pytest.raises(MisconfigurationException, match="found none"):
        run(CurvatureProjection(factors={}))
    turned = {name: (b, a) for name, (a, b) in factors.items()}
    with pytest.raises(MisconfigurationException, match="needs factors of shapes"):
        run(CurvatureProjection(factors=turned))


def test_a_mask_after_it_is_refused(run, factors):
    with pytest.raises(MisconfigurationException, match="after `CurvatureProjection`"):
        run(CurvatureProjection(factors=factors), RelativeMask())


@pytest.mark.parametrize("argument", [{"cumulative_ratio": 1.0}, {"strength": 2}, {"tokens": 1}])
def test_arguments_out_of_range_are_refused(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        CurvatureProjection(**argument)


def test_what_is_no_moment_is_refused():
    with pytest.raises(ValueError, match="finite square"):
        curvature_basis(torch.ones(2, 3), torch.eye(2), 0.5)
    with pytest.raises(ValueError, match="transposed"):
        project_low_curvature(torch.ones(2, 3), curvature_basis(torch.eye(2), torch.eye(3), 0.5))


def test_integer_updates_are_refused_and_not_cut_off():
    basis = curvature_basis(torch.eye(2), torch.eye(2), 0.5)
    with pytest.raises(TypeError, match="`update` must have a floating dtype"):
        project_low_curvature(torch.ones(2, 2, dtype=torch.int64), basis)


def test_moments_in_half_precision_are_decomposed_in_float32():
    moments = [symmetric(4, seed).to(torch.bfloat16) for seed in (0, 1)]
    basis, expected = curvature_basis(*moments, 0.5), curvature_basis(*(each.float() for each in moments), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(basis, expected, strict=True))
