import torch

from sphere_pl.model.batching import micro_batches, pad


def test_padding_covers_every_row_on_the_right():
    ids, mask = pad([[1, 2, 3], [4]], 9, torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_micro_batches_hold_every_row_once_and_stay_within_the_budget():
    lengths = [5, 3, 9, 4, 4, 1, 30]
    groups = micro_batches(lengths, max_tokens=12)
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(max(lengths[i] for i in group) * len(group) <= 12 for group in groups if len(group) > 1)
