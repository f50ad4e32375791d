"""Text is read from a file or the hub, and what cannot be read is named."""

import pytest

from sphere_pl.data.corpus import read_corpus
from sphere_pl.errors import UserError


def test_a_hub_corpus_is_read_by_its_column_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: iter([{"title": "Rome", "body": "A city."}]))
    assert list(read_corpus("someone/pages::body")) == ["A city."]
    with pytest.raises(UserError, match="no column 'text', found title, body"):
        list(read_corpus("someone/pages"))


@pytest.mark.parametrize("error", [OSError("offline\nmore"), RuntimeError("a script"), OSError()])
def test_a_hub_that_gives_no_corpus_is_named(monkeypatch, error):
    def rows():
        raise error
        yield

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows())
    with pytest.raises(UserError, match="The corpus 'someone/pages' is no file, and the hub did not give it"):
        list(read_corpus("someone/pages"))


def test_a_corpus_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_corpus(str(tmp_path / "latin.txt")))
