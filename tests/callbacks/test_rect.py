import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from sphere_callbacks import RelativeMask, SparseProjection
from sphere_callbacks.functional import principal_directions, project_out, relative_mask


@pytest.fixture
def updates(make_updates, weights):
    return make_updates(weights)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_batch_adds_the_masked_update(run, weights, updates, transposed):
    module, _ = run(RelativeMask(keep=0.4), transposed=transposed)
    expected = {name: weight.clone() for name, weight in weights.items()}
    for update, seen in zip(updates, module.seen, strict=True):
        for name, weight in expected.items():
            expected[name] = weight + update[name] * relative_mask(update[name], weight, 0.4)
            torch.testing.assert_close(seen[name], expected[name], rtol=0, atol=1e-6)


def test_the_mask_acts_before_a_projection_that_stands_behind_it(run, weights, updates):
    module, _ = run(RelativeMask(), SparseProjection(0.5, 0.8))
    for name, weight in weights.items():
        masked = updates[0][name] * relative_mask(updates[0][name], weight, 0.4)
        expected = weight + project_out(masked, principal_directions(weight, 0.5), 0.8)
        torch.testing.assert_close(module.seen[0][name], expected, rtol=0, atol=1e-5)


def test_a_mask_behind_the_projection_is_refused(run):
    with pytest.raises(MisconfigurationException, match="Put `RelativeMask` first"):
        run(SparseProjection(), RelativeMask())


def test_a_mask_behind_a_projection_of_whole_steps_is_accepted_and_acts_first(run, weights, updates):
    ahead, behind = (
        run(*order)[0]
        for order in (
            (RelativeMask(), SparseProjection(when="step")),
            (SparseProjection(when="step"), RelativeMask()),
        )
    )
    assert all(torch.equal(ahead.weights[name], behind.weights[name]) for name in weights)


def test_keeping_everything_changes_no_bit(run, weights):
    plain, masked = run()[0], run(RelativeMask(keep=1.0))[0]
    assert all(torch.equal(plain.weights[name], masked.weights[name]) for name in weights)


def test_logs_shares_of_norm_and_entries(run, weights, updates, recording_logger):
    run(RelativeMask(keep=0.4), logger=recording_logger)
    masks = {name: relative_mask(updates[0][name], weight, 0.4) for name, weight in weights.items()}
    kept = [float((updates[0][n] * m).norm() ** 2 / updates[0][n].norm() ** 2) for n, m in masks.items()]
    assert recording_logger.series("rect/kept")[0] == pytest.approx(sum(kept) / 2, rel=1e-5)
    assert recording_logger.series("rect/density") == pytest.approx([25 / 60] * 3)


def test_the_norm_kept_of_a_small_update_does_not_vanish_in_half_precision(
    make_editing, make_trainer, edit_stream, weights, updates
):
    small = {name: (1e-3 * update).half() for name, update in updates[0].items()}
    kept = []
    for dtype in (torch.float16, torch.float64):
        module = make_editing(
            {n: w.half().to(dtype) for n, w in weights.items()}, [{n: u.to(dtype) for n, u in small.items()}]
        )
        trainer = make_trainer(RelativeMask(0.4))
        trainer.fit(module, edit_stream(1))
        kept.append(float(trainer.callback_metrics["rect/kept"]))
    assert kept[0] == pytest.approx(kept[1], rel=0.01)


def test_works_in_a_module_that_knows_nothing_of_editing(make_plain, make_trainer, regression_batches):
    module = make_plain("SGD")
    start = module.net[0].weight.detach().clone()
    make_trainer(RelativeMask(keep=0.2, modules="net.0.*")).fit(module, regression_batches[:1])
    changed = module.net[0].weight.detach() != start
    assert int(changed.sum()) == 7  # a fifth of 30 entries and the threshold itself


def test_a_share_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"RelativeMask\(keep=0\)"):
        RelativeMask(keep=0)


def test_a_pattern_that_matches_nothing_is_refused(run):
    with pytest.raises(MisconfigurationException, match=r"RelativeMask\(modules='q'\)"):
        run(RelativeMask(modules="q"))
