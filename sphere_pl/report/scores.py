"""What a run came to in numbers: the tiles at its head, and the table of before and after."""

import math
from html import escape

from sphere_pl.evaluation.metrics.table import FIRST_RANK, PROTOCOLS, is_share, metric_of
from sphere_pl.report.collapse import BOUND, collapse
from sphere_pl.report.html import Html, missing, section, table, tile
from sphere_pl.report.reading import RunData, number
from sphere_pl.report.style import label, score, signed_percent
from sphere_pl.text.numbers import counted, difference, duration, memory, typeset


def tiles(run: RunData) -> Html:
    """The metrics of the first rank, what collapsed, and what the run cost, each with one number."""
    metrics = [
        tile(label(metric), score(metric, run.after(metric)), _was(run, metric), _arrow(run, metric))
        for metric in FIRST_RANK
        if math.isfinite(run.after(metric)) or math.isinf(run.after(metric))
    ]
    return '<div class="tiles">' + "".join([*metrics, *_collapse_tile(run), *_cost_tiles(run)]) + "</div>"


def _arrow(run: RunData, metric: str) -> Html:
    """The change of a metric, with an arrow and a colour that says whether it is for the better."""
    before, after = run.before(metric), run.after(metric)
    shown = _difference(metric, before, after)
    if not (math.isfinite(before) and math.isfinite(after)) or not any(digit in shown for digit in "123456789"):
        return ""
    row = metric_of(metric)
    better = (after > before) == (row is None or row.higher_is_better)
    sign = "↑" if after > before else "↓"
    return f'<span class="{"good" if better else "bad"}">{sign} {escape(shown.lstrip("+−"))}</span>'


def _collapse_tile(run: RunData) -> list[Html]:
    found = collapse(run)
    return [] if found is None else [tile("collapsed", f"at {found.edits:,}", f"edits: efficacy below {BOUND:.0%}")]


def _was(run: RunData, metric: str) -> str:
    before = run.before(metric)
    if math.isfinite(before):
        return f"before: {score(metric, before)}"
    row = metric_of(metric)
    return "" if row is None else row.scope


def _cost_tiles(run: RunData) -> list[Html]:
    energy, seconds = run.series("energy/change").values, run.series("time/seconds").values
    whole = number(run.results.get("seconds_total"))
    found = []
    if energy:
        found.append(tile("energy", signed_percent(energy[-1]), "mean change since start"))
    if math.isfinite(number(run.results.get("seconds_per_edit"))):
        found.append(tile("time per edit", duration(run.results["seconds_per_edit"]), f"{duration(whole)} in all"))
    elif seconds:
        found.append(tile("time per batch", duration(sum(seconds) / len(seconds)), "mean so far"))
    if math.isfinite(number(run.results.get("peak_memory_bytes"))):
        found.append(tile("peak memory", memory(run.results["peak_memory_bytes"])))
    return found


def before_after(run: RunData) -> Html:
    """The card with every metric of the unedited and the edited model, and its change."""
    caption = (
        "Means over all edits in per cent, ± one standard error over edited records; changes in percentage points. "
        "What is no share stands as it is, and so does its change; perplexity's is in per cent."
    )
    asked = [each for each in PROTOCOLS if each.prefix and any(name.startswith(each.prefix) for name in _measured(run))]
    caption += "".join(f" {each.label.capitalize()}: {each.meaning}." for each in asked)
    if not run.finished:
        return section("Before and after", "", missing("The table appears when the run has finished."))
    rows = [
        (
            f"{escape(label(metric))}<small>{escape(_meaning(run, metric))}</small>",
            *(_spread(score(metric, *pair).removesuffix(" %")) for pair in _means(run, metric)),
            _colored(run, metric),
        )
        for metric in _measured(run)
    ]
    return section("Before and after", caption, table(("", "before", "after", "change"), rows))


def _measured(run: RunData) -> list[str]:
    """The paper's metrics first, then what other protocols and measures have added to the results."""
    names = dict.fromkeys((*FIRST_RANK, *run.scores("after")))
    return [name for name in names if not (math.isnan(run.before(name)) and math.isnan(run.after(name)))]


def _spread(shown: str) -> Html:
    """A mean with its error, which a phone shows below it."""
    mean, sign, error = shown.partition(" ± ")
    return f'{mean}<span class="error"> ± {error}</span>' if sign else mean


def _colored(run: RunData, metric: str) -> Html:
    """The change of a metric, coloured as its arrow is."""
    shown, arrow = _difference(metric, run.before(metric), run.after(metric)), _arrow(run, metric)
    kind = "good" if 'class="good"' in arrow else "bad" if 'class="bad"' in arrow else ""
    return f'<span class="{kind}">{shown}</span>' if kind else shown


def _meaning(run: RunData, metric: str) -> str:
    """What a metric counts."""
    row = metric_of(metric)
    if metric.endswith("_magnitude"):
        return "difference of the two answers' probabilities"
    made = (run.results.get("made_neighbors") or {}).get("records")
    if metric == "neighborhood_agreement" and made:
        return (
            f"{row.meaning}; {counted(made, 'record')} gave none: prompts with other subjects"
            if row is not None
            else ""
        )
    return "" if row is None or row.name != metric else row.meaning


def _means(run: RunData, metric: str) -> list[tuple[float, float]]:
    """A metric before and after, each with its standard error."""
    before = run.before(metric), run.standard_error(metric, "before")
    return [before, (run.after(metric), run.standard_error(metric))]


def _difference(metric: str, before: float, after: float) -> Html:
    if is_share(metric):
        return signed_percent(after - before, 1).removesuffix(" %")
    row = metric_of(metric)
    if row is not None and row.is_relative:
        return signed_percent(after / before - 1, 0) if before else "–"
    return typeset(difference(after - before))
