"""What a stream leaves of what it asked for, against least squares over all of it at once."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.arrival import Arrival, arrival, compositions, markdown
from sphere_pl.methods.memit import MEMIT

ROOT = Path(__file__).parents[2]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(keys, moment, weight, dimensions):
    """What one matrix holds: least squares over all facts together, in float64."""
    asked = normal(len(keys), dimensions).double()
    asked = asked / asked.norm(dim=1, keepdim=True)
    held = torch.linalg.solve(weight * moment.double() + keys.double().T @ keys.double(), keys.double().T @ asked)
    there = keys.double() @ held
    missing = (asked - there).square().sum(1).mean()
    return (there * asked).sum(1).mean(), missing, torch.trace(held.T @ moment.double() @ held)


def test_a_method_that_remembers_ends_where_least_squares_over_all_facts_ends():
    keys, moment = normal(30, 12), torch.diag(torch.linspace(0.1, 2, 12))
    found = arrival(MEMIT(second_moment_weight=3.0, remember_past=True), [keys], [moment], batch_size=7, dimensions=5)
    assert found[2:] == pytest.approx([float(each) for each in reference(keys, moment, 3.0, 5)], rel=1e-3)


def test_a_method_that_forgets_keeps_less_of_its_first_batches():
    keys, moment = normal(60, 24), torch.eye(24)
    remembers = arrival(MEMIT(second_moment_weight=1.0, remember_past=True), [keys], [moment], batch_size=10)
    forgets = arrival(MEMIT(second_moment_weight=1.0), [keys], [moment], batch_size=10)
    assert forgets.first == pytest.approx(remembers.first)
    assert forgets.last > remembers.last
    assert forgets.missing > 2 * remembers.missing


def test_more_matrices_take_less_from_ordinary_text_for_what_they_give():
    keys, moment = [normal(60, 24, seed=seed) for seed in range(3)], torch.eye(24)
    alone, together = (
        arrival(MEMIT(second_moment_weight=20.0, remember_past=True), some, [moment] * len(some), batch_size=20)
        for some in (keys[:1], keys)
    )
    assert together.share > alone.share
    assert together.disturbance / together.share < alone.disturbance / alone.share


def test_the_table_has_a_line_for_each_composition_and_the_page_what_was_measured():
    rows = {
        name: Arrival(**each) for name, each in json.loads((ROOT / "benchmarks" / "arrival.json").read_text()).items()
    }
    assert list(rows) == list(compositions())
    page = (ROOT / "docs" / "large-runs.md").read_text(encoding="utf-8")
    assert f"<!-- arrival -->\n{markdown(rows)}\n<!-- /arrival -->" in page
