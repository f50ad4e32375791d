"""The data that comes with the package: a fact set, ordinary text, held-out prose and sentence openers."""

import json
import lzma
from pathlib import Path
from typing import NamedTuple

__all__ = ["Written", "corpus_passages", "corpus_path", "facts_path", "heldout_text", "sentence_openers", "written"]

_FOLDER = Path(__file__).parent


def facts_path() -> Path:
    """Return the file with the built-in fact set, a JSON list of records in the CounterFact schema."""
    return _FOLDER / "facts.json"


def corpus_path() -> Path:
    """Return the file with ordinary text in many languages, passages separated by one empty line."""
    return _FOLDER / "corpus.txt.xz"


def corpus_passages() -> list[str]:
    """Return the passages of ordinary text; any beginning of them is a mixture of all sources.

    Example:
        >>> sum(map(len, corpus_passages())) > 500_000
        True
    """
    return lzma.decompress(corpus_path().read_bytes()).decode("utf-8").strip().split("\n\n")


def heldout_text() -> str:
    """Return the held-out prose, paragraphs separated by one empty line.

    Example:
        >>> len(heldout_text().split()) > 2000
        True
    """
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")


def sentence_openers() -> list[str]:
    """Return the beginnings of sentences that seed text sampled from a model.

    Example:
        >>> sentence_openers()[0]
        'The oldest part of the'
    """
    return (_FOLDER / "openers.txt").read_text(encoding="utf-8").splitlines()


class Written(NamedTuple):
    """Text that the default model has sampled from itself, kept so that nobody waits for it.

    Attributes:
        models: Fingerprints of the model, in each floating-point type.
        length: Tokens of a text at most.
        seed: Seed of the sampling.
        tokens: Tokens of all texts.
        texts: Those.
    """

    models: list[str]
    length: int
    seed: int
    tokens: int
    texts: list[str]


def written() -> Written:
    """Return the text that the default model has written; `python -m tools.write_sample` makes it.

    Example:
        >>> len(written().texts)
        128
    """
    return Written(**json.loads((_FOLDER / "written.json").read_text(encoding="utf-8")))
