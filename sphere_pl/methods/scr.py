"""SCR: retrieval, the baseline that edits no weight (He et al. 2025, arXiv 2503.05212)."""

from typing import Literal

import torch
from torch import Tensor

from sphere_pl.methods.base import Method, State
from sphere_pl.methods.problem import LayerProblem
from sphere_pl.methods.retrieval import Retrieval


class SCR(Method):
    """Selective contextual reasoning: the facts stand in a list, and the model reads the one that applies.

    Nothing is edited. A question is first compared with the facts of the list; the model is then asked whether the most
    similar one applies, and if so it stands in front of the question. The list is the edits of the run so far, in their
    order, so that a checkpoint, a continued run, `undo` and `--at N` have theirs without storing it. Callbacks see an
    update of zeros.

    What is asked of the unedited model is asked of this one too, every score, protocol and ability, with the list at
    hand; perplexity is not: ordinary text is no question, and the weights are the unedited ones.

    The paper's abstract settles the two steps and that facts are found by semantic similarity. Not settled by a public
    source, and this implementation's own: the retriever (the paper's is a trained sentence encoder, these need none),
    the words of the question whether a fact applies, the likelihood with an empty fact that its answer is measured
    against, and that one fact is read at a time: a question in two hops gets one of its two facts.

    The bound on the similarity is a compromise on CounterFact, where TF-IDF over 300 facts finds the fact of every own
    prompt and of 95 % of the paraphrases; some 6 % of these lie below the bound, some 30 % of the neighbours above it.

    Args:
        retriever: See `Retrieval`.
        candidates: See `Retrieval`.
        min_similarity: See `Retrieval`.
        confirm: See `Retrieval`.
        confirmation: See `Retrieval`.
        in_front: See `Retrieval`.

    Raises:
        UserError: If an argument is out of range.
    """

    needs_targets = False
    needs_second_moment = False
    retrieval: Retrieval

    def __init__(
        self,
        retriever: Literal["tfidf", "model"] = Retrieval.retriever,
        candidates: int = Retrieval.candidates,
        min_similarity: float = Retrieval.min_similarity,
        confirm: bool = Retrieval.confirm,
        confirmation: str = Retrieval.confirmation,
        in_front: str = Retrieval.in_front,
    ) -> None:
        self.retrieval = Retrieval(retriever, candidates, min_similarity, confirm, confirmation, in_front)

    @property
    def name(self) -> str:
        """The name shown in results."""
        return "SCR" if self.retrieval.confirm else "SCR, unconfirmed"

    @property
    def lever(self) -> str:
        """See `Method.lever`."""
        return f"--model.method.init_args.min_similarity below {self.retrieval.min_similarity:g}"

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """Nothing: the list is the run's own."""
        return {}

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """Zeros."""
        return torch.zeros_like(problem.weight)
