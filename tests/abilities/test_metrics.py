"""Scores against scikit-learn, standard errors against leaving out one item at a time."""

import math

import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef

from sphere_pl.abilities.metrics import METRICS, accuracy, accuracy_of_valid, estimate, matthews, weighted_f1


def sample(n=60, classes=2, invalid=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=generator)
    predicted = torch.where(
        torch.rand(n, generator=generator) < 0.6, label, torch.randint(classes, (n,), generator=generator)
    )
    return torch.where(torch.rand(n, generator=generator) < invalid, -1, predicted), label


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("invalid", [0.0, 0.3])
def test_f1_and_matthews_are_those_of_scikit_learn(classes, invalid):
    predicted, label = sample(classes=classes, invalid=invalid)
    f1 = f1_score(label, predicted, average="weighted", zero_division=0)
    assert float(weighted_f1(predicted, label)) == pytest.approx(f1, abs=1e-6)
    assert float(matthews(predicted, label)) == pytest.approx(matthews_corrcoef(label, predicted), abs=1e-6)


def test_an_unreadable_answer_is_wrong_or_left_out_by_the_metric():
    predicted, label = torch.tensor([1, 0, -1, -1, 1]), torch.tensor([1, 0, 1, 0, 0])
    assert float(accuracy(predicted, label)) == pytest.approx(2 / 5)
    assert float(accuracy_of_valid(predicted, label)) == pytest.approx(2 / 3)


def test_a_model_that_answers_nothing_scores_zero():
    predicted, label = torch.full((4,), -1), torch.tensor([0, 1, 0, 1])
    assert {name: estimate(metric, predicted, label).value for name, metric in METRICS.items()} == dict.fromkeys(
        METRICS, 0.0
    )


def test_a_model_that_always_answers_alike_has_no_correlation():
    assert float(matthews(torch.ones(5, dtype=torch.long), torch.tensor([0, 1, 1, 0, 1]))) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_the_standard_error_is_that_of_leaving_out_each_item(name):
    predicted, label = sample(n=25)
    values = []
    for left_out in range(25):
        kept = [place for place in range(25) if place != left_out]
        values.append(float(METRICS[name](predicted[kept], label[kept])))
    mean = sum(values) / 25
    expected = math.sqrt(24 / 25 * sum((value - mean) ** 2 for value in values))
    assert estimate(METRICS[name], predicted, label).standard_error == pytest.approx(expected, rel=1e-4)


def test_the_standard_error_of_a_share_is_the_usual_one():
    predicted, label = sample(n=40)
    hits = (predicted == label).double()
    assert estimate(accuracy, predicted, label).standard_error == pytest.approx(float(hits.std() / math.sqrt(40)))


def test_one_item_has_no_standard_error():
    assert math.isnan(estimate(accuracy, torch.tensor([1]), torch.tensor([1])).standard_error)
