import pytest
import torch

from sphere_pl.editing.running_moment import RunningMoment, gram


def keys(count, seed=0, width=40):
    """Keys of which a few directions hold nearly all."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.arange(1, width + 1).float().pow(-1.0)


@pytest.mark.parametrize("width", [1, 3, 8, 41])
def test_the_product_of_blocks_is_that_of_the_whole(width):
    rows = keys(17, width=width)
    torch.testing.assert_close(gram(rows), rows.T @ rows)


def test_the_moment_is_the_mean_over_all_keys():
    running = RunningMoment(tolerance=-1.0)
    batches = [keys(30, seed) for seed in range(4)]
    for batch in batches:
        running.take(batch)
    rows = torch.cat(batches)
    assert running.count == 120
    assert not running.settled
    torch.testing.assert_close(running.moment(), rows.T @ rows / 120)


def test_keys_are_taken_until_new_ones_reach_no_further_than_known_ones():
    running, excesses = RunningMoment(tolerance=0.2), []
    for seed in range(80):
        running.take(keys(40, seed))
        excesses.append(running.excess)
    assert running.settled
    assert excesses[1] > 0.2  # with as many keys as dimensions
    assert running.excess <= 0.2
    assert running.count in {40 * 2**power for power in range(1, 8)}


def test_text_of_another_kind_is_noticed():
    running = RunningMoment(tolerance=0.2)
    running.take(keys(400))
    running.take(keys(400, 1).flip(1))
    assert not running.settled
    assert running.excess > 1.0
