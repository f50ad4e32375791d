import errno

import pytest

from sphere_pl.errors import UserError
from sphere_pl.storage.files import append_text, is_local, write_atomically, write_text


def full_disk(path):
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(UserError, match=r"results.json could not be written: .*No space left"):
        write_atomically(path, full_disk)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_text(tmp_path / "run" / "results.json", "{}")


def test_an_error_of_the_writer_itself_passes_through(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "x", lambda path: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_name_with_a_data_suffix_means_a_file(tmp_path):
    assert is_local("facts.jsonl")
    assert is_local(str(tmp_path))
    assert not is_local("azhx/counterfact")


def test_text_is_added_behind_what_is_there(tmp_path):
    path = tmp_path / "targets.csv"
    append_text(path, "a\n")
    append_text(path, "b\n")
    assert path.read_text() == "a\nb\n"


def test_a_file_that_cannot_be_added_to_is_a_message(tmp_path):
    with pytest.raises(UserError, match=r"could not be added to: .*Free disk space"):
        append_text(tmp_path / "no folder" / "targets.csv", "a\n")
