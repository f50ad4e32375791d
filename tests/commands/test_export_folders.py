"""A folder that is exported is whole or not there."""

import pytest

from sphere_pl.commands.export_folders import write_whole


def test_a_folder_is_there_when_all_of_it_is_written_and_others_may_read_it(tmp_path):
    target = tmp_path / "not yet" / "export"

    def write(folder):
        assert not target.exists()
        folder.mkdir()
        (folder / "model.safetensors").touch(mode=0o600)
        return ["a note"]

    assert write_whole(target, write) == ["a note"]
    assert [path.name for path in target.parent.iterdir()] == ["export"]
    assert (target / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_empty_folder_gives_way(tmp_path):
    (tmp_path / "export").mkdir()
    write_whole(tmp_path / "export", lambda folder: folder.mkdir() or (folder / "edits.json").touch() or [])
    assert (tmp_path / "export" / "edits.json").is_file()


def test_writing_that_fails_half_way_leaves_nothing(tmp_path):
    def write(folder):
        folder.mkdir()
        (folder / "config.json").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "export", write)
    assert not list(tmp_path.iterdir())
