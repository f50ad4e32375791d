"""What a result keeps of where it comes from."""

import json
from types import SimpleNamespace

import torch

from benchmarks.cells import Cell
from sphere_pl.model.products import has_units
from study import marks
from study.marks import check_result, keep_result


def test_a_result_is_kept_with_its_marks_and_without_the_places_of_this_machine(tmp_path, monkeypatch):
    header = SimpleNamespace(header=SimpleNamespace(fingerprint="a"))
    monkeypatch.setattr(marks, "read_log", lambda folder: header)
    cell = Cell("one", ("--config=method/memit",), 2)
    scratch, results = tmp_path / "scratch.json", tmp_path / "one.json"
    scratch.write_text(json.dumps({"model": "/secret/place/gemma", "arguments": list(cell.arguments), "failed": None}))
    (tmp_path / "results.json").write_text(json.dumps({"outcomes": {"written": "+-"}}))
    keep_result(results, scratch, cell, 3, tmp_path)
    assert "secret" not in results.read_text()
    assert not scratch.exists()
    assert json.loads(results.read_text())["processor"] == torch.backends.cpu.get_cpu_capability()
    assert json.loads(results.read_text())["bfloat16_units"] is has_units(torch.bfloat16)
    found = check_result(results, cell, 3)
    assert (found["model"], found["fingerprint"], found["outcomes"]) == ("gemma", "a", {"written": "+-"})
