"""What an edit's strength costs: `python -m benchmarks.trade_off NAME=PATH ...`.

With a weaker regulariser an edit holds in more wordings, and moves more of what was not asked for. For each model some
built-in facts are edited with the layers that it gets by itself and several regularisers, after the same targets, and
taken back. Results are written beside this file, and drawn.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.methods import AlphaEdit
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model
from sphere_pl.progress import untracked
from sphere_pl.tuning.found import trial_facts
from sphere_pl.tuning.rules import layers_by_depth
from sphere_pl.tuning.trial import Bench

RESULTS = Path(__file__).with_name("trade_off.json")
RIDGES = (3.0, 1.0, 0.3, 0.1, 0.03)


def measure(lm: LanguageModel, facts: int, statistics: StatisticsSettings) -> list[dict[str, float]]:
    """What each regulariser reaches, the strongest first."""
    layers = layers_by_depth(lm.editable_layers(), lm.n_layers)
    bench = Bench.set_up(lm, AlphaEdit(), statistics, (2, 10), trial_facts(facts), untracked)
    return [
        {"ridge": ridge, **bench.try_out(layers, TargetSettings(), AlphaEdit(relative_ridge=ridge)).plain()}
        for ridge in RIDGES
    ]


def draw(found: dict[str, Any], path: Path) -> None:
    """Generalization over agreement, a line for each model."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, run in found.items():
        points = run["points"]
        agreement, generalization = ([point[key] for point in points] for key in ("agreement", "generalization"))
        axes.plot(agreement, generalization, "o-", label=name)
        for point in points:
            axes.annotate(
                f"{point['ridge']:g}",
                (point["agreement"], point["generalization"]),
                xytext=(4, 4),
                textcoords="offset points",
            )
    axes.set(xlabel="neighborhood agreement", ylabel="generalization", title="relative_ridge, strongest to weakest")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure the models named, keep what was found and draw all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="name=path")
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--cache_dir", help="where second moments are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    for entry in given.models:
        name, _, path = entry.partition("=")
        lm = load_language_model(path or name, dtype="bfloat16")
        points = measure(lm, given.facts, StatisticsSettings(cache_dir=given.cache_dir))
        found[name] = {"facts": given.facts, "points": points}
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
