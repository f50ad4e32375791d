"""LocFT-BF: plain fine-tuning of one localised matrix, breadth-first (ICLR 2026, arXiv 2509.22072)."""

import torch
from torch import Tensor

from sphere_pl.methods.base import Method, State
from sphere_pl.methods.descent import RELATIVE_RATE, Descent, descend
from sphere_pl.methods.problem import LayerProblem


class LocFTBF(Method):
    """Fine-tune one well-chosen matrix breadth-first.

    Every epoch passes over all requests in shuffled mini-batches with one step each, instead of training one request
    to convergence after the other. The end-of-text token is part of each target, so that the edited model also stops.
    Constants and these two details are those of the authors' public code: layer 22 for LLaMA3-8B, layer 6 for
    Qwen2.5-7B, both the MLP's down-projection.

    The authors run once over the whole data set. Here the passes are over one edit batch: give `--data.batch_size` the
    number of edits to do as they do; smaller batches are the sequential variant. The paper itself was not at hand, so
    how it chose the layer of other models is not known here.

    Args:
        learning_rate: Adam's, as an absolute number (5e-4 in the authors' settings).
        epochs: Passes over the edit batch.
        batch_size: Requests of one step.
        stop_loss: A mini-batch below it takes no step, an epoch below it is the last.
        end_of_text: Whether the end-of-text token is part of each target.
        relative_rate: Adam's learning rate if `learning_rate` is None, in units of the root mean square of the matrix's
            entries.

    Raises:
        UserError: If an argument is out of range.
    """

    needs_targets = False
    needs_second_moment = False
    depth = 2 / 3  # 22 of 32 in LLaMA3-8B
    max_layers = 1
    saved: frozenset[str] = frozenset({"batches"})

    def __init__(
        self,
        learning_rate: float | None = None,
        epochs: int = 25,
        batch_size: int = 100,
        stop_loss: float = 1e-2,
        end_of_text: bool = True,
        relative_rate: float = RELATIVE_RATE,
    ) -> None:
        plan = Descent(learning_rate, epochs, batch_size, stop_loss, relative_rate=relative_rate)
        self.plan = plan.check("LocFTBF")
        self.end_of_text = end_of_text

    @property
    def name(self) -> str:
        """The name shown in results."""
        return "LocFT-BF"

    @property
    def lever(self) -> str:
        """See `Method.lever`."""
        return f"--model.method.init_args.epochs above {self.plan.epochs}"

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """How many batches came before: the order of the requests is drawn from it."""
        return {"batches": torch.zeros((), dtype=torch.long)}

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `descend`."""
        # Seeded by the batch's number, so that a resumed run shuffles as the uninterrupted one does.
        order = torch.Generator().manual_seed(int(state["batches"]))
        return descend(problem, self.plan, order)

    def remember(self, problem: LayerProblem, state: State) -> State:
        """Count the batch."""
        return {"batches": state["batches"] + 1}
