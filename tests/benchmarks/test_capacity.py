"""Rank and interference of keys against what least squares really misses."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.capacity import Capacity, capacity, markdown, table

ROOT = Path(__file__).parents[2]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_independent_keys_miss_nothing_and_repeated_ones_their_share():
    keys = torch.cat([normal(6, 12), normal(6, 12)[:3]])
    found = capacity([keys], ridges=[1e-9])
    assert (found.keys, found.dimensions, found.rank) == (9, 12, 6)
    assert found.missing[1e-9] == pytest.approx(3 / 9, abs=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_what_is_missing_is_what_least_squares_misses_of_independent_changes(ridge):
    """In the mean over random changes, the part of them along their own, `sum(r · r') / sum(r · r)`, is short of 1."""
    keys, wanted = normal(10, 7), normal(10, 20_000, seed=1)
    scaled = keys / keys.square().sum(1).mean().sqrt()
    update = torch.linalg.solve(scaled.T @ scaled + ridge * torch.eye(7).double(), scaled.T @ wanted)
    made = scaled @ update
    assert capacity([keys], [ridge]).missing[ridge] == pytest.approx(
        1 - float((made * wanted).sum() / wanted.square().sum()), abs=5e-3
    )


def test_several_matrices_have_the_dimensions_of_all():
    keys = [normal(30, 12, seed=seed) for seed in range(3)]
    alone, together = capacity(keys[:1], [1e-9]), capacity(keys, [1e-9])
    assert (alone.rank, together.rank) == (12, 30)
    assert alone.missing[1e-9] == pytest.approx(18 / 30, abs=1e-6)
    assert together.missing[1e-9] == pytest.approx(0, abs=1e-6)


def test_matrices_with_the_same_keys_have_those_of_one():
    keys = normal(30, 12)
    assert capacity([keys, 5 * keys]).rank == 12


def test_orthogonal_keys_do_not_disturb_one_another_and_equal_ones_do():
    assert capacity([torch.eye(5)]).crosstalk == pytest.approx(0)
    assert capacity([torch.ones(5, 3)]).crosstalk == pytest.approx(4)
    assert capacity([torch.eye(5)]).effective == pytest.approx(5)
    assert capacity([torch.ones(5, 3)]).effective == pytest.approx(1)


def test_the_table_has_each_matrix_and_each_number_of_them():
    rows = table([4, 5, 6], [normal(9, 5, seed=seed) for seed in range(3)])
    assert [name for name, _ in rows] == ["layer 4", "layer 5", "layer 6", "2 from layer 4", "3 from layer 4"]
    assert markdown(rows).count("\n") == 6


def test_the_page_has_what_was_measured():
    held = json.loads((ROOT / "benchmarks" / "capacity.json").read_text())
    missing = {name: {float(ridge): share for ridge, share in row["missing"].items()} for name, row in held.items()}
    rows = [(name, Capacity(**{**row, "missing": missing[name]})) for name, row in held.items()]
    page = (ROOT / "docs" / "large-runs.md").read_text(encoding="utf-8")
    assert f"<!-- capacity -->\n{markdown(rows)}\n<!-- /capacity -->" in page
