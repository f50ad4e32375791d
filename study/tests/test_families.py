"""The comparison over families: what it runs, and which results it refuses."""

import json

import pytest
import yaml

from sphere_pl.commands.configs import config_folder
from sphere_pl.errors import UserError
from sphere_pl.text.version import __version__
from study.families import SPEC, cells_of, read_results, read_spec
from study.marks import check_result, settings_digest


@pytest.fixture
def spec():
    return read_spec()


def result(cell, spec, other=None):
    found = {"spec": spec.version, "sphere_pl": __version__, "arguments": list(cell.arguments), "fingerprint": "a"}
    found["settings"] = settings_digest(cell.arguments)
    return {**found, "failed": None, "outcomes": {"written": "+"}, **(other or {})}


def test_every_method_stands_in_every_model_and_order_with_and_without_sphere(spec):
    keys = cells_of(spec, "main")
    assert len({cell.name for cell in keys.values()}) == len(keys)
    pairs = {(k.model, k.draw, k.batch_size, k.method) for k in keys}
    assert len(pairs) == 3 * 3 * 2 * len(spec.methods)
    assert sum(key.variant == "sphere" for key in keys) == 3 * 3 * 2 * (len(spec.methods) - len(spec.alone))


def test_blocks_are_named_where_a_model_has_no_file_so_that_nothing_is_tried_out_by_the_clock(spec):
    for key, cell in cells_of(spec, "other_models").items():
        assert any(each.startswith("--model.layers=") for each in cell.arguments), key
    assert not any("layers" in each for cell in cells_of(spec, "default_model").values() for each in cell.arguments)


def test_retrieval_is_in_every_stage_that_compares(spec):
    beside = {"default_model_sphere", "other_models_sphere", "new_methods", "new_methods_sphere", "more_methods"}
    beside |= {"other_models_methods", "recommended_300", "rival_300"}  # whose rows stand in tables of other stages
    among_themselves = {
        "longest",
        "longest_compositions",
        "longest_retry",
        "recommended",
        "compositions",
        "more_orders",
    }
    beside |= among_themselves
    compared = set(spec.stages) - beside
    assert all(any(key.method.startswith("scr") for key in cells_of(spec, stage)) for stage in compared)


def test_every_file_that_a_cell_names_exists(spec):
    stages = [stage["common"] for stage in spec.stages.values()]
    for arguments in [spec.common, *stages, *spec.methods.values()]:
        for argument in (each for each in arguments if each.startswith("--config=")):
            name = argument.removeprefix("--config=")
            path = SPEC.parents[2] / name if name.endswith(".yaml") else config_folder() / f"{name}.yaml"
            assert path.is_file(), name


def test_what_lasts_longest_is_asked_of_every_composition_alike(spec):
    def asked(stage):
        (cell,) = {
            tuple(each for each in cell.arguments if each.startswith(("--model.evaluation", "--data", "--trainer")))
            for cell in cells_of(spec, stage).values()
        }
        return cell

    assert asked("longest") == asked("longest_compositions")


def test_a_first_draw_is_whole_before_the_second_begins(spec):
    draws = [key.draw for key in cells_of(spec, "main")]
    assert draws == sorted(draws)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"spec": 0}, "has spec=0"),
        ({"sphere_pl": "0.0.1"}, "has sphere_pl='0.0.1'"),
        ({"arguments": ["--data.limit=1"]}, "has arguments"),
        ({"settings": "of other files"}, "has settings='of other files'"),
        ({"failed": "stopped by hand"}, "was cut off"),
        ({"outcomes": {}}, "was cut off"),
    ],
)
def test_a_result_of_another_kind_is_refused_by_name(spec, tmp_path, other, message):
    cell = next(iter(cells_of(spec, "main").values()))
    path = tmp_path / f"{cell.name}.json"
    path.write_text(json.dumps(result(cell, spec)))
    assert check_result(path, cell, spec.version)["fingerprint"] == "a"
    path.write_text(json.dumps(result(cell, spec, other)))
    with pytest.raises(UserError, match=f"{cell.name}.*{message}"):
        check_result(path, cell, spec.version)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_result_is_refused_by_name(spec, tmp_path, text):
    cell = next(iter(cells_of(spec, "main").values()))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json is no result"):
        check_result(tmp_path / "x.json", cell, spec)


def test_two_models_under_one_name_are_refused(spec, tmp_path):
    chosen = [(k, c) for k, c in cells_of(spec, "main").items() if k.model == next(iter(spec.models))][:2]
    for (key, cell), fingerprint in zip(chosen, "aa", strict=True):
        (tmp_path / f"{key.name}.json").write_text(json.dumps(result(cell, spec, {"fingerprint": fingerprint})))
    assert len(read_results(spec, "main", tmp_path)) == 2
    key, cell = chosen[1]
    (tmp_path / f"{key.name}.json").write_text(json.dumps(result(cell, spec, {"fingerprint": "b"})))
    with pytest.raises(UserError, match="another model"):
        read_results(spec, "main", tmp_path)


def test_a_specification_that_names_what_it_does_not_define_is_refused(tmp_path):
    found = yaml.safe_load(SPEC.read_text())
    found["stages"]["long"]["methods"].append("grace")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match="'grace'"):
        read_spec(tmp_path / "spec.yaml")
    del found["stages"]["long"]["draws"]
    found["stages"]["long"]["methods"].remove("grace")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match="stage long must hold"):
        read_spec(tmp_path / "spec.yaml")
    del found["variants"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(UserError, match="must hold"):
        read_spec(tmp_path / "spec.yaml")


def test_gemmas_targets_are_those_of_the_program_and_retrieval_has_none(spec):
    adam = "--model.targets.optimizer=adam"
    for key, cell in {**cells_of(spec, "thousand"), **cells_of(spec, "recommended_300")}.items():
        assert (adam in cell.arguments) == (key.model == "gemma3_270m" and key.method not in spec.alone)
