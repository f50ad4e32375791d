"""Where a setting was given: the last word on it, under the name that the user wrote."""

import pytest

from sphere_pl.commands.places import Place, place_of, yaml_files


@pytest.mark.parametrize(
    ("args", "place"),
    [
        (["--data.limit=3"], Place("data.limit", "3")),
        (["--data.limit", "3"], Place("data.limit", "3")),
        (["--data.limit"], Place("data.limit", None)),
        (["--trainer.callbacks+=Mine"], Place("trainer.callbacks", "Mine")),
        (["limit"], Place("limit")),
    ],
)
def test_a_key_is_found_under_its_whole_name(args, place):
    assert place_of(place.key.rpartition(".")[2], args) == place


def test_a_file_is_named_where_no_argument_gives_the_key(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {limit: 3}\ntrainer: {callbacks: [{init_args: {every: 2}}]}")
    args = [f"--config={file}"]
    assert place_of("limit", args).shown() == f"{file}: `data.limit`"
    assert place_of("every", args).assigned("two") == f"{file}: `trainer.callbacks.init_args.every: two`"
    assert place_of("limit", [*args, "--data.limit=4"]).shown() == "`--data.limit`"


def test_the_last_file_has_the_last_word_and_one_that_is_no_yaml_has_none(tmp_path):
    first, last, broken = (tmp_path / f"{name}.yaml" for name in ("first", "last", "broken"))
    first.write_text("limit: 1")
    last.write_text("limit: 2")
    broken.write_text("limit: [")
    args = [f"--config={first}", "--config", str(last), str(broken), "missing.yaml"]
    assert list(yaml_files(args)) == [broken, last, first]
    assert place_of("limit", args) == Place("limit", "2", last)
