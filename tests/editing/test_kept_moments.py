"""What a second moment was computed from finds it again; what was damaged is refused."""

import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sphere_pl.data.datamodule import EditLoader
from sphere_pl.editing import kept_moments
from sphere_pl.editing.kept_moments import second_moments
from sphere_pl.editing.moments import SecondMoment, StatisticsSettings
from sphere_pl.editor import SequentialEditor
from sphere_pl.errors import UserError
from sphere_pl.methods import AlphaEdit
from sphere_pl.progress import untracked as track
from sphere_pl.storage.checkpoint_file import tensor_digest
from tests.editing.conftest import TEXT


@pytest.fixture
def builtin(tmp_path):
    return StatisticsSettings("builtin", tokens=512, length=16, batch_size=2, cache_dir=str(tmp_path / "cache"))


def test_a_second_call_reads_what_the_first_kept(tiny_lm, settings, monkeypatch):
    lm = tiny_lm()
    first = second_moments(lm, lm.sites([1]), settings, track)
    monkeypatch.setattr("sphere_pl.editing.kept_moments.compute_second_moments", None)
    again = second_moments(lm, lm.sites([1]), settings, track)
    assert all(torch.equal(first[name].matrix, again[name].matrix) for name in first)
    assert all(torch.equal(first[name].half_spectrum, again[name].half_spectrum) for name in first)


def test_another_model_text_or_amount_is_computed_anew(tiny_lm, settings, tmp_path):
    def files():
        return len(list((tmp_path / "cache").rglob("*.safetensors")))

    lm = tiny_lm()
    second_moments(lm, lm.sites([1]), settings, track)
    assert files() == 1
    lm = tiny_lm(seed=1)
    second_moments(lm, lm.sites([1]), settings, track)
    (tmp_path / "corpus.txt").write_text(TEXT + "\n\nOslo.")
    second_moments(lm, lm.sites([1]), settings, track)
    more = StatisticsSettings(**{**vars(settings), "tokens": 20})
    second_moments(lm, lm.sites([1]), more, track)
    assert files() == 4


def test_what_was_read_until_enough_is_kept_with_its_count(tiny_lm, builtin, tmp_path):
    lm = tiny_lm()
    first, again = (second_moments(lm, lm.sites([1]), builtin, track) for _ in range(2))
    ((name, moment),) = again.items()
    assert moment.tokens == first[name].tokens
    assert torch.equal(moment.matrix, first[name].matrix)
    second_moments(lm, lm.sites([1]), replace(builtin, tolerance=1.0), track)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_a_damaged_file_is_refused_with_what_to_do(tiny_lm, settings, tmp_path):
    lm = tiny_lm()
    second_moments(lm, lm.sites([1]), settings, track)
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged .*Delete that file"):
        second_moments(lm, lm.sites([1]), settings, track)


def test_two_runs_that_share_a_cache_compute_once(tiny_lm, settings, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    computed = []
    original = kept_moments.compute_second_moments
    monkeypatch.setattr(
        kept_moments, "compute_second_moments", lambda *args: (computed.append(1), time.sleep(0.2), original(*args))[2]
    )
    models = [tiny_lm() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda lm: second_moments(lm, lm.sites([1]), settings, track), models))
    assert len(computed) == 1
    for moments in found[1:]:
        assert all(torch.equal(moment.matrix, found[0][name].matrix) for name, moment in moments.items())


@pytest.mark.parametrize("half", [None, torch.ones(3)])
def test_a_kept_moment_with_a_flipped_bit_is_refused(half, tmp_path):
    path = tmp_path / "moment.safetensors"
    kept_moments._save(SecondMoment(torch.eye(3), half), {"model": "x"}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="Delete that file"):
        kept_moments._load(path)


def test_a_moment_kept_by_an_earlier_version_is_read_without_a_spectrum(tmp_path):
    path = tmp_path / "moment.safetensors"
    save_file({"second_moment": torch.eye(3)}, path, metadata={"model": "x", "sha256": tensor_digest(torch.eye(3))})
    assert torch.equal(kept_moments._load(path).matrix, torch.eye(3))
    assert kept_moments._load(path).half_spectrum is None


def test_a_cached_run_repeats_the_warning_of_an_unsettled_null_space(tiny_lm, requests, bare_trainer, tmp_path, caplog):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n\n".join(["Rome Rome Rome Rome Rome Rome."] * 8 + ["The capital of France is Paris. You and I."] * 8)
    )
    settings = StatisticsSettings(corpus=str(corpus), tokens=200, length=8, batch_size=4, cache_dir=str(tmp_path))
    said = []
    for _ in range(2):
        editor = SequentialEditor(AlphaEdit(1.0, 0.02), [1], statistics=settings, contexts=0)
        editor.lm = tiny_lm()
        bare_trainer(max_epochs=1, limit_val_batches=0).fit(editor, EditLoader(requests, batch_size=2))
        said.append([message for message in caplog.messages if "twice the text" in message])
        caplog.clear()
    assert said[0] == said[1]
    assert len(said[0]) == 1
