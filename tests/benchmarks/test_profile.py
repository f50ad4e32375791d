"""A batch's time, part by part."""

import json
import sys

import pytest

from benchmarks import language_models, profile, whole_run
from benchmarks.profile import ATTENTION, NORMS, PRODUCTS, PYTHON, REST, SOLVE, Event, times
from tests.benchmarks.test_language_models import NAME, SMALL


def test_own_times_go_to_the_part_that_called_forwards_and_backwards():
    events = [
        Event("part: " + PYTHON, 0, 100, -1, []),
        Event("part: " + NORMS, 10, 30, -1, []),
        Event("aten::mul", 12, 10, 7, []),
        Event("aten::mm", 50, 20, 8, [[2, 3], [3, 4]]),
        Event("autograd::engine::evaluate_function: MulBackward0", 75, 10, 7, []),
        Event("aten::mul", 76, 6, -1, []),
        Event("aten::add", 90, 5, -1, []),
    ]
    own, operations = times(events)
    assert own == {PYTHON: 100 - 30 - 20 - 10 - 5 + 4 + 20, NORMS: 10 + 6, PRODUCTS: 20, REST: 5}
    assert operations[PRODUCTS] == 48


def test_a_tiny_model_is_profiled_and_written(tiny_lm, monkeypatch, tmp_path):
    monkeypatch.setitem(language_models.SHAPES, NAME, SMALL)
    monkeypatch.setattr(language_models, "load_language_model", lambda dtype: tiny_lm("llama"))
    monkeypatch.setattr(sys, "argv", ["profile", "--batch=2", "--steps=2", f"--json={tmp_path / 'found.json'}"])
    monkeypatch.setattr(profile, "fitting_model", lambda: NAME)
    steps = whole_run.SETTINGS.steps
    profile.main()
    found = json.loads((tmp_path / "found.json").read_text())
    parts = found["parts"]
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert all(parts[name]["seconds"] > 0 for name in profile.PARTS)
    assert all(parts[name]["floor"] > 0 for name in (PRODUCTS, ATTENTION, NORMS, REST, SOLVE))
    assert whole_run.SETTINGS.steps == steps
