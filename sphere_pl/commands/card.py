"""The model card of an exported run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sphere_pl.evaluation.scored import Scored, Scores, from_plain, shown
from sphere_pl.history.adapter import Adapter, advice
from sphere_pl.history.entries import Header
from sphere_pl.model.embedded import EMBEDDED_HUB_ID, EMBEDDED_LICENSE, EMBEDDED_MODEL
from sphere_pl.storage.files import expanded
from sphere_pl.text.numbers import counted

_SHOWN = 20


class Source(NamedTuple):
    """Where the base model comes from.

    Attributes:
        name: Hub id, or how to call a local folder.
        hub_id: The hub id; None for a local folder.
        license: The licence's identifier on the hub; None if it is not known.
        license_file: The text of the licence, if it lies beside the model.
    """

    name: str
    hub_id: str | None
    license: str | None
    license_file: Path | None = None


def source_of(model: str, revision: str | None = None) -> Source:
    """Find out the base model's licence: from its card in the folder or on the hub.

    Args:
        model: Hub id, folder, GGUF file, or the name of the embedded model.
        revision: Branch, tag or commit of a hub model.
    """
    if model == EMBEDDED_MODEL:
        return Source(EMBEDDED_HUB_ID, EMBEDDED_HUB_ID, EMBEDDED_LICENSE)
    folder = expanded(model)
    if folder.is_file():  # a GGUF file
        return Source(folder.name, None, _license(folder.parent / "README.md"), _license_text(folder.parent))
    if folder.is_dir():
        return Source(folder.name, None, _license(folder / "README.md"), _license_text(folder))
    return Source(model, model, _license(_hub_card(model, revision)))


def _license_text(folder: Path) -> Path | None:
    return next((path for name in ("LICENSE", "LICENSE.txt", "LICENSE.md") if (path := folder / name).is_file()), None)


def _hub_card(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "README.md", revision=revision))
    except Exception:  # no network, no card, no access: the licence stays unknown, and the card says so
        return None


def _license(card: Path | None) -> str | None:
    """The licence in the front matter of a model card."""
    try:
        front = card.read_text(encoding="utf-8").split("---")[1] if card else ""
        found = yaml.safe_load(front)
    except (OSError, IndexError, ValueError, yaml.YAMLError):
        return None
    value = found.get("license") if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def model_card(
    header: Header,
    source: Source,
    edits: int,
    requests: Sequence[Mapping[str, Any]],
    left_out: Sequence[str],
    results: Mapping[str, Any],
    adapter: Adapter | None = None,
) -> str:
    """Write the card.

    Args:
        header: The run's model and method.
        source: Where the base model comes from.
        edits: How many edits the weights hold.
        requests: Those edits, as logged.
        left_out: Case ids that were taken out.
        results: The run's results.json if its scores are those of these weights, else empty.
        adapter: The adapter that the card is about; None for a whole model or a delta.
    """
    library, relation = ("transformers", "finetune") if adapter is None else ("peft", "adapter")
    front: dict[str, Any] = {"library_name": library, "tags": ["knowledge-editing", "sphere_pl"]}
    front |= {"license": source.license or "other", "pipeline_tag": "text-generation"}
    if source.hub_id:
        front |= {"base_model": source.hub_id, "base_model_relation": relation}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
        f"# {source.name}, edited",
        _summary(header, source, edits, left_out, adapter),
        _licence(source),
        _scores(results),
        _edits(requests),
        _runs(header),
        _removed(header),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(header: Header, source: Source, edits: int, left_out: Sequence[str], adapter: Adapter | None) -> str:
    if header.retrieval is not None:
        return (
            f"A list of {counted(edits, 'fact')} for {source.name}, made with {header.method} by `sphere_pl`: "
            "no weight is edited. The model is asked whether one of them applies to a question and reads it in front "
            "of it. Ask it with `python -m sphere_pl predict --folder <this folder>`."
        )
    blocks = ", ".join(map(str, header.layers))
    lines = [
        f"{counted(edits, 'fact was', 'facts were')} edited into {source.name} with {header.method} by `sphere_pl`. "
        f"Changed are the MLP down-projections of blocks {blocks}; all other weights are the base model's.",
        "Load it as any model: `AutoModelForCausalLM.from_pretrained(<this repository or folder>)`."
        if adapter is None
        else _loading(adapter),
    ]
    if left_out:
        lines.append(
            f"Taken out afterwards: {', '.join(map(_cell, left_out[:_SHOWN]))}"
            f"{' and others' if len(left_out) > _SHOWN else ''}. The remaining edits were solved again from the keys "
            "and residuals that the run had measured while it held those edits."
        )
    return "\n\n".join(lines)


def _loading(adapter: Adapter) -> str:
    text = (
        f"This is a LoRA adapter of rank {adapter.rank}. Add it to the base model with "
        f"`PeftModel.from_pretrained(model, <this repository or folder>)`. {advice(adapter)}"
    )
    if adapter.error > 1e-3:
        text += f" It is the best part of that rank: {adapter.error:.1%} of the change of a matrix is left out."
    return text


def _runs(header: Header) -> str:
    """The runs that the edits were made in, where there are several; the last is the one that was exported."""
    rows = [
        f"| {_cell(Path(each.run_dir).name)} | {each.finished} | {each.edits} | {_score(each.scores)} |"
        for each in header.ancestors
    ]
    if not rows:
        return ""
    return "\n".join(["## Earlier runs", "", "| run | ended | edits so far | efficacy |", "|---|---|---|---|", *rows])


def _score(scores: Mapping[str, float | None]) -> str:
    value = scores.get("efficacy")
    return "-" if value is None else f"{value:.3f}"


def _removed(header: Header) -> str:
    """Edits that were taken back."""
    rows = [
        f"| {_cell(each['case_id'])} | {_cell(each['prompt'].replace('{}', each['subject'], 1))} "
        f"| {_cell(each['target_new'])} | {_cell(each.get('at', ''))} |"
        for each in header.removed
    ]
    if not rows:
        return ""
    return "\n".join(
        ["## Taken back", "", "| case | prompt | answer that was taken back | when |", "|---|---|---|---|", *rows]
    )


def _licence(source: Source) -> str:
    if source.license is None:
        return (
            f"The licence of {source.name} could not be found: `other` stands in its place. The edited weights are "
            "subject to the base model's licence; look it up before you share them."
        )
    return f"The base model's licence, {source.license}, applies to these weights."


def _scores(results: Mapping[str, Any]) -> str:
    held = (results.get(when) for when in ("before", "after"))
    before, after = (from_plain(each if isinstance(each, dict) else {}) for each in held)
    rows = [f"| {name.replace('_', ' ')} | {_number(name, before)} | {_number(name, after)} |" for name in after]
    if not rows:
        return ""
    return "\n".join(["## Before and after", "", "| | unedited | edited |", "|---|---|---|", *rows])


def _number(name: str, scores: Scores) -> str:
    """A score without its error, which a card has no room for."""
    return shown(name, Scored(scores[name].value if name in scores else math.nan))


def _edits(requests: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {_cell(request['case_id'])} | {_cell(request['prompt'].replace('{}', request['subject'], 1))} "
        f"| {_cell(request['target_new'])} |"
        for request in requests[:_SHOWN]
    ]
    if not rows:
        return ""
    more = f"\n\nand {len(requests) - _SHOWN} more, in `edits.json`." if len(requests) > _SHOWN else ""
    return "\n".join(["## Edits", "", "| case | prompt | new answer |", "|---|---|---|", *rows]) + more


def _cell(text: object) -> str:
    """Text inside a table: no line breaks, no bars, no markup of its own."""
    plain = " ".join(str(text).split())
    for mark in "\\|<>`*_[]":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
