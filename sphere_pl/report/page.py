"""The report of one run."""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from sphere_pl.report import families
from sphere_pl.report.cards import Absent, figure_cards
from sphere_pl.report.facts import cases, failures, opening
from sphere_pl.report.html import Html, figure, fold, grid, page, section, table
from sphere_pl.report.reading import RunData, number, read_run
from sphere_pl.report.scores import before_after, tiles
from sphere_pl.report.style import label, signed_percent
from sphere_pl.report.verdict import summary
from sphere_pl.storage.files import write_text
from sphere_pl.text.numbers import counted, total

REFRESH = 30  # seconds


def write_report(run_dir: Path, live: bool = True) -> Path:
    """Write `report.html` into a run folder, whether the run has finished or not.

    Args:
        run_dir: The run folder.
        live: Whether an unfinished run continues, so that its page loads itself again.

    Returns:
        The path of the report.

    Raises:
        UserError: If the folder is no run folder or cannot be written to.
    """
    run = read_run(run_dir)
    path = run.folder / "report.html"
    title = f"{run.method} · {run.model}" if run.model else run.method
    live = live and not run.finished
    write_text(path, page(title, body(run, live), refresh=REFRESH if live else None))
    return path


def body(run: RunData, live: bool) -> Html:
    """The report between `<body>` and `</body>`, without scripts that draw it."""
    cards = [
        *opening(run),
        before_after(run),
        *figure_cards(run),
        cases(run),
        "" if run.results.get("facts") else failures(run),
    ]
    shown = [card for card in cards if isinstance(card, str)]
    absent = [card for card in cards if isinstance(card, Absent)]
    parts = [_summary(run), tiles(run), *shown, _details(run, absent)]
    return _header(run, live) + "<main>" + "".join(parts) + "</main>" + footer()


def _summary(run: RunData) -> Html:
    said = summary(run.results)
    return f'<p class="summary">{escape(said)}</p>' if said else ""


def footer() -> Html:
    """What stands below every report."""
    return (
        "<footer>Made by sphere_pl. This file holds its data and all it needs to draw them; it loads nothing from the "
        "network. Click a name in a legend to hide its curve, drag across a figure to zoom, double-click to go back."
        "</footer>"
    )


def _header(run: RunData, live: bool) -> Html:
    kind, word = ("finished", "finished") if run.finished else ("running", "running" if live else "stopped")
    state = f'<span class="state {kind}">{word}</span>'
    written = datetime.fromtimestamp(run.updated).astimezone().strftime("%d %B %Y, %H:%M:%S")
    seed = run.results.get("seed")
    facts = [
        run.model,
        counted(run.edits, "edit") if run.edits else "no edits logged yet",
        "" if seed is None else f"seed {seed}",
        f"folder {run.folder.resolve().name}",
        f"data of {written}" + (f", loads again every {REFRESH} s" if live else ""),
    ]
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts if fact)
    return (
        f'<header><p class="eyebrow">Sequential knowledge editing</p><h1>{escape(run.method)}{state}</h1>'
        f'<p class="facts">{line}</p></header>'
    )


def _details(run: RunData, absent: Sequence[Absent]) -> Html:
    energies = run.results.get("hyperspherical_energy") or {}
    versions = run.results.get("versions") or {}
    folds = []
    if absent:
        rows = [(escape(each.title), escape(each.reason)) for each in absent]
        folds.append(fold("Left out", table(("panel", "why"), rows, "text")))
    others = {name: each for name, each in families.other_figures(run).items() if each.points > 1}
    if others:
        cells = [(label(name), figure(f"other-{place}", each, "")) for place, (name, each) in enumerate(others.items())]
        folds.append(fold("Everything else that was logged", grid(cells)))
    if energies:
        folds.append(fold("Energy of each matrix", _energy_table(energies)))
    if versions:
        rows = [(escape(str(name)), escape(str(version))) for name, version in versions.items()]
        folds.append(fold("Versions", table(("package", "version"), rows)))
    if run.config:
        folds.append(fold("Configuration", f"<pre>{escape(run.config)}</pre>"))
    return section("Details", "", *folds) if folds else ""


def _energy_table(energies: dict[str, dict[str, float]]) -> Html:
    rows = []
    for name, each in energies.items():
        before, after = number(each.get("before")), number(each.get("after"))
        change = signed_percent((after - before) / abs(before)) if before else "–"
        rows.append((escape(name), total(before), total(after), change))
    return table(("parameter", "before", "after", "change"), rows)
