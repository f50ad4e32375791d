import sys
from pathlib import Path

import pytest
import yaml

from sphere_pl.commands import main
from study.cells import DEFAULT, FULL, PRESETS, alphaedit, cell, conf, parse


@pytest.mark.parametrize("cell", FULL, ids=lambda cell: cell.name)
def test_a_cells_name_says_what_it_is(cell):
    key = parse(cell.name)
    assert key.name == cell.name
    assert key.edits == cell.edits
    assert f"--data.limit={key.edits}" in cell.arguments


def test_no_two_cells_have_one_name():
    assert len({cell.name for cell in FULL}) == len(FULL)
    assert all(cell in FULL for preset in PRESETS.values() for cell in preset)


ROOT = Path(__file__).parents[2]


def test_the_cells_named_default_have_the_default_runs_settings_but_adams_steps():
    wanted = yaml.safe_load((ROOT / "conf" / "model" / "embedded.yaml").read_text())["model"]
    del wanted["name"], wanted["statistics"]  # which the cells do not name: the model's file is read before theirs
    study = yaml.safe_load((ROOT / conf("base")).read_text())["model"]
    for argument in DEFAULT["default"]:
        name, _, value = argument.removeprefix("--model.").partition("=")
        *path, last = name.split(".")
        place = study
        for step in path:
            place = place[step]
        place[last] = yaml.safe_load(value)
    assert study["targets"].pop("anchor") is wanted["targets"].pop("anchor", False)
    assert (study["targets"].pop("optimizer"), study["targets"].pop("learning_rate")) == ("adam", 0.5)
    assert wanted["targets"].pop("optimizer") == "polyak"  # which the default model has had since
    assert {name: study[name] for name in wanted} == wanted


SHOWN = {parse(cell.name)._replace(draw=0, edits=0, label=""): cell for cell in FULL if "_eta" not in cell.name}


@pytest.mark.parametrize("cell", SHOWN.values(), ids=lambda cell: cell.name)
def test_every_kind_of_cell_is_understood(cell, monkeypatch, capsys):
    arguments = ["sphere_pl", "fit", *cell.arguments, "--data.path=facts.json", "--print_config"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    without = "strength: 0.0" in capsys.readouterr().out
    assert without == (parse(cell.name).variant.endswith("plain") or "-prune-" in cell.name)


def test_a_point_of_the_sweep_is_its_numbers():
    one = alphaedit("pretrained_eta0.3_alpha0.25", 1)
    wanted = {"--projection.cumulative_ratio=0.3", "--projection.strength=0.25", "--projection.basis=pretrained"}
    assert wanted <= set(one.arguments)


def test_sphere_has_the_papers_strength():
    assert "--projection.strength=0.5" in cell("alphaedit", "current").arguments
    assert "--projection.strength=0.8" in cell("memit", "current").arguments
