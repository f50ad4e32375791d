import sys

import pytest

from benchmarks import readme
from benchmarks.methods import CELLS, row
from sphere_pl.cli import main


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
    text = readme.methods({"device": "a CPU", "jobs": 2, "rows": rows})
    assert "| ROME | no | 0.50 ± 0.01 | 0.40 ± 0.01 | 0.30 ± 0.01 | 0.20 ± 0.01 | 46.0 | +50.0000% | 1.50 |" in text
    assert "| ROME | yes | broke off: error: collapsed |" in text
