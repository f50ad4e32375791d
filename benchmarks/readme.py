"""Fill the tables of the README and of docs/ from the measured files: `python -m benchmarks.readme`.

No figure is typed by hand: a page's table stands between two comments that name it.
"""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.__main__ import markdown
from benchmarks.measure import Measurement
from benchmarks.models import reached
from sphere_pl.evaluation.metrics.table import ACCURACIES
from sphere_pl.evaluation.scored import from_plain
from sphere_pl.run.results import show
from sphere_pl.text.numbers import change

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md")))
SCORES = ("efficacy", "generalization", "neighborhood_agreement")
LEFT_OUT = ("by probability", "in chat form")  # rows of the run's table that the first screen has no room for


def default_run(summary: dict[str, Any]) -> str:
    """What the run prints, shortened."""
    text = io.StringIO()
    show(summary["results"], Path("runs/<time>-SmolLM2-135M-Instruct"), Console(file=text, width=100))
    lines = [line.rstrip() for line in text.getvalue().splitlines() if not any(each in line for each in LEFT_OUT)]
    return "```\n" + "\n".join(lines) + "\n```"


def checks(summary: dict[str, Any]) -> str:
    """What it had to reach."""
    lines = ["| | reached | asked for | holds |", "|---|---|---|---|"]
    lines += [
        f"| {check['name']} | {check['figure']:.3f} | {check['bound']} | {'yes' if check['holds'] else 'no'} |"
        for check in summary["checks"]
    ]
    same = summary["identical_weights_in_two_runs"]
    lines.append(f"| two runs leave the same weights | {'yes' if same else 'no'} | yes | {'yes' if same else 'no'} |")
    return "\n".join([*lines, "", f"Measured on: {summary['device']}."])


def search(found: list[dict[str, Any]]) -> str:
    """The candidates and their scores."""
    lines = [
        "| changed arguments | efficacy | generalization | agreement | perplexity | s/edit |",
        "|---|---|---|---|---|---|",
    ]
    for entry in found:
        after = entry["after"]
        scores = " | ".join(f"{after[name]:.3f}" for name in SCORES)
        pairs = [part.partition("=") for part in entry["candidate"]]
        arguments = ", ".join(f"{key.split('.')[-1]} {value}" for key, _, value in pairs)
        lines.append(f"| {arguments} | {scores} | {after['perplexity']:.2f} | {entry['seconds_per_edit']:.2f} |")
    return "\n".join(lines)


def methods(summary: dict[str, Any]) -> str:
    """Every method with and without SPHERE."""
    lines = [
        "| method | SPHERE | efficacy | generalization | specificity | agreement | perplexity | energy | s/edit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in summary["rows"]:
        after = entry["after"]
        name = f"| {entry['method']} | {'yes' if entry['sphere'] else 'no'} |"
        if after is None:
            lines.append(f"{name} broke off: {entry['failed']} |" + " |" * 6)
            continue
        measured = from_plain(after)
        scores = " | ".join(f"{measured[each].value:.2f} ± {measured[each].error:.2f}" for each in ACCURACIES)
        energy = change(entry["energy_change"])
        lines.append(f"{name} {scores} | {after['perplexity']:.1f} | {energy} | {entry['seconds_per_edit']:.2f} |")
    before = summary["rows"][0]["before"]
    left = f" Not run yet: {', '.join(summary['missing'])}." if summary["missing"] else ""
    return "\n".join(
        [
            *lines,
            "",
            f"Unedited: specificity {before['specificity']:.2f}, perplexity {before['perplexity']:.1f}. "
            f"Measured on: {summary['device']}, {summary['jobs']} runs at a time.{left}",
        ]
    )


def abilities(summary: dict[str, Any]) -> str:
    """What the unedited model scores on general abilities."""
    lines = ["| task | variant | metric | score | chance | items |", "|---|---|---|---|---|---|"]
    for entry in summary["tasks"]:
        chance = f"{entry['chance']:.2f}"
        if entry["commonest_label"] is not None:
            chance += f" (always the commonest answer: {entry['commonest_label']:.2f})"
        score = f"{entry['value']:.3f} ± {entry['standard_error']:.3f}"
        metric = entry["metric"].replace("_", " ")
        lines.append(f"| {entry['task']} | {entry['variant']} | {metric} | {score} | {chance} | {entry['items']} |")
    return "\n".join([*lines, "", f"{summary['model']}, {summary['dtype']}, seed {summary['seed']}."])


def drift(summary: dict[str, Any]) -> str:
    """What the alarm costs."""
    return (
        f"It costs {summary['share']:.1%} of a batch of the default run (processor time, `python -m benchmarks.drift`)."
    )


def soak(summary: dict[str, Any]) -> str:
    """How flat a long run is."""
    files = " and ".join(map(str, summary["open_files"]))
    resident = [sample["resident_bytes"] / 1e9 for sample in summary["samples"] if sample["edits"] >= 200]
    return (
        f"After {summary['edits']} edits: resident memory {change(summary['memory_growth'], 1)} since the 200th "
        f"({resident[0]:.2f} to {resident[-1]:.2f} GB), {files} open files, {summary['seconds_per_edit_early']:.2f} "
        f"seconds of processor time an edit in the first quarter and {summary['seconds_per_edit_late']:.2f} in the "
        f"last ({summary['device']})."
    )


def models(found: dict[str, Any]) -> str:
    """Real models with nothing set but their names."""
    lines = [
        "| model | efficacy | generalization | agreement | perplexity | first run | an edit |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        efficacy, generalization, agreement, growth, seconds, each = reached(run)
        scores = f"{efficacy:.2f} | {generalization:.2f} | {agreement:.2f} | x{growth:.3f}"
        # Other work ran beside a run that is marked so in the file: its seconds are none of its own.
        times = f"{seconds:.0f} s | {each:.2f} s" if run.get("timed", True) else "- | -"
        lines.append(f"| {name} | {scores} | {times} |")
    return "\n".join(lines)


def fill(text: str, marker: str, content: str) -> str:
    """Replace what stands between a marker's two comments."""
    pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


PARTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "default run": ("default_run.json", default_run),
    "checks": ("default_run.json", checks),
    "search": ("search.json", search),
    "search long": ("search_long.json", search),
    "methods": ("methods.json", methods),
    "abilities": ("abilities.json", abilities),
    "drift": ("drift.json", drift),
    "soak": ("soak.json", soak),
    "models": ("models.json", models),
    "costs": ("costs.json", lambda found: markdown([Measurement(**entry) for entry in found])),
}


def filled(text: str) -> str:
    """A page with whatever has been measured."""
    for marker, (name, write) in PARTS.items():
        if (HERE / name).exists():
            text = fill(text, marker, write(json.loads((HERE / name).read_text(encoding="utf-8"))))
    return text


def main() -> None:
    """Fill every page."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
