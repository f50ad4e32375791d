"""The beginning of the study's page: what SPHERE does for each method, as a picture and in a few lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from sphere_pl.report.style import FAINT, GREEN, INK, VERMILLION
from study.figures import save
from study.runs import COLLAPSE, Pair, Run, grouped, kind, pairs, pooled, share_ratios

HIGHER, LOWER, SAME = "**Higher with SPHERE**", "**lower with SPHERE**", "**no difference seen**"
WORDS = {1: HIGHER, -1: LOWER, 0: SAME}  # by the side of 0 on which the interval of the difference lies
COLORS = {HIGHER: GREEN, LOWER: VERMILLION, SAME: FAINT}
READING = """How to read it: the principal directions of an edited weight are, more and more, those that earlier edits
wrote. A method that remembers no earlier key (ROME, MEMIT, RECT) writes into them again, the more the more updates
there are, whatever the number of edits: the same edits in ten times as many batches wear the model out sooner. SPHERE
takes that part away, and there it keeps what was edited. PRUNE restrains what is evaluated and edits on without, and
SPHERE goes with the restraint: no update changes. AlphaEdit's memory of keys keeps its updates out of these
directions already, so that little is left for SPHERE to take, and taking it gains nothing; *A memory of earlier
keys*, below, shows that it is the memory that does it. Past its collapse (`far`) AlphaEdit, too, writes into them.
SPHERE then holds the energy, but not the edits: the one does not bring the other. The paper's longest runs have 150
updates."""


class Effect(NamedTuple):
    """What SPHERE does for one method with its settings, mean over the draws.

    Attributes:
        name: The method.
        without: Efficacy over all edits without SPHERE.
        behind: The same with SPHERE.
        edits: After how many edits, in words.
        updates: How many updates each weight had by then.
        share: Share of the updates without SPHERE in the principal directions, as a multiple of chance; None if it was
            not measured.
        word: `HIGHER`, `LOWER` or `SAME`, by the 95 % interval of the difference.
    """

    name: str
    without: float
    behind: float
    edits: str
    updates: int
    share: float | None
    word: str

    def __str__(self) -> str:
        share = "" if self.share is None else f" ({self.share:.1f})"
        return f"{self.name} {self.without:.2f} → {self.behind:.2f} after {self.edits}{share}"


def effects(runs: Sequence[Run]) -> list[Effect]:
    """What SPHERE does for each method, in the order of their names."""
    scored = [pair for pair in pairs(runs) if pair.value("val/efficacy") is not None]
    return [_effect(name, found) for name, found in grouped(scored, lambda pair: kind(pair.plain)).items()]


def _effect(name: str, found: Sequence[Pair]) -> Effect:
    values = [value for pair in found if (value := pair.value("val/efficacy")) is not None]
    behind, without = (sum(column) / len(column) for column in zip(*values, strict=True))
    difference = pooled([d for pair in found if (d := pair.difference("val/efficacy"))])
    ratios = [ratio for pair in found for ratio in share_ratios(pair.plain)]
    return Effect(
        name,
        without,
        behind,
        " or ".join(dict.fromkeys(f"{pair.edits:.0f}" for pair in found)),
        len({edits for edits in found[0].plain.found["batches"]["edits"] if 0 < edits <= found[0].edits}),
        sum(ratios) / len(ratios) if ratios else None,
        WORDS[difference.side],
    )


def in_short(runs: Sequence[Run]) -> str:
    """Which methods SPHERE helps, and how much of their updates lies where it acts."""
    found = grouped(effects(runs), lambda effect: effect.word)
    if not found:
        return ""
    head = (
        "Efficacy over all edits, without → with SPHERE (η 0.5, the paper's α), mean over the draws, and in brackets "
        "how much of the updates without SPHERE lies in the principal directions, as a multiple of chance. ROME edits "
        "one fact at a time, `batch10` ten, all others a hundred; `far` goes on for longer; `ridge` is AlphaEdit's "
        "regulariser, `memory` one of the keys of earlier edits."
    )
    lines = [f"- {word}: {'; '.join(map(str, found[word]))}" for word in (HIGHER, LOWER, SAME) if word in found]
    picture = ["![Efficacy with and without SPHERE, method by method](figures/short.png)", ""]
    return "\n".join(["## In short", "", *picture, head, "", *lines, "", READING, ""])


def draw_effects(runs: Sequence[Run], path: Path) -> Path:
    """One line a method, from its efficacy without SPHERE to that with it, the greatest gain on top."""
    found = sorted(effects(runs), key=lambda effect: effect.behind - effect.without)
    figure = Figure(figsize=(9, 0.9 + 0.36 * len(found)), dpi=80, layout="constrained")
    panel = figure.subplots()
    for place, effect in enumerate(found):
        panel.plot([effect.without, effect.behind], [place, place], color=COLORS[effect.word], linewidth=3, zorder=1)
        panel.plot(effect.without, place, "o", color="white", markeredgecolor=INK, markersize=7)
        panel.plot(effect.behind, place, "o", color=COLORS[effect.word], markeredgecolor=INK, markersize=7)
        share = "" if effect.share is None else f", {effect.share:.1f} × chance"
        words = f"{effect.edits} edits, {effect.updates} updates{share}"
        panel.annotate(words, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK)
    panel.axvline(COLLAPSE, color=FAINT, linewidth=1, linestyle=":")
    panel.set_yticks(range(len(found)), [effect.name for effect in found])
    panel.set_xlim(0, 1)
    panel.set_xlabel("efficacy over all edits: ○ without, ● with SPHERE (dotted: collapse)")
    panel.spines[["top", "right"]].set_visible(False)
    return save(figure, path)
