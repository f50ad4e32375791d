"""`sphere_pl.edit`: a model, its tokenizer and a list of facts in, the edited model and a report out."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sphere_pl.api.checks import check_held, check_named, held_name
from sphere_pl.api.fit import Given, GivenFit
from sphere_pl.api.report import EditReport, report_of
from sphere_pl.api.session import check_unchanged, merged, unedited
from sphere_pl.api.settings import Asked, command_line, method_object, own_architecture
from sphere_pl.api.surroundings import as_python_does, borrowed, left_as_they_were
from sphere_pl.commands.fit import run
from sphere_pl.data.datamodule import Fact, fact_list
from sphere_pl.errors import UserError
from sphere_pl.methods import Method
from sphere_pl.model.embedded import EMBEDDED_MODEL
from sphere_pl.model.loading import model_in_memory


def edit(
    model: PreTrainedModel | EditReport | str | Path = EMBEDDED_MODEL,
    tokenizer: Any = None,
    facts: Iterable[Fact] = (),
    *,
    method: Method | str | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    projection: float | bool | None = None,
    config: str | Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    copy: bool = False,
    run_dir: str | Path | None = None,
    quiet: bool = False,
) -> tuple[PreTrainedModel, EditReport]:
    """Edit facts into a language model.

    This is `python -m sphere_pl fit` on what a program holds: the same defaults, the same loop and, for the same facts
    and settings, the same weights, bit for bit where the model is as `from_pretrained` loads it (a copy of it lies
    elsewhere in memory, where products on a CPU may end in another last bit). SPHERE is on unless the group of a method
    or `projection=0` turns it off; the report's first line says which it was.

    A model that is given keeps its dtype, its device, its training mode and `requires_grad`; if the call raises, it is
    unchanged. One that is loaded by its name comes back on the CPU, in eval mode. Random generators, signal handlers,
    warnings and loggers are afterwards as they were before; the run itself is seeded with `seed_everything`, 0.

    Args:
        model: A transformers model, edited in place, or the name of one: hub id, folder, GGUF file, or the default. The
            report of an earlier call continues that: `edit(report, more_facts)` edits the same model further, with the
            arguments of that call unless said otherwise, and remembers its facts.
        tokenizer: The model's fast tokenizer; a model that is given by its name brings its own.
        facts: The facts, as dictionaries with the fields of format `jsonl` (`prompt`, `subject`, `target` and, as far
            as there are any, `paraphrases`, `neighbors` and so on), or as `EditRequest`s.
        method: A group of `--config method/...` such as `memit`, the import path of a class, or a `Method`; AlphaEdit
            with SPHERE if None. The groups turn SPHERE off, as on the command line.
        layers: Blocks to edit, ascending.
        batch_size: Facts that are edited together.
        projection: SPHERE's strength α; False or 0 turns it off, True takes the paper's strength for the method.
        config: Groups such as `model/llama3_8b`, or YAML files, as for `--config`.
        settings: Anything else that `fit` takes, by its dotted name: `{"model.targets.steps": 10}`.
        copy: Edit a copy and leave the given model as it is.
        run_dir: Folder for the files of an ordinary run (but wandb's), with the facts as facts.jsonl. If None, nothing
            is written but second moments, to the user's cache.
        quiet: Show no progress.

    Returns:
        The edited model, and the report: `print(report)` shows the table of before and after and the failed facts.

    Raises:
        UserError: If an argument, the model or a fact is not what editing needs, or memory or disk do not suffice.
        KeyboardInterrupt: If the user stops it.
    """
    asked = Asked(method, layers, batch_size, projection, config, settings, run_dir, quiet)
    with as_python_does(), left_as_they_were():
        if isinstance(model, EditReport):
            return _edit_further(model, facts if tokenizer is None else tokenizer, asked, copy)
        if isinstance(model, str | Path):
            return _edit_named(str(model), tokenizer, facts, asked)
        check_held(model, tokenizer, settings)
        given = _given(facts, asked)
        edited = deepcopy(model) if copy else model
        with borrowed(edited):
            return edited, _edit_held(edited, tokenizer, given, asked)


def _given(facts: Iterable[Fact], asked: Asked) -> Given:
    return Given(fact_list(facts), method_object(asked.method, asked.run_dir), asked.run_dir, alone=True)


def _edit_named(name: str, tokenizer: Any, facts: Iterable[Fact], asked: Asked) -> tuple[PreTrainedModel, EditReport]:
    """Edit a model that is loaded by its name."""
    check_named(name, tokenizer)
    cli = run(command_line(asked, {"model.name": name}), partial(GivenFit, _given(facts, asked)))
    edited: PreTrainedModel = cli.model.language_model.model.requires_grad_(True)
    return edited, _reported(cli, asked)


def _reported(cli: GivenFit, asked: Asked) -> EditReport:
    report = report_of(cli, asked)
    cli.release()
    return report


def _edit_further(
    report: EditReport, facts: Iterable[Fact], asked: Asked, copy: bool
) -> tuple[PreTrainedModel, EditReport]:
    """Edit the model of a report further."""
    session = report.session
    if session is None:
        raise UserError(
            "The report comes from no call of `edit` in this process, and has no model to edit further. Give the "
            "model: edit(model, tokenizer, facts)."
        )
    check_unchanged(session)
    asked = merged(session.asked, asked)
    given = _given(facts, asked)
    if asked.run_dir is None:
        given = given._replace(earlier=session.earlier)
    model = deepcopy(session.model) if copy else session.model
    with borrowed(model), unedited(model, session):
        before = None if asked.run_dir is None else session.asked.run_dir
        return model, _edit_held(model, session.tokenizer, given, asked, before, session.name)


def _edit_held(
    model: PreTrainedModel,
    tokenizer: Any,
    given: Given,
    asked: Asked,
    before: str | Path | None = None,
    name: str | None = None,
) -> EditReport:
    """Edit a model that is in memory, in place."""
    name = name or held_name(model)
    held = given._replace(held=model_in_memory(name, model, tokenizer, own_architecture(asked.settings)))
    decided = {"model.name": name, "model.dtype": str(model.dtype).removeprefix("torch.")}
    if before is not None:
        decided["from"] = str(before)
    return _reported(run(command_line(asked, decided), partial(GivenFit, held)), asked)
