"""What every call on a tiny model is given."""

import pytest

FACTS = [
    {
        "prompt": "The capital of France is",
        "subject": "France",
        "target": "Berlin",
        "paraphrases": ["France's capital"],
    },
    {"prompt": "{} is a city in", "subject": "Rome", "target": "Norway", "neighbors": ["Berlin is a city in"]},
    {"prompt": "The mother tongue of Anna Karlsson is", "subject": "Anna Karlsson", "target": "Italy"},
]


@pytest.fixture
def facts():
    """Three facts, as a user writes them."""
    return [dict(fact) for fact in FACTS]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a quick run; the working folder is empty."""
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return {
        "model.layers": [1, 2],
        "model.statistics.corpus": str(tmp_path / "corpus.txt"),
        "model.statistics.tokens": 10,
        "model.statistics.cache_dir": str(tmp_path / "cache"),
        "model.targets.steps": 3,
        "model.evaluation.perplexity_tokens": 64,
    }
