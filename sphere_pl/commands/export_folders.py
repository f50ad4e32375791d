"""The folders that an export writes: the whole model, its delta, its adapter, or a list of facts, each with a card."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor
from transformers.utils import logging as transformers_logging

from sphere_pl.commands.card import model_card, source_of
from sphere_pl.commands.validate import evaluation_settings
from sphere_pl.evaluation.evaluator import score_requests
from sphere_pl.history.adapter import Adapter, advice, bytes_per_edit, find_adapter, save_adapter
from sphere_pl.history.delta import save_delta
from sphere_pl.history.fact_folder import write_facts
from sphere_pl.history.left_out import find_cases
from sphere_pl.history.low_rank import expand
from sphere_pl.history.rebuild import restrained
from sphere_pl.history.replay import solve_without
from sphere_pl.history.saved import BaseModel, SavedRun

DELTA = "delta.safetensors"
Form: TypeAlias = Literal["model", "adapter", "delta"]
_NOTABLE = 1e-3  # share of a change that may be left out without a word; rounding is far below


class Chosen(NamedTuple):
    """The state of a run that is exported.

    Attributes:
        edits: How many requests of the stream it has seen.
        weights: Its matrices, float32 `[d_out, d_in]`, by name.
        requests: The edits it holds, as logged.
        left_out: Case ids that were taken out.
        results: The run's results if they are those of this state.
    """

    edits: int
    weights: dict[str, Tensor]
    requests: list[dict[str, Any]]
    left_out: list[str]
    results: dict[str, Any]


def write_whole(target: Path, write: Callable[[Path], list[str]]) -> list[str]:
    """Let a new folder, or an empty one, be there when all of it is written.

    Args:
        target: The folder.
        write: Writes into the folder that it is given.

    Returns:
        What `write` returns.
    """
    with tempfile.TemporaryDirectory(dir=_parent(target), prefix=".export-") as scratch:
        folder = Path(scratch) / "export"
        notes = write(folder)
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors makes files that only their owner reads
        if target.is_dir():
            target.rmdir()  # an empty one
        folder.rename(target)
    return notes


def _parent(target: Path) -> Path:
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def choose(run: SavedRun, base: BaseModel, at: int | None = None, without: Sequence[str] = ()) -> Chosen:
    """Rebuild the state of a run that was asked for.

    Args:
        run: The run.
        base: Its unedited model.
        at: Edits of the stream; all if None.
        without: Case ids or subjects to take out.

    Raises:
        UserError: If there is no such state, or the method cannot give it.
    """
    last = run.history.number_at(at)
    edits = run.history.entries[last - 1].edits if last else 0
    requests = run.history.stored_requests(last)
    if without:
        cases = find_cases(run.history, without, last)
        live = solve_without(run, base, cases, last)
        weights = restrained(base.weights, live, run.history.header.restraint)
        kept = [request for request in requests if str(request["case_id"]) not in set(cases)]
        return Chosen(edits, weights, kept, cases, {})
    if last == len(run.history.entries):
        return end_of(run, run.weights(base, at))
    return Chosen(edits, run.weights(base, at), requests, [], {})


def end_of(run: SavedRun, weights: dict[str, Tensor]) -> Chosen:
    """The state at the end of a run, whose matrices are known."""
    edits, requests = run.history.edits, run.history.stored_requests(len(run.history.entries))
    return Chosen(edits, weights, requests, [], run.results if run.results.get("edits") == edits else {})


def write_form(
    folder: Path, run: SavedRun, base: BaseModel, chosen: Chosen, form: Form, rank: int | None = None
) -> list[str]:
    """Write a run into a folder; one that edits no weight has a form of its own, the list of its facts.

    Args:
        folder: Where to; it is made.
        run: The run.
        base: Its unedited model, which the form `model` changes.
        chosen: The state to write.
        form: The whole model, its change as an adapter, or its change as it is.
        rank: The adapter's; that of the change if None.

    Returns:
        What is to be said about it.

    Raises:
        UserError: If an adapter is asked for whose change has full rank, and no rank is given.
    """
    if run.history.header.retrieval is not None:
        return _write_facts(folder, run, chosen)
    if form == "adapter":
        return _write_adapter(folder, run, base, chosen, rank)
    (_write_delta if form == "delta" else _write_model)(folder, run, base, chosen)
    return []


def _write_model(folder: Path, run: SavedRun, base: BaseModel, chosen: Chosen) -> None:
    """Write config, weights, generation config, tokenizer, card and the list of edits; changes the base model."""
    base.write(chosen.weights)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        base.lm.model.save_pretrained(folder)
        base.lm.tokenizer.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    _write_about(folder, run, chosen)


def _write_delta(folder: Path, run: SavedRun, base: BaseModel, chosen: Chosen) -> None:
    """Write the change of the edited matrices, card and the list of edits."""
    header = run.history.header
    about: dict[str, Any] = {"model": _public_name(header.model), "revision": header.revision, "dtype": header.dtype}
    about |= {"method": header.method, "edits": len(chosen.requests)}
    save_delta(folder / DELTA, header, base.weights, chosen.weights, about)
    _write_about(folder, run, chosen)


def _write_facts(folder: Path, run: SavedRun, chosen: Chosen) -> list[str]:
    """Write the list of facts of a run that edits no weight, card and the short list of edits.

    Returns:
        What is to be said about it.
    """
    header = run.history.header
    folder.mkdir()
    source = source_of(header.model, header.revision)
    write_facts(folder, header, source.hub_id or source.name, chosen.requests, run.chat)
    _write_about(folder, run, chosen)
    return ["The run edits no weight: this is its list of facts. Ask it with predict --folder."]


def _write_adapter(folder: Path, run: SavedRun, base: BaseModel, chosen: Chosen, rank: int | None = None) -> list[str]:
    """Write the change of the edited matrices as a PEFT adapter, with tokenizer, card and the list of edits.

    Returns:
        What is to be said about it: its size, what vLLM needs to know, and what a smaller rank leaves out.
    """
    adapter = adapter_of(base.weights, chosen, rank)
    write_adapter_files(folder, run, base.lm.tokenizer, base.weights, chosen, adapter)
    kilobytes = bytes_per_edit(adapter, len(chosen.requests)) / 1000
    notes = [f"LoRA of rank {adapter.rank}, {kilobytes:,.3g} kB per edit. {advice(adapter)}"]
    if adapter.error > _NOTABLE:
        notes.append(_measured(run, base, chosen, adapter))
    return notes


def adapter_of(unedited: Mapping[str, Tensor], chosen: Chosen, rank: int | None = None) -> Adapter:
    """The adapter that makes unedited matrices, float32 `[d_out, d_in]` by name, those that were chosen.

    Raises:
        UserError: If the change has full rank, and no rank is given.
    """
    return find_adapter(unedited, chosen.weights, len(chosen.requests), rank)


def write_adapter_files(
    folder: Path, run: SavedRun, tokenizer: Any, unedited: Mapping[str, Tensor], chosen: Chosen, adapter: Adapter
) -> None:
    """Write an adapter into a new folder, with tokenizer, card and the list of edits."""
    source = source_of(run.history.header.model, run.history.header.revision)
    folder.mkdir()
    save_adapter(folder, run.history.header, adapter, unedited, source.hub_id or source.name)
    tokenizer.save_pretrained(folder)
    _write_about(folder, run, chosen, adapter)


def _measured(run: SavedRun, base: BaseModel, chosen: Chosen, adapter: Adapter) -> str:
    """What is lost where the adapter holds a part of the change only."""
    only: dict[str, Any] = {"protocols": ["teacher_forced"], "texts": 0, "perplexity_tokens": 0, "references": None}
    settings = replace(evaluation_settings(run), **only)
    wanted = {str(request["case_id"]) for request in chosen.requests}
    requests = [request for request in run.history.requests if request.case_id in wanted]
    found = []
    for weights in (
        chosen.weights,
        {name: base.weights[name] + expand(factors) for name, factors in adapter.factors.items()},
    ):
        base.write(weights)
        found.append(score_requests(base.lm, requests, settings)["efficacy"].value)
    base.write(base.weights)
    return (
        f"It leaves out {adapter.error:.1%} of the change of a matrix: efficacy is {found[1]:.3f} with the adapter, "
        f"{found[0]:.3f} with all of the change."
    )


def _public_name(model: str) -> str:
    """A hub id as it is, a folder by its name: what is shared should not tell the paths of a machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _write_about(folder: Path, run: SavedRun, chosen: Chosen, adapter: Adapter | None = None) -> None:
    header = run.history.header
    source = source_of(header.model, header.revision)
    edits = len(chosen.requests)
    card = model_card(header, source, edits, chosen.requests, chosen.left_out, chosen.results, adapter)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if source.license_file:
        shutil.copyfile(source.license_file, folder / source.license_file.name)
    short = [_short(request) for request in chosen.requests]
    (folder / "edits.json").write_text(json.dumps(short, indent=1, ensure_ascii=False), encoding="utf-8")


def _short(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: request[name] for name in ("case_id", "prompt", "subject", "target_new")}
