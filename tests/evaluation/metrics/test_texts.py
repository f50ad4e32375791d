import math
import sys

import numpy as np
import pytest
import torch

from sphere_pl.errors import UserError
from sphere_pl.evaluation.metrics import AnswerMatch, Consistency, Fluency
from sphere_pl.evaluation.metrics.texts import ngram_entropy


def test_matches_are_averaged_over_records():
    metric = AnswerMatch()
    metric.update(["Rome", "Oslo", "Rome"], [["Rome"], ["Rome"], ["Rome"]], torch.tensor([0, 0, 1]))
    assert metric.compute().item() == pytest.approx(0.75)


def slow_entropy(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    shares = np.array([grams.count(gram) for gram in sorted(set(grams))]) / max(1, len(grams))
    return -float((shares * np.log2(shares)).sum())


@pytest.mark.parametrize("text", ["a b a b a b c", "one two three , four", "word", ""])
def test_ngram_entropy_is_roms_weighted_mean(text):
    words = text.split()
    expected = np.mean([slow_entropy(words, 2) * 2 / 3, slow_entropy(words, 3) * 4 / 3])
    assert ngram_entropy(text) == pytest.approx(expected)


def test_fluency_is_averaged_over_records():
    metric = Fluency()
    texts = ["a b c d e", "a a a a", "x y z"]
    metric.update(texts, torch.tensor([4, 4, 7]))
    first, second, third = map(ngram_entropy, texts)
    assert metric.compute().item() == pytest.approx(((first + second) / 2 + third) / 2)


def test_consistency_is_the_cosine_of_tf_idf_vectors():
    corpus = ["rome is old", "oslo is cold", "the sea is wide"]
    metric = Consistency(corpus)
    metric.update([["rome is", "old"], ["unknown words"]], [["rome is old and rome"], ["oslo"]], torch.tensor([0, 1]))
    words = sorted({word for text in corpus for word in text.split()})
    idf = {w: math.log((1 + len(corpus)) / (1 + sum(w in t.split() for t in corpus))) + 1 for w in words}
    one, two = (np.array([t.split().count(w) * idf[w] for w in words]) for t in ("rome is old", "rome is old and rome"))
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert metric.compute().item() == pytest.approx(cosine / 2)  # nothing in common: 0


def test_without_scikit_learn_consistency_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(UserError, match=r"pip install 'sphere-pl\[consistency\]'"):
        Consistency(["a text"])
