"""`tune`: a search that can be stopped and resumed, and whose file `fit` takes."""

import pytest
import yaml

pytest.importorskip("optuna")


@pytest.fixture
def tune(command_line, model_folder, tmp_path, monkeypatch):
    """Search on a tiny model for a moment; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea. " * 40)

    def run(*args):
        return command_line(
            "tune", f"--model.name={model_folder}", "--model.dtype=float32", "--seconds=0.2", "--facts=1",
            "--contexts=0", f"--statistics.corpus={tmp_path / 'corpus.txt'}", "--statistics.tokens=200",
            f"--statistics.cache_dir={tmp_path / 'cache'}", "--accelerator=cpu", "--quiet", *args,
        )  # fmt: skip

    return run


@pytest.mark.filterwarnings("ignore")
def test_a_search_writes_a_file_that_fit_takes_and_is_resumed(tune, tmp_path, fit_parser):
    status, out, err = tune("--out=mine.yaml", "--journal=mine.journal")
    assert status == 0, err
    assert out == "--config=mine.yaml\n"
    section = yaml.safe_load((tmp_path / "mine.yaml").read_text())["model"]
    assert section["layers"]
    assert section["targets"]["units"] == "state"
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "mine.journal").read_bytes()
    assert tune("--out=mine.yaml", "--journal=mine.journal")[0] == 0
    assert (tmp_path / "mine.journal").read_bytes().startswith(first)


@pytest.mark.parametrize(
    ("wrong", "words"), [("--seconds=0", "must be above 0"), ("--facts=0", "at least 1"), ("--second=3", "--seconds")]
)
def test_bad_arguments_end_with_one_message_and_no_file(tune, tmp_path, wrong, words):
    status, _, err = tune("--out=mine.yaml", wrong)
    assert status == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_journal_is_refused_by_name(tune, tmp_path):
    (tmp_path / "mine.journal").write_text("no journal\n")
    status, _, err = tune("--out=mine.yaml", "--journal=mine.journal")
    assert status == 2
    assert "mine.journal" in err
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_search_that_is_interrupted_writes_no_settings_and_keeps_its_candidates(tune, tmp_path, monkeypatch):
    from sphere_pl.tuning import study

    monkeypatch.setattr(study, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, _ = tune("--out=mine.yaml", "--journal=mine.journal")
    assert status == 130
    assert not (tmp_path / "mine.yaml").exists()
    monkeypatch.undo()
