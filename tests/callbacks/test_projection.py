import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils._python_dispatch import TorchDispatchMode

from sphere_callbacks import SparseProjection
from sphere_callbacks.functional import principal_directions, principal_share, project_out, project_out_both

SETTINGS = [
    {"when": "layer"},
    {"when": "step"},
    {"when": "layer", "basis": "pretrained"},
    {"when": "step", "refresh_every": 2},
]


def simulate(weights, updates, ratio=0.5, strength=0.5, basis="current", refresh_every=1):
    """What an editing run with the projection amounts to, written out."""
    weights = {name: weight.clone() for name, weight in weights.items()}
    bases, history = {}, []
    for batch, update in enumerate(updates):
        for name, weight in weights.items():
            if batch == 0 or (basis == "current" and batch % refresh_every == 0):
                bases[name] = principal_directions(weight, ratio)
            weights[name] = weight + project_out(update[name], bases[name], strength)
        history.append(dict(weights))
    return history


@pytest.fixture
def updates(make_updates, weights):
    return make_updates(weights, batches=5)


@pytest.mark.parametrize("when", ["layer", "step"])
@pytest.mark.parametrize("options", [{}, {"basis": "pretrained"}, {"refresh_every": 2}, {"refresh_every": 3}], ids=str)
def test_every_batch_adds_the_projected_update(run, weights, updates, when, options):
    module, trainer = run(SparseProjection(when=when, **options))
    assert trainer.global_step == 5
    for seen, expected in zip(module.seen, simulate(weights, updates, **options), strict=True):
        for name in weights:
            torch.testing.assert_close(seen[name], expected[name], rtol=0, atol=1e-5)


def test_the_projection_changes_the_run(run, weights):
    plain, projected = run()[0], run(SparseProjection())[0]
    for name in weights:
        assert not torch.allclose(plain.weights[name], projected.weights[name], atol=1e-3)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_strength_zero_changes_no_bit_and_still_measures(run, weights, options):
    plain = run()[0]
    projected, trainer = run(SparseProjection(strength=0.0, **options))
    for name in weights:
        assert torch.equal(plain.weights[name], projected.weights[name])
    assert float(trainer.callback_metrics["projection/removed"]) == 0
    assert float(trainer.callback_metrics["projection/in_principal"]) > 0


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_conv1d_weights_are_edited_as_transposed_linear_ones(run, weights, options):
    linear, conv1d = run(SparseProjection(**options))[0], run(SparseProjection(**options), transposed=True)[0]
    for name in weights:
        torch.testing.assert_close(conv1d.weights[name], linear.weights[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("when", ["layer", "step"])
def test_both_sides_keeps_updates_out_of_input_and_output_directions(run, weights, updates, when):
    module, _ = run(SparseProjection(sides="both", strength=1.0, when=when))
    for name, weight in weights.items():
        U, V = principal_directions(weight, 0.5), principal_directions(weight.T, 0.5)
        expected = weight + project_out_both(updates[0][name], U, V)
        torch.testing.assert_close(module.seen[0][name], expected, rtol=0, atol=1e-5)


def test_step_mode_leaves_gradients_raw_inside_the_loop(make_editing, make_trainer, edit_stream, weights, updates):
    gradients = []

    class Spy(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.extend(p.grad.clone() for g in optimizer.param_groups for p in g["params"] if p.grad is not None)

    module = make_editing(weights, updates)
    make_trainer(SparseProjection(when="step"), Spy()).fit(module, edit_stream(1))
    assert [torch.equal(g, -u) for g, u in zip(gradients, updates[0].values(), strict=True)] == [True, True]


def test_step_mode_takes_directions_from_the_weight_before_the_step_in_automatic_optimisation(
    make_plain, make_trainer, regression_batches
):
    pl.seed_everything(0, verbose=False)
    module = make_plain("AdamW")
    start = module.net[0].weight.detach().clone()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    make_trainer().fit(module, regression_batches[:1])
    change = module.net[0].weight.detach() - start
    module.load_state_dict(state)
    make_trainer(SparseProjection(when="step", modules="net.0.*")).fit(module, regression_batches[:1])
    expected = start + project_out(change, principal_directions(start, 0.5), 0.5)
    torch.testing.assert_close(module.net[0].weight.detach(), expected, rtol=0, atol=1e-6)


def test_layer_mode_projects_the_gradient_in_a_module_that_knows_nothing_of_editing(
    make_plain, make_trainer, regression_batches
):
    pl.seed_everything(0, verbose=False)
    module = make_plain("SGD")
    start = module.net[0].weight.detach().clone()
    bias = module.net[0].bias.detach().clone()
    make_trainer(SparseProjection(strength=1.0)).fit(module, regression_batches[:1])
    change, U = module.net[0].weight.detach() - start, principal_directions(start, 0.5)
    assert float(change.norm()) > 1e-3
    assert float(principal_share(change, U)) < 1e-9
    assert not torch.equal(module.net[0].bias.detach(), bias)


def test_logs_are_means_over_the_weights(run, weights, updates, recording_logger):
    run(SparseProjection(strength=0.5), logger=recording_logger)
    U = {name: principal_directions(weight, 0.5) for name, weight in weights.items()}
    inside = [principal_share(updates[0][name], U[name]) for name in weights]
    expected = {
        "in_principal": sum(inside) / 2,
        "removed": 0.25 * sum(inside) / 2,
        "chance": sum(u.shape[1] / u.shape[0] for u in U.values()) / 2,
        "rank": sum(u.shape[1] for u in U.values()) / 2,
    }
    for name, value in expected.items():
        series = recording_logger.series(f"projection/{name}")
        assert len(series) == 5
        assert series[0] == pytest.approx(float(value), rel=1e-4)


def test_modules_limits_the_projection_to_matching_names(run, weights, updates):
    module, _ = run(SparseProjection(modules="layers.1.*"))
    plain = run()[0]
    assert torch.equal(module.weights["layers.0.down_proj"], plain.weights["layers.0.down_proj"])
    assert not torch.equal(module.weights["layers.1.down_proj"], plain.weights["layers.1.down_proj"])


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(run):
    with pytest.raises(MisconfigurationException, match=r"'\*up_proj\*'.*layers\.0\.down_proj, layers\.1\.down_proj"):
        run(SparseProjection(modules="*up_proj*"))


@pytest.mark.parametrize(
    "options", [{"basis": "pretrained"}, {"refresh_every": 3}, {"refresh_every": 3, "when": "step"}, {}], ids=str
)
def test_a_resumed_run_makes_the_same_updates_bit_for_bit(
    make_editing, make_trainer, edit_stream, weights, updates, run, options, tmp_path, save_after
):
    whole = run(SparseProjection(**options), save_after(2, tmp_path / "two.ckpt"))[0]
    second = make_editing(weights, updates)
    callback = SparseProjection(**options)
    make_trainer(callback).fit(second, edit_stream(5), ckpt_path=tmp_path / "two.ckpt")
    assert len(second.seen) == 3
    for name in weights:
        assert torch.equal(second.weights[name], whole.weights[name])


def test_pretrained_directions_are_not_taken_from_weights_that_a_checkpoint_has_updated(
    make_editing, make_trainer, edit_stream, weights, updates, run, tmp_path, save_after
):
    run(SparseProjection(), save_after(2, tmp_path / "two.ckpt"))
    trainer = make_trainer(SparseProjection(basis="pretrained"))
    with pytest.raises(MisconfigurationException, match=r"basis='pretrained'\)`.*no record"):
        trainer.fit(make_editing(weights, updates), edit_stream(5), ckpt_path=tmp_path / "two.ckpt")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"basis": "pretrained"}, {"basis": "pretrained", "cumulative_ratio": 0.9}),
        ({"basis": "pretrained", "strength": 1.0}, {"basis": "pretrained", "strength": 1.0, "sides": "both"}),
        ({"basis": "pretrained", "strength": 1.0, "sides": "both"}, {"basis": "pretrained", "strength": 0.1}),
        ({"refresh_every": 3}, {"basis": "pretrained"}),
    ],
)
def test_pretrained_directions_that_other_arguments_recorded_are_refused(run, save_after, tmp_path, first, second):
    run(SparseProjection(**first), save_after(2, tmp_path / "two.ckpt"))
    with pytest.raises(MisconfigurationException, match="resumes a fit that was recorded by"):
        run(SparseProjection(**second), ckpt_path=tmp_path / "two.ckpt")


def test_kept_directions_that_other_arguments_found_are_found_anew(run, weights, updates, save_after, tmp_path):
    whole = run(SparseProjection(refresh_every=5), save_after(2, tmp_path / "two.ckpt"))[0]
    resumed = run(SparseProjection(cumulative_ratio=0.9, refresh_every=5), ckpt_path=tmp_path / "two.ckpt")[0]
    for name, start in whole.seen[1].items():
        expected = start + project_out(updates[2][name], principal_directions(start, 0.9), 0.5)
        torch.testing.assert_close(resumed.seen[0][name], expected, rtol=0, atol=1e-5)


def test_a_state_of_before_the_arguments_were_kept_is_taken_as_it_is(run, weights):
    earlier = SparseProjection(basis="pretrained")
    run(earlier)
    state = earlier.state_dict()
    del state["arguments"]
    later = SparseProjection(basis="pretrained")
    later.load_state_dict(state)
    assert run(later)[0].seen  # not refused
    assert all(torch.equal(later._bases[name][0], state["bases"][name][0]) for name in weights)


def test_shares_of_small_updates_do_not_vanish_in_half_precision(
    make_editing, make_trainer, edit_stream, make_weights, make_updates
):
    """Squares of numbers below 2e-4 are zero in float16."""
    found = []
    for dtype in (torch.float16, torch.float64):
        weights = {name: weight.to(dtype) for name, weight in make_weights(dtype=torch.float16).items()}
        update = {name: value.to(dtype) for name, value in make_updates(weights, 1, scale=1e-4)[0].items()}
        trainer = make_trainer(SparseProjection())
        trainer.fit(make_editing(weights, [update]), edit_stream(1))
        found.append([float(trainer.callback_metrics[f"projection/{key}"]) for key in ("removed", "in_principal")])
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_a_second_fit_takes_its_own_pretrained_directions(
    make_editing, make_trainer, edit_stream, make_weights, updates
):
    callback = SparseProjection(basis="pretrained")
    for seed in (0, 5):
        weights = make_weights(seed=seed)
        module = make_editing(weights, updates)
        make_trainer(callback).fit(module, edit_stream(5))
        for name, expected in simulate(weights, updates, basis="pretrained")[-1].items():
            torch.testing.assert_close(module.weights[name], expected, rtol=0, atol=1e-5)


def test_repeated_fits_do_not_pile_up_optimizer_hooks(make_plain, make_trainer, regression_batches):
    callback = SparseProjection(when="step")
    counts = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            counts.append(len(trainer.optimizers[0]._optimizer_step_post_hooks))

    optimizers = []
    module = make_plain()
    for _ in range(2):
        trainer = make_trainer(callback, Count())
        trainer.fit(module, regression_batches[:1])
        optimizers.append(trainer.optimizers[0])
    assert counts == [1, 1]
    assert [len(optimizer._optimizer_step_post_hooks) for optimizer in optimizers] == [0, 0]


def test_hooks_are_removed_when_a_fit_breaks_off(make_plain, make_trainer, regression_batches):
    class Boom(pl.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("boom")

    trainer = make_trainer(SparseProjection(when="step"), Boom())
    with pytest.raises(RuntimeError, match="boom"):
        trainer.fit(make_plain(), regression_batches)
    assert len(trainer.optimizers[0]._optimizer_step_post_hooks) == 0
    assert len(trainer.optimizers[0]._optimizer_step_pre_hooks) == 0


def test_a_nan_weight_stops_the_run_with_a_reason(run, weights):
    weights["layers.0.down_proj"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or an infinity"):
        run(SparseProjection())


@pytest.mark.parametrize("basis", ["current", "pretrained"])
def test_a_nan_weight_is_named(run, weights, basis):
    weights["layers.1.down_proj"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or an infinity") as raised:
        run(SparseProjection(basis=basis))
    assert raised.value.__notes__ == ["This is about `layers.1.down_proj`."]


def test_pretrained_directions_in_a_bare_loop_need_the_start_hook(make_editing, weights, updates):
    module = make_editing(weights, updates)
    optimizer = module.configure_optimizers()
    module.masters[0].grad = torch.ones_like(module.masters[0])
    with pytest.raises(RuntimeError, match="Call `on_train_start`"):
        SparseProjection(basis="pretrained").on_before_optimizer_step(None, module, optimizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cumulative_ratio": 1.0}, r"cumulative_ratio=1\.0"),
        ({"cumulative_ratio": -0.5}, r"cumulative_ratio=-0\.5"),
        ({"strength": 1.5}, r"strength=1\.5"),
        ({"basis": "initial"}, "basis='initial'.*'current', 'pretrained'"),
        ({"sides": "output"}, "sides='output'"),
        ({"when": "batch"}, "when='batch'"),
        ({"refresh_every": 0}, "refresh_every=0"),
        ({"basis": "pretrained", "refresh_every": 2}, "contradicts itself"),
        ({"sides": "both", "strength": 0.5}, "Set strength=1.0"),
    ],
)
def test_bad_arguments_are_refused_as_they_were_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseProjection(**arguments)


class Products(TorchDispatchMode):
    """Rows, inner size and columns of every matrix product."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.found.append((*args[0].shape, args[1].shape[1]))
        return func(*args, **(kwargs or {}))


def test_an_update_meets_its_directions_once_there_and_once_back(make_weights):
    """Products by operations: the Gram matrix, the way to its directions, and two with the update."""
    (weight,) = make_weights([(60, 100)]).values()
    projection = SparseProjection()
    with Products() as products:
        projection._project("w", weight, torch.ones_like(weight))
    r = int(projection._measured[0][-1])
    n, d = weight.shape
    orthonormal = (r, d, r)  # looked at once
    assert products.found == [(n, d, n), (d, n, r), orthonormal, (n, d, r), (n, r, d)]
