from dataclasses import replace

import pytest
import torch

from sphere_pl.data.builtin import Written
from sphere_pl.editing import moments as statistics
from sphere_pl.editing.moments import (
    StatisticsSettings,
    compute_second_moments,
)
from sphere_pl.editing.representations import capture_input
from sphere_pl.errors import UserError
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.progress import untracked as track
from tests.editing.conftest import TEXT
from tests.others import flatten_tokens


def test_second_moments_are_those_of_one_sequence_at_a_time(tiny_lm, family, settings):
    lm = tiny_lm(family)
    sites = lm.sites([1, 2])
    found = compute_second_moments(lm, sites, settings, track)
    for site in sites:
        total, count = torch.zeros(48, 48, dtype=torch.float64), 0
        for document in TEXT.split("\n\n"):
            ids = lm.tokenizer(document)["input_ids"]
            for start in range(0, len(ids), 8):
                with capture_input(site.module) as inputs, torch.no_grad():
                    lm.model(input_ids=torch.tensor([ids[start : start + 8]]))
                total += (inputs[0][0].T @ inputs[0][0]).double()
                count += len(inputs[0][0])
            if count >= 30:
                break
        torch.testing.assert_close(found[site.name].matrix.double(), total / count, rtol=1e-4, atol=1e-4)


def test_second_moments_are_those_of_blocks_that_hand_rows_and_columns_on_as_one(tiny_lm, settings):
    found = []
    for lm in (tiny_lm(), flatten_tokens(tiny_lm())):
        found.append(compute_second_moments(lm, lm.sites([1]), settings, track)["model.layers.1.mlp.down_proj.weight"])
    torch.testing.assert_close(found[1].matrix, found[0].matrix)


MIXED = "\n\n".join(
    [TEXT, "Oslo.", "The river runs to the sea. " * 9, "Rome.", "Mount Fuji stands in Japan.", "I am. " * 7]
)


def test_documents_of_all_lengths_give_the_moment_of_one_document_at_a_time(tiny_lm, family, tmp_path):
    corpus = tmp_path / "mixed.txt"
    corpus.write_text(MIXED)
    lm = tiny_lm(family)
    (site,) = lm.sites([2])
    found = compute_second_moments(
        lm, [site], StatisticsSettings(corpus=str(corpus), tokens=10**6, length=40, batch_size=4), track
    )
    total, count = torch.zeros(48, 48, dtype=torch.float64), 0
    for document in MIXED.split("\n\n"):
        ids = lm.tokenizer(document.strip())["input_ids"]
        for start in range(0, len(ids), 40):
            with capture_input(site.module) as inputs, torch.no_grad():
                lm.model(input_ids=torch.tensor([ids[start : start + 40]]))
            total, count = total + (inputs[0][0].T @ inputs[0][0]).double(), count + len(inputs[0][0])
    torch.testing.assert_close(found[site.name].matrix.double(), total / count, rtol=1e-5, atol=1e-5)


def test_rows_of_many_lengths_are_padded_by_next_to_nothing_and_each_runs_once():
    lengths = [1 + 37 * row % 100 for row in range(400)]
    batches = statistics._batches(lengths, 16)
    assert sorted(row for batch in batches for row in batch) == list(range(400))
    padded = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    assert sum(padded) < 1.05 * sum(lengths)
    assert max(padded) <= 16 * 100


def test_rows_of_nearly_one_length_stay_in_the_order_of_the_text():
    assert statistics._batches([100, 98, 100, 97, 99], 2) == [[0, 1], [2, 3], [4]]


def test_asked_for_samples_the_model_writes_the_text(tiny_lm, tmp_path):
    lm = tiny_lm()
    settings = StatisticsSettings("sampled", tokens=64, length=32, batch_size=1, cache_dir=str(tmp_path))
    moment = compute_second_moments(lm, lm.sites([1]), settings, track)["model.layers.1.mlp.down_proj.weight"].matrix
    assert moment.shape == (48, 48)
    assert torch.linalg.eigvalsh(moment).min() > -1e-5


@pytest.fixture
def builtin(tmp_path):
    return StatisticsSettings("builtin", tokens=512, length=16, batch_size=2, cache_dir=str(tmp_path / "cache"))


def test_a_model_without_a_file_of_its_own_reads_the_built_in_text():
    assert StatisticsSettings().settled() == StatisticsSettings("builtin", tolerance=0.5)
    for name in ("sampled", None):
        assert StatisticsSettings(name).settled() == StatisticsSettings(None)
        assert not StatisticsSettings(name).settled().adaptive


def test_what_a_model_has_written_before_is_read_and_nothing_else_is(tiny_lm, monkeypatch):
    lm = tiny_lm("llama", tokenizer="byte_level")
    sampled = []
    monkeypatch.setattr(
        statistics, "sample_texts", lambda *_, **__: sampled.append(1) or ["The model writes now. " * 20]
    )
    kept = Written([fingerprint(lm)], 128, 0, 300, ["It was written before. " * 8, "And this. " * 20])
    settings = StatisticsSettings(corpus=None, length=128)
    for text, asked, budget in [
        (kept, settings, 300),
        (kept, settings, 301),
        (kept, replace(settings, seed=1), 300),
        (kept, replace(settings, length=64), 300),
        (kept._replace(models=["another"]), settings, 300),
    ]:
        monkeypatch.setattr(statistics, "written", lambda text=text: text)
        sampled.clear()
        rows = statistics.corpus_rows(lm, asked, budget, track)
        before = (text, asked, budget) == (kept, settings, 300)
        assert ("written before" in lm.tokenizer.decode(rows[0])) == before
        assert bool(sampled) != before


def test_the_default_model_samples_its_text(parsed):
    assert parsed()["model"]["statistics"]["corpus"] == "sampled"
    assert parsed("--model.name=some/other")["model"]["statistics"]["corpus"] == "builtin"


def test_the_built_in_text_is_packed_into_rows_that_begin_as_prompts_do(tiny_lm, builtin):
    lm = tiny_lm()
    rows = statistics.corpus_rows(lm, builtin, 512, track)
    opening = statistics._opening(lm)
    assert [len(row) for row in rows] == [16] * 32
    assert all(row[: len(opening)] == opening for row in rows)
    assert lm.tokenizer("A")["input_ids"][: len(opening)] == opening


def test_reading_stops_when_more_text_would_change_little(tiny_lm, builtin):
    lm = tiny_lm()
    sites = lm.sites([1, 2])

    def tokens(**changed):
        found = compute_second_moments(lm, sites, replace(builtin, **changed), track)
        return [moment.tokens for moment in found.values()]

    assert max(tokens(tolerance=3.0)) < 512
    assert max(tokens(tolerance=1e-6)) == 512
    assert tokens(tolerance=1e-6, seconds=1e-9) == [32, 32]


def test_how_much_is_read_for_a_matrix_does_not_depend_on_the_others(tiny_lm, builtin):
    lm = tiny_lm()
    together = compute_second_moments(lm, lm.sites([1, 3]), replace(builtin, tolerance=1.0), track)
    for layer in (1, 3):
        ((name, alone),) = compute_second_moments(lm, lm.sites([layer]), replace(builtin, tolerance=1.0), track).items()
        assert alone.tokens == together[name].tokens
        assert torch.equal(alone.matrix, together[name].matrix)


@pytest.mark.parametrize("name", ["tolerance", "seconds"])
def test_a_bound_of_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"statistics.{name}=0"):
        StatisticsSettings(**{name: 0})


def test_a_corpus_that_is_too_short_is_used_whole_with_a_warning(tiny_lm, settings, caplog):
    lm = tiny_lm()
    compute_second_moments(lm, lm.sites([1]), StatisticsSettings(**{**vars(settings), "tokens": 10**6}), track)
    assert "fewer than the 1000000 asked for" in caplog.text


def test_one_long_document_is_read_only_as_far_as_needed(tiny_lm, settings, tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("Rome is a city in Italy by the sea. " * 2000)
    counted = []
    original = statistics.pad
    monkeypatch.setattr(statistics, "pad", lambda rows, *a: (counted.extend(map(len, rows)), original(rows, *a))[1])
    lm = tiny_lm()
    compute_second_moments(lm, lm.sites([1]), settings, track)
    assert 30 <= sum(counted) < 30 + settings.length


def test_an_empty_corpus_is_refused(tiny_lm, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n ")
    lm = tiny_lm()
    with pytest.raises(UserError, match="holds no text"):
        compute_second_moments(lm, lm.sites([1]), StatisticsSettings(corpus=str(tmp_path / "empty.txt")), track)


def test_the_half_spectrum_is_that_of_half_the_budget(tiny_lm, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n\n".join(["Rome is a city in Italy by the sea.", "The capital of France is Paris. You and I."] * 8)
    )
    lm = tiny_lm()
    (site,) = lm.sites([1])
    settings = StatisticsSettings(corpus=str(corpus), tokens=256, length=8, batch_size=4)
    whole = compute_second_moments(lm, [site], settings, track)[site.name]
    lengths = [len(row) for row in statistics.corpus_rows(lm, settings, 256, track)]
    first, second = statistics._halves(lengths, 4)
    tokens = sum(lengths[row] for rows in first for row in rows)
    assert abs(tokens - sum(lengths) / 2) <= 4 * 8 / 2
    assert sorted(row for rows in first + second for row in rows) == list(range(len(lengths)))
    half = compute_second_moments(lm, [site], replace(settings, tokens=tokens), track)[site.name]
    torch.testing.assert_close(whole.half_spectrum, torch.linalg.eigvalsh(half.matrix), rtol=1e-4, atol=1e-5)


def test_text_of_a_single_batch_has_no_halves(tiny_lm, settings):
    lm = tiny_lm()
    (site,) = lm.sites([1])
    assert compute_second_moments(lm, [site], replace(settings, batch_size=99), track)[site.name].half_spectrum is None
