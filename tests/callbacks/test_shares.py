import logging
import math

import pytest
import torch

from sphere_callbacks import PrincipalShares, SparseProjection
from sphere_callbacks.functional import principal_directions


@pytest.fixture
def updates(make_updates, weights):
    return make_updates(weights, batches=4, scale=0.5)


def share(update, weight, ratio):
    directions = principal_directions(weight.double(), ratio)
    return float((update.double() @ directions).norm() ** 2 / update.double().norm() ** 2), directions.shape


@pytest.mark.parametrize("transposed", [False, True])
def test_every_update_is_measured_against_its_own_weight(run, weights, updates, recording_logger, transposed):
    module, _ = run(PrincipalShares([0.3, 0.6]), logger=recording_logger, transposed=transposed)
    before = [weights, *module.seen[:-1]]
    for name in weights:
        for ratio in (0.3, 0.6):
            now = [share(u[name], w[name], ratio) for u, w in zip(updates, before, strict=True)]
            series = recording_logger.series(f"shares/update_{ratio}/{name}")
            assert series == pytest.approx([found for found, _ in now], rel=1e-3)
            chance = recording_logger.series(f"shares/chance_{ratio}/{name}")
            assert chance == pytest.approx([r / d for _, (d, r) in now])
            first = [share(u[name], weights[name], ratio)[0] for u in updates]
            assert recording_logger.series(f"shares/start_{ratio}/{name}") == pytest.approx(first, rel=1e-3)


def test_the_accumulated_change_is_measured_against_the_start(run, weights, recording_logger):
    module, _ = run(PrincipalShares([0.5]), logger=recording_logger)
    for name, start in weights.items():
        changes = [seen[name] - start for seen in module.seen]
        expected = [share(change, start, 0.5)[0] for change in changes]
        assert recording_logger.series(f"shares/accumulated_0.5/{name}") == pytest.approx(expected, rel=1e-3)
        norms = [float(change.norm() / start.norm()) for change in changes]
        assert recording_logger.series(f"shares/drift/{name}") == pytest.approx(norms, rel=1e-4)


def test_the_mean_over_weights_has_no_name(run, weights, recording_logger):
    run(PrincipalShares([0.5]), logger=recording_logger)
    each = [recording_logger.series(f"shares/update_0.5/{name}") for name in weights]
    assert recording_logger.series("shares/update_0.5") == pytest.approx([sum(x) / 2 for x in zip(*each, strict=True)])


def test_it_sees_what_stands_before_it_in_the_list(run, recording_logger):
    cut = SparseProjection(0.5, strength=1.0)
    run(cut, PrincipalShares([0.5]), logger=recording_logger)
    assert max(recording_logger.series("shares/update_0.5")) < 1e-6
    recording_logger.metrics.clear()
    run(PrincipalShares([0.5]), SparseProjection(0.5, strength=1.0), logger=recording_logger)
    assert min(recording_logger.series("shares/update_0.5")) > 0.1


def test_watching_changes_no_bit(run):
    plain, watched = run()[0], run(PrincipalShares())[0]
    for name in plain.weights:
        assert torch.equal(plain.weights[name], watched.weights[name])


def test_a_resumed_run_counts_from_the_first_start(run, recording_logger, save_after, tmp_path):
    run(PrincipalShares(), save_after(2, tmp_path / "two.ckpt"), logger=recording_logger)
    whole = recording_logger.series("shares/drift")
    recording_logger.metrics.clear()
    run(PrincipalShares(), logger=recording_logger, ckpt_path=tmp_path / "two.ckpt")
    assert recording_logger.series("shares/drift") == pytest.approx(whole[2:])


def test_nan_is_logged_and_reported_once(run, updates, caplog, recording_logger):
    updates[1]["layers.0.down_proj"][0, 0] = torch.nan
    with caplog.at_level(logging.WARNING, logger="sphere_callbacks.shares"):
        run(PrincipalShares(), logger=recording_logger)
    assert [record.getMessage() for record in caplog.records] == [
        "`layers.0.down_proj` has NaN or infinity: its principal directions are undefined."
    ]
    for kind in ("update_0.5", "chance_0.5", "accumulated_0.5"):
        broken = recording_logger.series(f"shares/{kind}/layers.0.down_proj")
        whole = recording_logger.series(f"shares/{kind}/layers.1.down_proj")
        assert [math.isnan(value) for value in broken] == [False, kind != "chance_0.5", True, True]
        assert not any(map(math.isnan, whole))


@pytest.mark.parametrize("ratios", [[], [1.0], [-0.1, 0.5], 0.5])
def test_ratios_out_of_range_are_refused(ratios):
    with pytest.raises(ValueError, match="PrincipalShares"):
        PrincipalShares(ratios)
