"""What is kept on disk is named by what it rests on."""

from pathlib import Path

from sphere_pl.storage.addresses import address_of, digest_of_sources


def test_an_address_follows_every_value_and_no_order():
    assert address_of({"a": 1, "b": [Path("x"), None]}) == address_of({"b": [Path("x"), None], "a": 1})
    assert len({address_of(each) for each in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"})}) == 4


def test_sources_in_folders_below_count_and_other_files_do_not(tmp_path):
    (tmp_path / "below").mkdir()
    source = tmp_path / "below" / "maths.py"
    source.write_text("one = 1")
    before = digest_of_sources(tmp_path)
    (tmp_path / "notes.txt").write_text("of no account")
    assert digest_of_sources(tmp_path) == before
    source.write_text("one = 2")
    assert digest_of_sources(tmp_path) != before
