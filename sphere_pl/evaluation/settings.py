"""What is measured, on how much of the data."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from sphere_pl.errors import UserError

Protocol = Literal["teacher_forced", "probability", "generation", "chat", "long_prefix"]
USUAL: tuple[Protocol, ...] = ("teacher_forced", "probability", "generation", "chat")
_AT_LEAST = {
    "batch_size": 1,
    "validation_records": 1,
    "earlier": 0,
    "sample": 0,
    "texts": 0,
    "cases": 0,
    "facts": 0,
    "made_neighbors": 0,
}


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured before, during and after editing.

    Teacher-forced scores are taken at every validation. The other protocols, free texts and cases take longer: they
    are taken once before the first edit and once at the end, on a fixed sample.

    Args:
        text: A text file or hub data set to measure perplexity on; the built-in held-out text if None.
        perplexity_tokens: How many tokens of it to read; 0 turns perplexity off.
        batch_size: Records scored together; the more, the more of their prompts begin alike and share work.
        protocols: Which of them, the first four if left out; teacher_forced is what validations, the report and the
            callbacks go by, and cannot be left out. chat asks in the tokenizer's chat template, where it has one;
            long_prefix asks after 50 tokens of text on something else.
        sample: Records that the other protocols score; chat scores all where facts are edited in chat form.
        texts: Records of whose generation prompts free texts are written, for fluency; 0 for none.
        references: ROME's attribute_snippets.json, or a file of your own in its form, for the consistency of those
            texts.
        cases: Records whose answers before and after are shown side by side.
        facts: A run of at most so many edits asks each of them before and after, for the table that opens its report; 0
            for none.
        made_neighbors: Neighbours to make for each record that gives none (of up to 100 such records), its prompt with
            other subjects, on which the agreement with the unedited model is measured; 0 for none.
        validation_records: During the run, so many of the edits so far are scored at most; at its end all are.
        earlier: Of the edits of a run that is continued, so many are scored at most, a fixed sample; all if None.
        seed: Which records the samples hold.
        keep_unedited: Whether the unedited model's answers are kept beside the second moments (in
            `statistics.cache_dir`), where a run of the same facts on the same model reads them again.
    """

    text: str | None = None
    perplexity_tokens: int = 2048
    batch_size: int = 100
    protocols: list[Protocol] = field(default_factory=lambda: list(USUAL))
    sample: int = 20
    texts: int = 0
    references: str | None = None
    cases: int = 4
    facts: int = 50
    made_neighbors: int = 2
    validation_records: int = 1000
    earlier: int | None = None
    seed: int = 0
    keep_unedited: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in _AT_LEAST.items():
            given = getattr(self, name)
            if given is not None and given < least:
                raise UserError(f"`evaluation.{name}={given}` must be at least {least}.")
        if self.perplexity_tokens != 0 and self.perplexity_tokens < 2:
            raise UserError(f"`evaluation.perplexity_tokens={self.perplexity_tokens}` must be 0 (off) or at least 2.")
        unknown = set(self.protocols) - set(get_args(Protocol))
        if unknown or "teacher_forced" not in self.protocols:
            raise UserError(
                f"`evaluation.protocols={list(self.protocols)}` must hold teacher_forced, by which validations go, and "
                "may hold probability, generation, chat and long_prefix."
            )
        if self.references is not None and self.texts == 0:
            raise UserError(
                "`evaluation.references` is there to compare free texts with, but `evaluation.texts=0` writes none. "
                "Set --model.evaluation.texts to a number of records."
            )

    def lean(self, earlier: int | None) -> "EvaluationSettings":
        """The same for somebody who waits: teacher-forced scores alone, of so many earlier edits."""
        few = replace(self, protocols=["teacher_forced"], texts=0, references=None, earlier=earlier)
        return replace(few, perplexity_tokens=0, cases=0, facts=0, made_neighbors=0)
