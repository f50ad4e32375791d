"""Which configuration files a command line reads, and in which order."""

from itertools import permutations
from pathlib import Path

import pytest

from sphere_pl.commands.configs import group_files, resolve_group_files
from sphere_pl.errors import UserError
from sphere_pl.model.known import config_folder


def read(*words):
    """The group files that are read, by name."""
    folder = config_folder()
    paths = [Path(word.removeprefix("--config=")) for word in resolve_group_files(words)]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in paths]


@pytest.mark.parametrize("given", [*permutations(["model/llama3_8b", "method/memit", "callbacks/sphere"])])
def test_models_methods_and_callbacks_are_read_in_that_order(given):
    words = [f"--config={name}" for name in given]
    assert read(*words) == ["model/llama3_8b", "method/memit", "method/memit/llama3_8b", "callbacks/sphere"]


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


@pytest.mark.parametrize("given", [*permutations(["recommended", "model/llama3_8b", "callbacks/sphere"])])
def test_what_is_recommended_is_read_after_a_models_own_file(given):
    assert read(*(f"--config={name}" for name in given)) == ["model/llama3_8b", "recommended", "callbacks/sphere"]


def test_what_is_recommended_keeps_the_settings_of_a_model_that_has_some(parsed):
    given = parsed("--config", "recommended")
    usual = parsed()
    assert given["projection"]["strength"] == 0
    assert given["model"] == usual["model"]


def test_a_file_that_stands_alone_is_named_where_names_are_listed():
    assert "recommended" in group_files()
    assert "default" not in group_files()  # it is read without being asked for
    with pytest.raises(UserError, match="recommended stands alone"):
        resolve_group_files(["--config", "zzzz"])
    with pytest.raises(UserError, match="recommended"):
        resolve_group_files(["--config", "recomended"])


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
    assert resolve_group_files(["validate", "--config"]) == ["validate", "--config"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.limit=3"], ["model/embedded"]),
        (["--config=method/memit"], ["model/embedded", "method/memit", "method/memit/embedded"]),
        (["--model.name", "meta-llama/Meta-Llama-3-8B-Instruct"], ["model/llama3_8b"]),
        (["--model.name=some/other"], []),
        (["--model.name=some/other", "--config=model/gpt2_xl"], ["model/gpt2_xl"]),
    ],
)
def test_a_model_with_a_file_of_its_own_keeps_its_settings_without_being_asked(words, expected):
    folder = config_folder()
    paths = [word.removeprefix("--config=") for word in resolve_group_files(["fit", *words]) if "--config=" in word]
    assert [Path(path).relative_to(folder).with_suffix("").as_posix() for path in paths] == expected


def test_a_model_that_a_users_own_file_names_is_the_runs_model(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {name: EleutherAI/gpt-j-6b}")
    first, second = resolve_group_files(["fit", f"--config={tmp_path / 'mine.yaml'}"])[1:]
    assert first.endswith("model/gptj_6b.yaml")
    assert second.endswith("mine.yaml")  # after it, so that what the user wrote wins
    assert len(resolve_group_files(["fit", f"--config={tmp_path / 'mine.yaml'}", "--model.name=some/other"])) == 3


def test_every_file_named_after_two_groups_can_be_reached():
    groups = set(group_files())
    for name in groups:
        parent, _, choice = name.rpartition("/")
        if "/" in parent:
            assert parent in groups
            assert {f"model/{choice}", f"method/{choice}"} & groups, name
