import json
import sys

import pytest

from benchmarks import readme
from benchmarks.cells import run_cell
from benchmarks.methods import CELLS, row
from sphere_pl.commands import main


def test_every_method_stands_in_the_table_with_and_without_sphere():
    names = [cell.name for cell in CELLS]
    assert len(names) == len(set(names)) == 22
    assert {name.removesuffix("-sphere") for name in names if name.endswith("-sphere")} == set(names[::2])


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_every_cell_is_understood(cell, monkeypatch, capsys):
    arguments = ["sphere_pl", "fit", *cell.arguments, "--data.path=facts.json", "--print_config"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    plain = "strength: 0.0" in shown
    assert plain == (not cell.name.endswith("-sphere") or cell.name == "PRUNE-sphere")


def test_the_table_shows_a_run_that_broke_off():
    scores = {"efficacy": 0.5, "generalization": 0.4, "specificity": 0.3, "neighborhood_agreement": 0.2}
    scores |= {f"{name}_standard_error": 0.01 for name in scores} | {"perplexity": 46.0}
    energies = {"w": {"before": 2.0, "after": 3.0}}
    whole = {"arguments": [], "failed": None, "before": scores, "after": scores, "hyperspherical_energy": energies}
    broken = {"arguments": [], "failed": "error: collapsed", "before": None, "after": None}
    rows = [row("ROME", whole | {"seconds_per_edit": 1.5}), row("ROME-sphere", broken)]
    text = readme.methods({"device": "a CPU", "jobs": 2, "rows": rows, "missing": ["FT"]})
    assert "Not run yet: FT." in text
    assert "| ROME | no | 0.50 ± 0.01 | 0.40 ± 0.01 | 0.30 ± 0.01 | 0.20 ± 0.01 | 46.0 | +50 % | 1.50 |" in text
    assert "| ROME | yes | broke off: error: collapsed |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["UltraEdit-sphere", "PRUNE-sphere", "RECT"])
def test_a_cell_runs_and_fills_its_row(name, tiny_lm, tmp_path):
    lm = tiny_lm()
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(tmp_path / "model")
    texts = {"paraphrase_prompts": ["The capital of France is"], "neighborhood_prompts": ["The capital of Rome is"]}
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": "The capital of {} is",
                "subject": subject,
                "target_new": {"str": "Berlin"},
                "target_true": {"str": "Paris"},
            },
            **texts,
        }
        for number, subject in enumerate(("France", "Italy"))
    ]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea.")
    paths = [
        f"--data.path={tmp_path / 'facts.json'}", f"--model.name={tmp_path / 'model'}", "--model.layers=[1,2]",
        "--model.dtype=float32", "--model.evaluation.perplexity_tokens=32", "--trainer.accelerator=cpu",
        f"--model.statistics.corpus={tmp_path / 'corpus.txt'}", "--model.statistics.tokens=10",
        f"--model.statistics.cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    (cell,) = (cell for cell in CELLS if cell.name == name)
    run_cell(cell, tmp_path / "run", tmp_path / "cell.json", paths, threads=1)
    found = row(name, json.loads((tmp_path / "cell.json").read_text()))
    assert found["failed"] is None
    assert str(tmp_path) not in (tmp_path / "cell.json").read_text().replace(str(tmp_path / "model"), "")
    text = readme.methods({"device": "a CPU", "jobs": 1, "rows": [found], "missing": []})
    assert f"| {name.removesuffix('-sphere')} | {'yes' if name.endswith('-sphere') else 'no'} | " in text
