"""Names and colours that every report shares."""

import math
from collections.abc import Sequence
from html import escape

from sphere_pl.evaluation.metrics.table import METRICS, Color, is_share
from sphere_pl.text import numbers

# The palette of Okabe and Ito, told apart by all common kinds of colour vision.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#B1578D", "#C98A00", "#3B9BD1"
INK, FAINT = "#2B3442", "#8A94A3"
METHOD_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross")

# What page.js puts in their place on a dark background.
DARK = {
    BLUE: "#5AB0EA",
    VERMILLION: "#FF8A4C",
    GREEN: "#3CCB9F",
    PURPLE: "#E394C4",
    ORANGE: "#F0BC4A",
    SKY: "#8FD0F5",
    INK: "#D7DEE8",
    FAINT: "#7D8896",
}

COLORS: dict[Color, str] = {
    "blue": BLUE,
    "vermillion": VERMILLION,
    "green": GREEN,
    "purple": PURPLE,
    "orange": ORANGE,
    "sky": SKY,
}
METRIC_COLORS = {metric.name: COLORS[metric.color] for metric in METRICS}
METRIC_SYMBOLS = {metric.name: metric.symbol for metric in METRICS}
_LABELS = {**{metric.name: metric.label for metric in METRICS}, "kl": "KL divergence"}


def label(metric: str) -> str:
    """What a metric is called in figures and tables.

    Example:
        >>> label("neighborhood_agreement"), label("val/efficacy"), label("drift/kl"), label("probability/efficacy")
        ('agreement', 'efficacy', 'drift, KL divergence', 'probability, efficacy')
    """
    parts = [_LABELS.get(part, part.replace("_", " ")) for part in metric.removeprefix("val/").split("/")]
    return ", ".join(parts[1:] if parts[0] == "abilities" and len(parts) > 1 else parts)


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out what dotted names have in common, escaped for a figure or a page.

    Example:
        >>> short_names(["model.layers.4.mlp.down_proj.weight", "model.layers.5.mlp.down_proj.weight"])
        ['layer 4', 'layer 5']
        >>> short_names(["head.weight"])
        ['head.weight']
    """
    if len(names) < 2:
        return [escape(name) for name in names]
    parts = [name.split(".") for name in names]
    start = _common(parts)
    stop = _common([each[:start:-1] for each in parts])
    kind = parts[0][start - 1].removesuffix("s") + " " if start else ""
    return [escape(kind + ".".join(each[start : len(each) - stop])) for each in parts]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many leading pieces all lists share."""
    count = 0
    for pieces in zip(*parts, strict=False):
        if len(set(pieces)) > 1:
            break
        count += 1
    return count


def signed_percent(share: float, digits: int | None = None) -> str:
    """A change in per cent, with its sign; see `sphere_pl.text.numbers.change`.

    Example:
        >>> signed_percent(0.00123), signed_percent(-0.5, 0)
        ('+0.12 %', '−50 %')
    """
    return numbers.typeset(numbers.change(share, digits))


def signed(value: float) -> str:
    """A coefficient with two digits and its sign.

    Example:
        >>> signed(-0.918), signed(float("nan"))
        ('−0.92', '–')
    """
    return numbers.typeset(numbers.coefficient(value))


def score(metric: str, value: float, error: float = math.nan) -> str:
    """A metric's value as a reader wants it: shares in per cent, others such as perplexity as they are."""
    return numbers.percent(value, error) if is_share(metric) else numbers.typeset(numbers.plain(value))
