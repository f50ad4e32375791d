"""Figures as plain data: what plotly.js draws, without the seconds that plotly's own classes take.

A report is written again and again while a run lasts, so a figure here is a list of traces and a layout, both
dictionaries in plotly's schema.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

_FEW = 12  # edits on an axis that names each
Trace: TypeAlias = dict[str, Any]


class Drawing:
    """A figure: one or two panels above each other, or one panel with a second scale at its right.

    Args:
        height: Height in pixels.
        x_title: What the x axis counts.
        panels: 1, or 2 above each other; the lower one is drawn on `"y2"`.
        right_axis: Whether `"y2"` is a second scale at the right of a single panel.

    Attributes:
        data: The traces.
        layout: The layout.
    """

    def __init__(self, height: int, x_title: str, panels: int = 1, right_axis: bool = False) -> None:
        self.data: list[Trace] = []
        self.layout: dict[str, Any] = {
            "height": height,
            "margin": {"l": 58, "r": 18, "t": 12, "b": 46},
            "hovermode": "x unified",
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
            "xaxis": {"title": {"text": x_title}, "anchor": "y2" if panels == 2 else "y"},
            "yaxis": {"automargin": True, "anchor": "x"},
        }
        if panels == 2:
            self.axis("y", domain=[0.545, 1.0])
            self.axis("y2", automargin=True, anchor="x", domain=[0.0, 0.455])
        if right_axis:
            self.axis("y2", automargin=True, anchor="x", overlaying="y", side="right")

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.layout["height"])

    @property
    def points(self) -> int:
        """How many points its longest curve has; guides that show no value of their own do not count.

        Nor does the unedited model at 0 edits: a line from there to a single point shows no course.
        """
        curves = [zip(trace["x"], trace["y"], strict=True) for trace in self.data if trace.get("hoverinfo") != "skip"]
        return max((sum(x != 0 and y is not None and math.isfinite(y) for x, y in each) for each in curves), default=0)

    def add(self, *traces: Trace, axis: str = "y") -> None:
        """Draw traces on a y axis, `"y"` or `"y2"`."""
        self.data += [{**trace, "yaxis": axis} if axis != "y" else trace for trace in traces]

    def axis(self, name: str, title: str | None = None, **settings: Any) -> None:
        """Set what an axis looks like; `name` is `"x"`, `"y"` or `"y2"`."""
        held = self.layout.setdefault(f"{name[0]}axis{name[1:]}", {})
        held.update(settings)
        if title is not None:
            held["title"] = {"text": title}

    def note(self, **annotation: Any) -> None:
        """Write words into the figure."""
        self.layout.setdefault("annotations", []).append(annotation)

    def to_json(self) -> str:
        """The figure as JSON; numbers that are none are null, which plotly leaves out."""
        counts = {x for trace in self.data for x in trace["x"]} - {None}
        if len(counts) == 1:
            self.axis("x", rangemode="tozero")  # plotly would centre a single place between made-up ones
        if all(isinstance(x, int | float) and x in range(_FEW + 1) for x in counts):
            self.axis("x", dtick=1)  # there are no half edits
        return json.dumps(finite({"data": self.data, "layout": self.layout}), separators=(",", ":"))


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by None.

    Example:
        >>> finite({"y": (1.0, float("nan"))})
        {'y': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
