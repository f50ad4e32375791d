import numpy as np
import pytest
import torch

from sphere_pl.evaluation.metrics import Efficacy, Generalization, NeighborhoodAgreement, Specificity

ROWS = [  # record, predicted, target
    (0, [1, 2], [1, 2]),
    (0, [1, 3], [1, 2]),
    (5, [7, 9], [7, -100]),
    (5, [8, 9], [7, -100]),
    (5, [7, 1], [7, -100]),
    (2, [4, 4], [4, 4]),
]


def tensors(rows):
    return (
        torch.tensor([p for _, p, _ in rows]),
        torch.tensor([t for _, _, t in rows]),
        torch.tensor([r for r, _, _ in rows]),
    )


def reference(rows):
    """Mean and standard error over records, written out."""
    records = {}
    for record, predicted, target in rows:
        hit = all(p == t for p, t in zip(predicted, target, strict=True) if t != -100)
        records.setdefault(record, []).append(float(hit))
    means = np.array([np.mean(hits) for hits in records.values()])
    return means.mean(), means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("kind", [Efficacy, Generalization, Specificity, NeighborhoodAgreement])
def test_mean_over_records_of_the_mean_over_prompts(kind):
    metric = kind()
    metric.update(*tensors(ROWS))
    mean, error = reference(ROWS)
    assert metric.compute().item() == pytest.approx(mean)
    assert metric.standard_error().item() == pytest.approx(error)


def test_several_updates_are_one():
    metric = Efficacy()
    metric.update(*tensors(ROWS[:2]))
    metric.update(*tensors(ROWS[2:]))
    assert metric.compute().item() == pytest.approx(reference(ROWS)[0])


def test_merging_the_states_of_two_processes_is_one_process():
    one, two = Efficacy(), Efficacy()
    one.update(*tensors(ROWS[:2]))
    two.update(*tensors(ROWS[2:]))
    one.merge_state(two)
    assert one.compute().item() == pytest.approx(reference(ROWS)[0])
    assert one.standard_error().item() == pytest.approx(reference(ROWS)[1])


def test_reset_forgets():
    metric = Efficacy()
    metric.update(*tensors(ROWS))
    metric.reset()
    metric.update(*tensors(ROWS[5:]))
    assert metric.compute().item() == 1.0
