"""How a model is given facts beside its weights: found by the question, confirmed by the model, put in front of it."""

from dataclasses import dataclass
from typing import Literal

from sphere_pl.errors import UserError

FACT, QUESTION = "{fact}", "{question}"
_CONFIRM = "Fact: {fact}\nQuestion: {question}\nDoes the fact answer the question? Answer yes or no.\nAnswer:"


@dataclass(frozen=True)
class Retrieval:
    """How facts in a list reach the model.

    Args:
        retriever: `tfidf` compares texts by the pieces of words that they share (scikit-learn, any script), `model` by
            the unedited model's own states, their mean over the text.
        candidates: How many facts the model is asked about for one question, the most similar first; the first that it
            confirms stands in front of the question.
        min_similarity: Facts below this cosine similarity are not asked about.
        confirm: Whether the model is asked if a fact applies; if not, the most similar one is taken.
        confirmation: What the model is asked; `Yes` or `No` is the likelier answer, each measured against its
            likelihood with an empty fact, so that a model that likes one of the words does not always say it.
        in_front: What stands before a question, with the fact in it.

    Raises:
        UserError: If a number is out of range, or a text lacks its places.
    """

    retriever: Literal["tfidf", "model"] = "tfidf"
    candidates: int = 1
    min_similarity: float = 0.5
    confirm: bool = True
    confirmation: str = _CONFIRM
    in_front: str = "{fact}\n"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.retriever not in ("tfidf", "model"):
            raise UserError(f"`SCR(retriever={self.retriever!r})` must be tfidf or model.")
        if self.candidates < 1 or not 0 <= self.min_similarity <= 1:
            raise UserError(
                f"`SCR(candidates={self.candidates})` must be at least 1 and `min_similarity={self.min_similarity}` "
                "between 0 and 1."
            )
        for name, places in (("confirmation", (FACT, QUESTION)), ("in_front", (FACT,))):
            missing = [place for place in places if place not in getattr(self, name)]
            if missing:
                raise UserError(f"`SCR({name}={getattr(self, name)!r})` must hold {' and '.join(missing)}.")
