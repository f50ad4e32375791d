"""Shared beginnings: every sequence can be read off its row, and sees its own tokens only."""

import random

import pytest
import torch

from sphere_pl.model.prefix_tree import batch_trees, prefix_trees


@pytest.fixture(params=range(5))
def sequences(request):
    """Random sequences over few tokens, so that many begin alike; some are equal, some are beginnings of others."""
    rng = random.Random(request.param)
    return [[rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in range(60)]


@pytest.mark.parametrize("width", [0, 10, 64, 10_000])
def test_every_sequence_stands_on_a_path_of_one_row(sequences, width):
    found = {}
    for tree in prefix_trees(sequences, width):
        assert len(tree.ids) <= max(width, *map(len, sequences))
        for number, path in tree.paths.items():
            assert number not in found
            found[number] = [tree.ids[place] for place in path]
            assert [tree.positions[place] for place in path] == list(range(len(path)))
    assert found == dict(enumerate(sequences))


def test_each_beginning_is_there_once(sequences):
    (tree,) = prefix_trees(sequences, 10_000)
    beginnings = {tuple(s[:stop]) for s in sequences for stop in range(1, len(s) + 1)}
    assert len(tree.ids) == len(beginnings)


def test_nothing_is_shared_at_width_zero(sequences):
    assert sorted(tree.ids for tree in prefix_trees(sequences, 0)) == sorted(sequences)


def test_a_token_attends_to_the_tokens_before_it_in_its_own_sequences(sequences):
    trees = prefix_trees(sequences, 40)
    ids, mask, positions = batch_trees(trees, 9, torch.float32, torch.device("cpu"))
    assert mask.shape == (len(trees), 1, ids.shape[1], ids.shape[1])
    for row, tree in enumerate(trees):
        expected = torch.eye(ids.shape[1], dtype=torch.bool)  # padding sees itself
        for path in tree.paths.values():
            for depth, place in enumerate(path):
                expected[place, path[: depth + 1]] = True
        assert torch.equal(mask[row, 0] == 0, expected)
        assert bool((mask[row, 0][~expected] < -1e30).all())
        length = len(tree.ids)
        assert ids[row, :length].tolist() == tree.ids
        assert positions[row, :length].tolist() == tree.positions
