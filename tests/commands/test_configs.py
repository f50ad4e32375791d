"""Which configuration files a command line reads, and in which order."""

from itertools import permutations
from pathlib import Path

import pytest

from sphere_pl.commands.configs import config_folder, group_files, resolve_group_files


def read(*words):
    """The group files that are read, by name."""
    folder = config_folder()
    paths = [Path(word.removeprefix("--config=")) for word in resolve_group_files(words)]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]


@pytest.mark.parametrize("given", [*permutations(["model/llama3_8b", "method/memit", "callbacks/sphere"])])
def test_models_methods_and_callbacks_are_read_in_that_order(given):
    words = [f"--config={name}" for name in given]
    assert read(*words) == ["model/llama3_8b", "method/memit", "callbacks/sphere"]


def test_everything_else_stays_where_it_is():
    words = ("experiment/table1", "callbacks/rect", "data/zsre", "method/memit", "experiment/plug_and_play")
    assert read(*(f"--config={name}" for name in words)) == [
        "experiment/table1", "method/memit", "data/zsre", "callbacks/rect", "experiment/plug_and_play",
    ]  # fmt: skip
    mixed = resolve_group_files(["fit", "-c", "data/zsre", "--data.limit", "3", "--config", "model/gpt2_xl", "--x=1"])
    assert [word for word in mixed if not word.startswith("--config=")] == ["fit", "--data.limit", "3", "--x=1"]
    assert [mixed.index(word) for word in ("--data.limit", "--x=1")] == [2, 5]


def test_a_file_named_after_two_groups_is_read_behind_the_first_of_them():
    assert read("--config=method/ft", "--config=model/qwen2_5_7b", "--config=experiment/table1") == [
        "model/qwen2_5_7b", "method/ft", "method/ft/qwen2_5_7b", "experiment/table1", "experiment/table1/qwen2_5_7b",
    ]  # fmt: skip
    assert read("--config=callbacks/sphere.yaml", "--config=method/alphaedit.yaml") == [
        "method/alphaedit", "callbacks/sphere", "callbacks/sphere/alphaedit",
    ]  # fmt: skip
    assert read("--config=method/ft") == ["method/ft"]


def test_the_last_of_several_methods_is_the_chosen_one():
    words = ("method/alphaedit", "method/memit", "callbacks/sphere")
    assert read(*(f"--config={name}" for name in words)) == list(words)


def test_a_users_own_file_stays_and_brings_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("method").mkdir()
    Path("method/ft").write_text("{}")
    assert resolve_group_files(["--config=method/ft", "--config=model/llama3_8b"])[0] == "--config=method/ft"
    assert len(resolve_group_files(["--config=method/ft", "--config=model/llama3_8b"])) == 2


def test_a_flag_without_a_name_is_left_for_the_parser():
    assert resolve_group_files(["fit", "--config"]) == ["fit", "--config"]


def test_every_file_named_after_two_groups_can_be_reached():
    groups = set(group_files())
    for name in groups:
        parent, _, choice = name.rpartition("/")
        if "/" in parent:
            assert parent in groups
            assert {f"model/{choice}", f"method/{choice}"} & groups, name
