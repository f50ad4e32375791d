"""What is drawn through a cloud of points: consecutive differences, a regression line, a confidence ellipse."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sphere_pl.report.correlations import paired
from sphere_pl.report.reading import Series

MIN_POINTS = 4  # validations below which a cloud says nothing


class Changes(NamedTuple):
    """Consecutive differences of two series; `edits` is where each ends."""

    edits: list[float]
    x: list[float]
    y: list[float]


class Line(NamedTuple):
    """A least-squares line."""

    slope: float
    intercept: float


class Ellipse(NamedTuple):
    """Outline of an ellipse, closed."""

    x: list[float]
    y: list[float]


def changes(x: Series, y: Series) -> Changes:
    """Differences between consecutive values, where both series have one.

    Example:
        >>> changes(Series((1.0, 2.0, 3.0), (5.0, 6.0, 8.0)), Series((1.0, 3.0), (0.5, 0.25)))
        Changes(edits=[3.0], x=[3.0], y=[-0.25])
    """
    edits, left, right = paired(x, y)
    return Changes(edits[1:], np.diff(left).tolist(), np.diff(right).tolist())


def regression_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Fit a line by least squares; none if the points have fewer than two different x.

    Example:
        >>> regression_line([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
        Line(slope=2.0, intercept=1.0)
    """
    if len(x) < 2 or len(set(x)) < 2:
        return None
    dx, dy = np.asarray(x) - np.mean(x), np.asarray(y) - np.mean(y)
    slope = float(dx @ dy / (dx @ dx))
    return Line(slope, float(np.mean(y) - slope * np.mean(x)))


def confidence_ellipse(x: Sequence[float], y: Sequence[float], level: float = 0.95, points: int = 90) -> Ellipse | None:
    """Outline the region that holds a share of a normal distribution with the points' mean and covariance.

    Args:
        x: First coordinates.
        y: Second coordinates.
        level: The share.
        points: Corners of the outline.

    Returns:
        The ellipse, none for fewer than three points or points on one line.
    """
    if len(x) < 3:
        return None
    values, vectors = np.linalg.eigh(np.corrcoef(x, y) if np.std(x) * np.std(y) > 0 else np.zeros((2, 2)))
    if values[0] <= 1e-12:
        return None
    radius = math.sqrt(-2 * math.log1p(-level))  # root of the chi-squared quantile with 2 degrees of freedom
    angle = np.linspace(0, 2 * math.pi, points)
    unit = vectors @ (radius * np.sqrt(values)[:, None] * np.stack([np.cos(angle), np.sin(angle)]))  # [2, points]
    scale, centre = np.std([x, y], axis=1, ddof=1), np.mean([x, y], axis=1)
    outline = centre[:, None] + scale[:, None] * unit
    return Ellipse(outline[0].tolist(), outline[1].tolist())
