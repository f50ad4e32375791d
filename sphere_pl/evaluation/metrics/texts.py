"""What the model writes freely: whether it begins with the answer, how varied it is, how near to reference texts."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.evaluation.metrics.records import RecordMean
from sphere_pl.text.matching import begins_with
from sphere_pl.text.scripts import is_spaceless, split_words

_ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


class AnswerMatch(RecordMean):
    """Share of prompts whose freely written answer begins with an accepted one; see `begins_with`.

    Example:
        >>> metric = AnswerMatch()
        >>> metric.update(["Paris, which", "in Paris"], [["Paris"], ["Paris"]], torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, answers: Sequence[str], accepted: Sequence[Sequence[str]], record: Tensor) -> None:
        """Add the prompts of some records.

        Args:
            answers: What the model wrote, one text a row.
            accepted: What counts as right for each.
            record: Which record each row belongs to, shape `[rows]`.
        """
        hits = [begins_with(text, right) for text, right in zip(answers, accepted, strict=True)]
        self.add(torch.tensor(hits, device=record.device), record)


def ngram_entropy(text: str) -> float:
    """Weighted entropy of a text's bigrams and trigrams, in bits: (2/3 H2 + 4/3 H3) / 2 (Zhang et al. 2018; ROME).

    A text that repeats itself scores low. The papers print it times 100. Words and punctuation marks are the tokens,
    and characters of scripts without spaces.

    Example:
        >>> ngram_entropy("no no no no no"), round(ngram_entropy("one two three four five"), 3)
        (0.0, 1.723)
    """
    tokens = split_words(text)
    return sum(weight * _entropy(tokens, n) for n, weight in _ENTROPY_WEIGHTS.items()) / len(_ENTROPY_WEIGHTS)


def _entropy(tokens: Sequence[str], n: int) -> float:
    counts = Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
    total = sum(counts.values())
    return sum(count / total * math.log2(total / count) for count in counts.values())


class Fluency(RecordMean):
    """Mean n-gram entropy of generated texts; see `ngram_entropy`.

    Example:
        >>> metric = Fluency()
        >>> metric.update(["no no no no no"], torch.tensor([0]))
        >>> metric.compute()
        tensor(0.)
    """

    def update(self, texts: Sequence[str], record: Tensor) -> None:
        """Add generated texts, `record` `[rows]` saying which record each belongs to."""
        entropies = [ngram_entropy(text) for text in texts]
        self.add(torch.tensor(entropies, dtype=torch.float64, device=record.device), record)


def _terms(text: str) -> list[str]:
    """What texts are compared by: words of two letters or more, and characters of scripts without spaces."""
    return [each for each in split_words(text.lower()) if len(each) > 1 or is_spaceless(each)]


class Consistency(RecordMean):
    """Mean cosine between the TF-IDF vectors of a record's generated texts and of its reference texts (ROME).

    Args:
        corpus: The texts that say how rare a word is: all reference texts.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        UserError: If scikit-learn is not installed.
    """

    def __init__(self, corpus: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise UserError(
                "Consistency needs scikit-learn, which is not installed: pip install 'sphere-pl[consistency]', or "
                "leave out --model.evaluation.references."
            ) from error
        self.vectorizer = TfidfVectorizer(analyzer=_terms).fit(corpus)

    def update(self, texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], record: Tensor) -> None:
        """Add some records.

        Args:
            texts: The generated texts of each record.
            references: Its reference texts.
            record: The records, shape `[records]`.
        """
        both = [[" ".join(each) for each in side] for side in (texts, references)]
        one, two = (self.vectorizer.transform(side) for side in both)  # rows of norm 1, or 0 without a known word
        cosines = torch.tensor(one.multiply(two).sum(axis=1)).reshape(-1)
        self.add(cosines.to(record.device), record)
