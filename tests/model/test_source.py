"""A model's source knows whether the weights came from it."""

import pytest

from sphere_pl.model import source as module
from sphere_pl.model.source import ModelSource


def test_a_model_is_loaded_from_its_source_when_its_weights_are_there(tiny_lm, monkeypatch):
    source = ModelSource("tiny", layers=None, opened=object())
    weights = iter([])
    monkeypatch.setattr(module, "load_weights", lambda *_: next(weights))
    with pytest.raises(StopIteration):
        source.load()
    assert not source.loaded
    weights = iter([tiny_lm()])
    source.load()
    assert source.loaded
