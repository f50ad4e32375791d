"""`python -m sphere_pl locate`: which layers hold the facts, found by causal tracing."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from sphere_pl.commands.parsers import SettingsParser, users_mistakes
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.errors import UserError
from sphere_pl.model.files import label_of
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import load_language_model
from sphere_pl.model.tokens import Prompt
from sphere_pl.process.console import as_shown, say
from sphere_pl.process.devices import default_device
from sphere_pl.progress import Track, tracking
from sphere_pl.storage.files import write_text
from sphere_pl.text import numbers
from sphere_pl.text.usage import program
from sphere_pl.tracing.facts import embedding_deviation, known_facts, true_answer
from sphere_pl.tracing.functional import KINDS, ROLES
from sphere_pl.tracing.picture import draw_trace
from sphere_pl.tracing.summary import config_line, summarize
from sphere_pl.tracing.trace import FactTrace, TraceSettings, check_traceable, trace_fact

_CHECKED_TOGETHER = 100


def main(args: Sequence[str]) -> None:
    """Trace facts, write trace.json and trace.png, and suggest layers.

    Raises:
        UserError: If the model, the facts or an argument is not what tracing needs.
    """
    given = _parse(args)
    given.data.setup("fit")
    prompts = [true_answer(request) for request in given.data.requests]  # refused before a model is loaded
    lm = load_language_model(**given.model)
    check_traceable(lm)
    lm.to(default_device() if given.accelerator == "auto" else Fabric(accelerator=given.accelerator, devices=1).device)
    if not 1 <= given.count <= lm.n_layers:
        raise UserError(f"`--count={given.count}` must lie between 1 and the model's {lm.n_layers} layers.")
    with tracking(given.quiet) as track:
        known = _known(lm, prompts, track)
        traces = trace_facts(lm, known[: given.trace.facts], given.trace, track)
    found = {"model": given.model.name, "given": len(prompts), "answered_right": len(known)}
    summary = {**found, **summarize(traces, given.trace, given.count)}
    folder = given.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-locate-{label_of(given.model.name)}"
    write_text(folder / "trace.json", json.dumps(summary))
    draw_trace(summary, folder / "trace.png")
    # With --locate the line is all of stdout, so that a shell can put it into another command.
    show(summary, folder, Console(stderr=given.locate, quiet=given.quiet and given.locate))
    sys.stdout.write(f"{config_line(summary)}\n")


def _parse(args: Sequence[str]) -> Any:
    parser = SettingsParser(
        prog=f"{program()} locate",
        allow_abbrev=False,
        description="Find the layers that hold facts by causal tracing, and suggest some.",
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these arguments.")
    parser.add_function_arguments(load_language_model, "model")
    parser.add_class_arguments(EditDataModule, "data", skip={"batch_size", "conflicts"})
    parser.add_class_arguments(TraceSettings, "trace")
    parser.add_argument("--count", type=int, default=5, help="How many neighbouring layers to suggest.")
    parser.add_argument("--locate", action="store_true", help="Print nothing but the suggestion to standard output.")
    parser.add_argument("--out", type=Path | None, help="Folder to write; runs/<time>-locate-<model> if left out.")
    parser.add_argument("--accelerator", type=str, default="auto", help="As in lightning.Trainer.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress.")
    # The embedded model's own float16 is slow on CPUs; the default run edits it in bfloat16 as well.
    parser.set_defaults({"model.dtype": "bfloat16", "data.limit": None})
    with users_mistakes():
        return parser.instantiate_classes(parser.parse_args(list(args)))


def _known(lm: LanguageModel, prompts: Sequence[Prompt], track: Track) -> list[Prompt]:
    """The facts that the model answers right.

    Raises:
        UserError: If there is none.
    """
    starts = range(0, len(prompts), _CHECKED_TOGETHER)
    known: list[Prompt] = []
    for start in track(starts, "checking facts", len(starts)):
        known += known_facts(lm, prompts[start : start + _CHECKED_TOGETHER])
    if not known:
        raise UserError(
            f"The model answers none of the {len(prompts)} facts right, so there is nothing to trace. Give facts that "
            "it knows (--data.name, --data.path), or more of them (--data.limit)."
        )
    return known


def trace_facts(lm: LanguageModel, facts: Sequence[Prompt], settings: TraceSettings, track: Track) -> list[FactTrace]:
    """Trace facts one after the other with one stream of noise.

    Args:
        lm: The language model.
        facts: What it answers right.
        settings: Samples, window and so on.
        track: Shows progress: called with an iterable, a description and its length.
    """
    deviation = embedding_deviation(lm, facts)
    generator = torch.Generator().manual_seed(settings.seed)
    return [trace_fact(lm, fact, settings, deviation, generator) for fact in track(facts, "tracing facts", len(facts))]


def show(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print where each kind of state matters most."""
    probability = summary["probability"]
    say(
        f"{summary['model']}: {summary['answered_right']} of {summary['given']} facts answered right, "
        f"{summary['traced']} traced. Probability of the answer {_number(probability['clean'])}, with a corrupted "
        f"subject {_number(probability['corrupted'])}.",
        console,
    )
    window = summary["settings"]["window"]
    title = f"Highest average indirect effect and its layer (mlp, attention: {window} layers at once)"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for kind in KINDS:
        table.add_column(kind, justify="right")
    effects = summary["average_indirect_effect"]
    for role in ROLES:
        table.add_row(role, *(as_shown(_highest(effects[kind][role]), console) for kind in KINDS))
    console.print(table)
    say(f"Open {folder / 'trace.png'}", console)


def _highest(effects: Mapping[str, Any]) -> str:
    if not effects["facts"]:
        return "-"
    layer = max(range(len(effects["mean"])), key=lambda each: effects["mean"][each])
    return f"{_number({name: effects[name][layer] for name in ('mean', 'standard_error')})} at {layer}"


def _number(value: Mapping[str, float | None]) -> str:
    error = value["standard_error"]
    return numbers.score(cast(float, value["mean"]), math.nan if error is None else error)
