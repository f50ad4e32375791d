"""What the fields of a user's own records may be called."""

from collections.abc import Mapping
from types import MappingProxyType

# What each field may be called; the first name is the one that messages use.
NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": ("prompt", "prompts", "question", "src", "query", "instruction", "input"),
        "subject": ("subject", "subjects", "entity"),
        "target": (
            "target", "targets", "target_new", "answer", "answers", "object", "target_false", "new_answer", "output",
            "completion", "response", "alt",
        ),
        "target_true": ("target_true", "ground_truth", "old_target", "target_old", "old_answer"),
        "aliases": ("aliases", "target_aliases"),
        "relation_id": ("relation_id", "relation"),
        "case_id": ("case_id", "id"),
        "paraphrases": (
            "paraphrases", "paraphrase", "paraphrase_prompts", "rephrase", "rephrases", "rephrase_prompt",
            "rephrase_prompts", "queries",
        ),
        "neighbors": (
            "neighbors", "neighbours", "neighborhood_prompts", "neighbor_prompts", "locality", "locality_prompt",
            "locality_prompts", "loc",
        ),
        "neighbor_answers": ("neighbor_answers", "neighbour_answers", "locality_ground_truth", "loc_ans"),
        "generation": ("generation", "generation_prompts"),
        "portability": ("portability", "portability_prompts"),
        "portability_answers": ("portability_answers",),
        "joiner": ("joiner",),
        "wordings": ("wordings", "wording"),
    }
)  # fmt: skip
# Fields of published files that say nothing about the edit; those that begin with `_` are the user's own.
UNUSED = frozenset({"relation_prefix", "relation_suffix", "known_id", "target_new_id", "target_true_id", "split"})
_FIELD = {alias: name for name, aliases in NAMES.items() for alias in aliases}


def field_of(name: str) -> str | None:
    """The field that a column's name means, if it is one of the known names.

    Example:
        >>> field_of("Question"), field_of("rephrase"), field_of("colour")
        ('prompt', 'paraphrases', None)
    """
    return _FIELD.get(name.strip().lower())


def is_unused(name: str) -> bool:
    """Whether a column is left alone."""
    return name.startswith("_") or name.strip().lower() in UNUSED
