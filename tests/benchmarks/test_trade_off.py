"""The trade-off's benchmark on a tiny model: the same targets for every regulariser, and a picture."""

from benchmarks import trade_off
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.problem import ModelBatch


def test_regularizers_are_compared_after_the_same_targets_and_drawn(tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(trade_off, "RIDGES", (1.0, 0.1))
    asked = []
    optimize = ModelBatch.optimize_targets
    monkeypatch.setattr(ModelBatch, "optimize_targets", lambda *args: (asked.append(1), optimize(*args))[1])
    (tmp_path / "corpus.txt").write_text("The capital of France is Paris. Rome is a city in Italy by the sea. " * 40)
    statistics = StatisticsSettings(corpus=str(tmp_path / "corpus.txt"), tokens=200, cache_dir=str(tmp_path))
    points = trade_off.measure(tiny_lm("llama", tokenizer="byte_level"), 2, statistics)
    assert [point["ridge"] for point in points] == list(trade_off.RIDGES)
    assert len(asked) == 1
    trade_off.draw({"tiny": {"points": points}}, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000
