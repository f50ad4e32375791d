"""A cheap alarm after every batch: perplexity of held-out text, and the divergence from the unedited model on it.

With next-token distributions p of the edited and q of the unedited model, in nats, means over all predicted positions:

    drift/perplexity = exp(-mean log p(next token))
    drift/kl         = mean sum_v p(v) (log p(v) - log q(v)),   KL(edited || unedited)

The text is cut into pieces of `length` tokens; every token of a piece but its first is predicted. What is kept of the
unedited model is the output of its last block, `[positions, d]` in the model's dtype: 0.6 MB for 512 positions of a
135M model and 4 MB for an 8B model, where full log-probabilities would be 100 and 260 MB. Final norm and head are never
edited, so the unedited distributions follow from it exactly, and the divergence of an unedited model is exactly 0.
Those of few positions (64, as many as the default reads) are kept once they have been made.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from sphere_pl.data.builtin import heldout_text
from sphere_pl.data.corpus import beginning, read_corpus
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scoring import (
    POSITIONS,
    HeldOut,
    held_out,
    log_likelihood,
    next_token_distributions,
    perplexity_of,
    predicting_states,
)
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.failures import doing
from sphere_pl.run.editor_callback import EditorCallback


class Reading(NamedTuple):
    """What a model makes of a text.

    Attributes:
        perplexity: Of the text.
        kl: KL(edited || unedited) in nats a token.
    """

    perplexity: float
    kl: float


@torch.no_grad()
def compare(
    lm: LanguageModel, current: Tensor, unedited: Tensor, labels: Tensor, known: Sequence[Tensor] = ()
) -> Reading:
    """Perplexity and divergence from the last block's outputs.

    Args:
        lm: The language model, for its final norm and head.
        current: States of the edited model, shape `[positions, d]`.
        unedited: States of the unedited model at the same positions.
        labels: The tokens that follow, shape `[positions]`.
        known: What `distributions` says of the unedited states; found again if empty.
    """
    likelihood, divergence = 0.0, 0.0
    before = known or (q for _, q in next_token_distributions(lm, unedited))
    for (rows, p), q in zip(next_token_distributions(lm, current), before, strict=True):
        likelihood += log_likelihood(p, labels[rows])
        divergence += float(torch.linalg.vecdot(p.exp(), p - q).double().sum())
    return Reading(perplexity_of(likelihood, len(labels)), divergence / len(labels))


@torch.no_grad()
def distributions(lm: LanguageModel, states: Tensor) -> list[Tensor]:
    """Log-probabilities after few states `[t, d]`, in the pieces that `compare` takes; none if there are many."""
    return [q for _, q in next_token_distributions(lm, states)] if len(states) <= POSITIONS else []


class Drift(EditorCallback):
    """Log `drift/perplexity` and `drift/kl` after every batch; see the module's text for their definition.

    The unedited states are computed once, before the first edit, and travel in the checkpoint. Weights and random state
    are only read. Under PRUNE these are the weights that editing continues with, not the restrained ones.

    Args:
        tokens: Tokens of text to read; 0 turns the alarm off.
        every: Batches between readings; the rows of the batches in between repeat the last one.
        text: A text file or hub data set; the built-in held-out text if None.
        length: Tokens of context.

    Raises:
        UserError: If a number is out of range or there is no text.
    """

    def __init__(self, tokens: int = 64, every: int = 1, text: str | None = None, length: int = 128) -> None:
        if tokens != 0 and tokens < 2:
            raise UserError(f"--drift.tokens={tokens} must be 0 (off) or at least 2.")
        if every < 1 or length < 2:
            raise UserError(f"--drift.every={every} must be at least 1 and --drift.length={length} at least 2.")
        self.tokens, self.every, self.text, self.length = tokens, every, text, length
        self._unedited = torch.zeros(0)
        self._known: list[Tensor] = []  # distributions of the unedited model
        self._held_out: HeldOut | None = None

    @override
    @doing("measuring drift")
    def on_train_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Read the text with the unedited model: Lightning calls this before a resumed run's weights are restored."""
        if not self.tokens:
            return
        lm = self.editor.language_model
        documents = read_corpus(self.text) if self.text else [heldout_text()]
        self._held_out = held_out(lm, beginning(documents, 20 * self.tokens), self.tokens, self.length)
        if not len(self._unedited):
            self._unedited = predicting_states(lm, self._held_out)
        self._unedited = self._unedited.to(lm.device)
        self._known = []

    @override
    @doing("measuring drift")
    def on_train_batch_end(
        self, trainer: "L.Trainer", pl_module: "L.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read it again with the edited one."""
        if self._held_out is None or trainer.global_step % self.every:
            return
        lm = self.editor.language_model
        self._known = self._known or distributions(lm, self._unedited)
        found = compare(lm, predicting_states(lm, self._held_out), self._unedited, self._held_out.labels, self._known)
        values = {"drift/perplexity": found.perplexity, "drift/kl": found.kl}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The unedited states."""
        return {"unedited": self._unedited.cpu()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the model before the first edit of the interrupted run."""
        self._unedited = state_dict["unedited"]
