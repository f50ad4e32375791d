"""What several tests of editing begin with."""

import pytest

from sphere_pl.editing.moments import StatisticsSettings

TEXT = "The capital of France is Paris.\n\nRome is a city in Italy by the sea.\n\nYou and I speak because of it."


@pytest.fixture
def settings(tmp_path):
    """A short text for second moments, and a cache that is empty."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT)
    return StatisticsSettings(corpus=str(corpus), tokens=30, length=8, batch_size=2, cache_dir=str(tmp_path / "cache"))
