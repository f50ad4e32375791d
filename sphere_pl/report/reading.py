"""Read a run folder: `metrics.csv`, `results.json` and `config.yaml`, whichever are there yet."""

import csv
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from sphere_pl.errors import UserError
from sphere_pl.evaluation.scored import Scored, Scores, from_plain
from sphere_pl.text.method_names import parts_of

FILES = ("metrics.csv", "results.json", "config.yaml")

Row: TypeAlias = dict[str, float]


class Series(NamedTuple):
    """One column of `metrics.csv` without its empty cells.

    Attributes:
        edits: Edits done when each value was logged, ascending.
        values: The values.
    """

    edits: tuple[float, ...]
    values: tuple[float, ...]

    def scaled(self, factor: float) -> "Series":
        """Multiply the values.

        Example:
            >>> Series((100.0,), (0.25,)).scaled(100)
            Series(edits=(100.0,), values=(25.0,))
        """
        return Series(self.edits, tuple(value * factor for value in self.values))

    def starting_at(self, value: float) -> "Series":
        """Put a value at 0 edits in front; a NaN is left out.

        Example:
            >>> Series((100.0,), (0.25,)).starting_at(0.0)
            Series(edits=(0.0, 100.0), values=(0.0, 0.25))
        """
        if not self.edits or math.isnan(value):
            return self
        return Series((0.0, *self.edits), (value, *self.values))


class RunData(NamedTuple):
    """What a run folder says.

    Attributes:
        folder: The run folder.
        columns: Every column of `metrics.csv` that has a value, by name.
        results: `results.json`; empty while the run lasts.
        config: `config.yaml` as text; empty if there is none.
        updated: When the newest of the files was written, in seconds since 1970.
    """

    folder: Path
    columns: dict[str, Series]
    results: dict[str, Any]
    config: str
    updated: float

    @property
    def finished(self) -> bool:
        """Whether the run has written its results."""
        return bool(self.results)

    @property
    def method(self) -> str:
        """The method and what its updates pass through; the folder's name until the run has finished."""
        return str(self.results.get("method") or self.folder.resolve().name)

    @property
    def method_name(self) -> str:
        """The method alone; the folder's name until the run has finished."""
        return str(self.results.get("method_name") or self._parts[0])

    @property
    def transforms(self) -> tuple[str, ...]:
        """What the updates pass through; empty until the run has finished."""
        return tuple(self.results.get("transforms", self._parts[1]))

    @property
    def _parts(self) -> tuple[str, list[str]]:
        return parts_of(self.method) if self.finished else (self.method, [])

    @property
    def model(self) -> str:
        """The model's name; empty until the run has finished."""
        return str(self.results.get("model") or "")

    @property
    def edits(self) -> int:
        """Edits done so far."""
        said = self.series("edits").values
        placed = said or [series.edits[-1] for series in self.columns.values()]
        return int(self.results.get("edits") or max(placed, default=0))

    @property
    def progress(self) -> str:
        """What the x axis counts: edits, or batches if no row of `metrics.csv` says how many edits there were."""
        return "edits so far" if self.series("edits").edits else "batches so far"

    def series(self, name: str) -> Series:
        """A column, empty if it was never logged."""
        return self.columns.get(name, Series((), ()))

    def before(self, metric: str) -> float:
        """A metric of the unedited model; NaN until the run has finished."""
        return self.scored(metric, "before").value

    def start(self, column: str) -> float:
        """What a column would say of the unedited model; NaN if that was not measured."""
        kind, _, name = column.partition("/")
        if kind == "abilities":
            return number(((self.results.get("abilities") or {}).get(name) or {}).get("before"))
        return self.before(name) if kind == "val" else math.nan

    def after(self, metric: str) -> float:
        """A metric over all edits: the final one, or the last validation's while the run lasts."""
        final = self.scored(metric, "after").value
        logged = self.series(f"val/{metric}").values
        return logged[-1] if math.isnan(final) and logged else final  # JSON has no infinity: results say null

    def scores(self, when: str) -> Scores:
        """All scores `before` or `after`, as the results have them; empty until the run has finished."""
        return from_plain(self.results.get(when) or {})

    def scored(self, metric: str, when: str) -> Scored:
        """A score `before` or `after` with its standard error over records; NaN if it was not measured."""
        return self.scores(when).get(metric, Scored(math.nan))

    def standard_error(self, metric: str, when: str = "after") -> float:
        """Standard error over records of a metric `before` or `after`; NaN if it was not measured."""
        return self.scored(metric, when).error


def number(value: Any) -> float:
    """A JSON value as a float, with NaN for null and for what is no number.

    Example:
        >>> number(3), number(None)
        (3.0, nan)
    """
    return float(value) if isinstance(value, (int, float)) else math.nan


def read_run(folder: Path) -> RunData:
    """Read a run folder, finished or not.

    Args:
        folder: A folder that `python -m sphere_pl fit` wrote.

    Returns:
        What is there so far.

    Raises:
        UserError: If the folder holds none of a run's files, or a broken `results.json`.
    """
    folder = Path(folder)
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        raise UserError(_no_run(folder))
    rows = _read_rows(folder / FILES[0]) if folder / FILES[0] in found else []
    config = (folder / FILES[2]).read_text(encoding="utf-8") if folder / FILES[2] in found else ""
    results = _read_results(folder / FILES[1]) if folder / FILES[1] in found else {}
    return RunData(folder, _columns(rows), results, config, max(path.stat().st_mtime for path in found))


def _no_run(folder: Path) -> str:
    inside = sorted(path.parent.name for path in folder.glob(f"*/{FILES[0]}")) if folder.is_dir() else []
    state = "holds none of " + ", ".join(FILES) if folder.is_dir() else "is no folder"
    hint = f" It contains run folders: {', '.join(inside[:8])}; name one of them." if inside else ""
    return f"`{folder}` is no run folder: it {state}.{hint} Give the folder that `python -m sphere_pl fit` wrote."


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Restore it or delete it to see the run as unfinished."
        ) from error
    if not isinstance(results, dict):
        raise UserError(f"{path} must hold a JSON object, got a {type(results).__name__}. Restore or delete it.")
    return results


def _read_rows(path: Path) -> list[Row]:
    """The filled cells of each row; a half-written last line loses the cell that it breaks off in."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_cells(row) for row in csv.DictReader(file)]


def _cells(row: dict[str, Any]) -> Row:
    cells = {}
    for name, text in row.items():
        if name and text:
            try:
                cells[name] = float(text)
            except ValueError:
                continue
    return cells


def _columns(rows: Sequence[Row]) -> dict[str, Series]:
    values: dict[str, dict[float, float]] = {}
    for row, edits in zip(rows, _edits(rows), strict=True):
        for name, value in row.items():
            values.setdefault(name, {})[edits] = value  # a repeated step of a resumed run: the later row counts
    ordered = {name: sorted(column.items()) for name, column in values.items() if name not in {"step", "epoch"}}
    return {name: Series(*zip(*column, strict=True)) for name, column in ordered.items()}


def _edits(rows: Sequence[Row]) -> list[float]:
    """Edits done at each row; rows that do not say are placed by their step, in between those that do."""
    known = {row["step"]: row["edits"] for row in rows if "step" in row and "edits" in row}
    points = [(-1.0, 0.0), *sorted(known.items())] if known else [(-1.0, 0.0), (0.0, 1.0)]
    return [row["edits"] if "edits" in row else _interpolate(points, row.get("step", 0.0)) for row in rows]


def _interpolate(points: Sequence[tuple[float, float]], step: float) -> float:
    """Read a polygon at a step; its last piece never ends."""
    right = min(max(bisect_left(points, (step, -math.inf)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
