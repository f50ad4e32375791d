import math

import pytest
import torch

from sphere_pl.evaluation.metrics import ProbabilityMagnitude, ProbabilitySuccess

ROWS = [(3, -1.0, -2.0), (3, -2.0, -1.0), (3, -0.5, -4.0), (8, -1.0, -1.0), (5, -0.1, -9.0)]  # record, wanted, other


def columns(rows):
    records, wanted, other = zip(*rows, strict=True)
    return torch.tensor(wanted), torch.tensor(other), torch.tensor(records)


def macro(value):
    """Mean over records of the mean over rows."""
    records = {}
    for record, wanted, other in ROWS:
        records.setdefault(record, []).append(value(wanted, other))
    return sum(sum(values) / len(values) for values in records.values()) / len(records)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ProbabilitySuccess, lambda wanted, other: float(wanted > other)),
        (ProbabilityMagnitude, lambda wanted, other: math.exp(wanted) - math.exp(other)),
    ],
)
def test_mean_over_records_of_the_mean_over_prompts(kind, value):
    one, two, whole = kind(), kind(), kind()
    whole.update(*columns(ROWS))
    one.update(*columns(ROWS[:3]))
    two.update(*columns(ROWS[3:]))
    one.merge_state(two)
    for metric in (whole, one):
        assert metric.compute().item() == pytest.approx(macro(value))
        assert metric.count == 3


def test_a_tie_is_no_success():
    metric = ProbabilitySuccess()
    metric.update(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([0]))
    assert metric.compute() == 0
