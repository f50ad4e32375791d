"""Fluency and consistency of what the model writes about the edited subjects."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.errors import UserError
from sphere_pl.evaluation.answers import means_and_errors
from sphere_pl.evaluation.metrics import Consistency, Fluency, RecordMean
from sphere_pl.evaluation.protocols import ALONE
from sphere_pl.evaluation.scored import Scores
from sphere_pl.model.generation import free_texts
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.storage.files import expanded
from sphere_pl.text.joining import asked

References = Mapping[tuple[str, str], Sequence[str]]


def text_scores(lm: LanguageModel, requests: Sequence[EditRequest], references: References | None, seed: int) -> Scores:
    """Fluency, and consistency with reference texts if there are any.

    Args:
        lm: The language model.
        requests: Those without `generation` prompts are left out.
        references: Texts about the relation's objects; see `read_references`.
        seed: Seed of the sampling.

    Returns:
        `fluency` and, with references, `consistency`, and the standard error of each; none without prompts.
    """
    owners = [record for record, request in enumerate(requests) for _ in request.generation]
    texts = free_texts(lm, [asked(text) for request in requests for text in request.generation], seed)
    metrics: dict[str, RecordMean] = {"fluency": Fluency(**ALONE)}
    if texts:
        metrics["fluency"].update(texts, torch.tensor(owners))
    if references is not None:
        corpus = [text for group in references.values() for text in group]
        metrics["consistency"] = metric = Consistency(corpus, **ALONE)
        known = {record: _about(request, references) for record, request in enumerate(requests)}
        written = {record: [t for t, o in zip(texts, owners, strict=True) if o == record] for record in known}
        chosen = [record for record in known if known[record] and written[record]]
        if chosen:
            about = [known[record] for record in chosen]
            metric.update([written[record] for record in chosen], about, torch.tensor(chosen))
    return means_and_errors(metrics)


def _about(request: EditRequest, references: References) -> Sequence[str]:
    relation = request.relation_id or ""
    return references.get((relation, request.target_id or "")) or references.get((relation, request.target_new)) or ()


def read_references(path: str) -> dict[tuple[str, str], list[str]]:
    """Read texts about the objects of relations, by relation and object.

    The form is that of ROME's attribute_snippets.json: a list of `{"relation_id", "target_id", "samples": [{"text"}]}`.
    In a file of one's own `target` may name the object by its text in place of `target_id`.

    Raises:
        UserError: If the file is missing or of another form.
    """
    try:
        entries = json.loads(expanded(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The reference texts {path} could not be read: {error.strerror}. Give --model.evaluation.references "
            "ROME's attribute_snippets.json (it is not part of this package), or leave it out: fluency needs none."
        ) from error
    except ValueError as error:
        raise UserError(f"The reference texts {path} are not JSON in UTF-8: {error}. Fetch them again.") from error
    found: dict[tuple[str, str], list[str]] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        relation, target, texts = _entry(path, number, entry)
        found.setdefault((relation, target), []).extend(texts)
    if not any(found.values()):
        raise UserError(f"The reference texts {path} hold no text, expected samples with texts. Fetch them again.")
    return found


def _entry(path: str, number: int, entry: Any) -> tuple[str, str, list[str]]:
    try:
        target = entry.get("target_id") or entry["target"]
        return str(entry["relation_id"]), str(target), [str(sample["text"]) for sample in entry["samples"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}, entry {number + 1}: expected "relation_id", "target_id" or "target", and "samples", a list of '
            f'{{"text": ...}}, found {shorten(entry)}.'
        ) from error
