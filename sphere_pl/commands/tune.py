"""`python -m sphere_pl tune`: search for a model's settings, and write them as a file for `--config`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from sphere_pl.commands.parsers import SettingsParser, users_mistakes
from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.errors import UserError
from sphere_pl.methods import AlphaEdit
from sphere_pl.model.embedded import cache_folder
from sphere_pl.model.files import label_of
from sphere_pl.model.fingerprint import fingerprint
from sphere_pl.model.loading import load_language_model
from sphere_pl.process.console import say
from sphere_pl.process.devices import default_device
from sphere_pl.progress import tracking
from sphere_pl.storage.files import write_text
from sphere_pl.text.names import folder_name
from sphere_pl.text.usage import program
from sphere_pl.tuning.found import trial_facts
from sphere_pl.tuning.study import best_of, candidate_of, open_study, rounded, search
from sphere_pl.tuning.trial import Bench, Outcome


def main(args: Sequence[str]) -> None:
    """Search, and write the best settings.

    Raises:
        UserError: If an argument, the model or the journal is not what the search needs.
    """
    given = _parse(args)
    lm = load_language_model(**given.model)
    journal = given.journal or cache_folder(given.statistics.cache_dir) / "settings" / f"{fingerprint(lm)[:32]}.journal"
    study = open_study(journal)
    lm.to(default_device() if given.accelerator == "auto" else given.accelerator)
    out = given.out or Path("conf") / "model" / f"{folder_name(label_of(given.model.name))}.yaml"
    console = Console(stderr=True, quiet=given.quiet)
    picture = out.with_suffix(".png")
    facts = trial_facts(2 * given.facts)
    with tracking(given.quiet) as track:
        contexts = (given.contexts, given.context_length)
        bench = Bench.set_up(lm, AlphaEdit(), given.statistics, contexts, facts[: given.facts], track)
        before = len(study.trials)
        say(f"{before} candidates are kept in {journal}; the search can be stopped and resumed.", console)
        search(study, bench, given.seconds, picture, track)
        parameters, outcome = best_of(study)
        candidate = rounded(candidate_of(parameters, lm.editable_layers(), lm.n_layers))
        others = Bench.set_up(lm, candidate.method, given.statistics, contexts, facts[given.facts :], track)
        held_out = others.try_out(candidate.layers, candidate.targets)
    section = {"name": given.model.name, **candidate.section(), "contexts": given.contexts}
    write_text(out, _page(section, len(study.trials), outcome, held_out))
    say(f"Best of {len(study.trials)} candidates on the facts searched with: {outcome.line()}.", console)
    say(f"On {given.facts} others: {held_out.line()}.", console)
    say(f"Open {picture}", console)
    sys.stdout.write(f"--config={shlex.quote(str(out))}\n")


def _parse(args: Sequence[str]) -> Any:
    parser = SettingsParser(
        prog=f"{program()} tune",
        allow_abbrev=False,
        description="Search for the settings that suit a model, and write them as a file for `fit --config`. Several "
        "processes may search at once: start the same command again. A search that was stopped resumes.",
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of these arguments.")
    parser.add_function_arguments(load_language_model, "model")
    parser.add_class_arguments(StatisticsSettings, "statistics")
    parser.add_argument("--seconds", type=float, default=1800.0, help="How long to search.")
    parser.add_argument("--facts", type=int, default=20, help="Built-in facts to search with, and as many to check.")
    parser.add_argument("--contexts", type=int, default=2, help="Context templates, as --model.contexts of fit.")
    parser.add_argument("--context_length", type=int, default=10, help="Tokens of each.")
    parser.add_argument("--journal", type=Path | None, help="Where candidates are kept; in the cache if left out.")
    parser.add_argument("--out", type=Path | None, help="The file to write; conf/model/<name>.yaml if left out.")
    parser.add_argument("--accelerator", type=str, default="auto", help="A device such as cpu; the best if left out.")
    parser.add_argument("--quiet", action="store_true", help="Show no progress.")
    parser.set_defaults({"model.dtype": "bfloat16"})
    with users_mistakes():
        given = parser.instantiate_classes(parser.parse_args(list(args)))
    if not given.seconds > 0:
        raise UserError(f"--seconds={given.seconds} must be above 0: no candidate could be tried out.")
    if given.facts < 1:
        raise UserError(f"--facts={given.facts} must be at least 1.")
    return given


def _page(section: dict[str, Any], trials: int, searched: Outcome, held_out: Outcome) -> str:
    """A configuration file that says where it comes from."""
    return (
        f"# Found by `python -m sphere_pl tune` in {trials} candidates. On the facts searched with:\n"
        f"# {searched.line()}.\n"
        f"# On others: {held_out.line()}.\n"
        f"{yaml.safe_dump({'model': section}, sort_keys=False, allow_unicode=True)}"
    )
