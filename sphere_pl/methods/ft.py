"""FT and FT-L: fine-tuning of one matrix, without and with a bound (Zhu et al. 2020, arXiv 2012.00363)."""

from torch import Tensor

from sphere_pl.methods.base import Method, State, change_of
from sphere_pl.methods.descent import RELATIVE_RATE, Descent, descend
from sphere_pl.methods.problem import LayerProblem


class FT(Method):
    """Fine-tune one matrix on the targets of each batch with a fresh Adam.

    The loss is the autoregressive one: each token of the target given those before it, averaged over the target and
    then over the mini-batch. The SPHERE authors' code, like MEMIT's, takes all of them from the distribution at the
    prompt's last token and, with tokenizers that have no unknown token, trains on padding as well; their FT numbers
    are therefore lower than a correct fine-tuning's. Several matrices at once are not fine-tuned: the papers choose
    one.

    Args:
        learning_rate: Adam's, as an absolute number (5e-4 in the papers' settings).
        epochs: Passes over the batch, 25 there.
        batch_size: Requests of one step, 64 there.
        stop_loss: A mini-batch below it takes no step, an epoch below it is the last.
        norm_constraint: FT-L: no entry moves further than this from where it was before the batch (the ROME authors
            take 5e-4 for GPT2-XL and 5e-5 for GPT-J); FT if None.
        relative_rate: Adam's learning rate if `learning_rate` is None, in units of the root mean square of the matrix's
            entries.

    Raises:
        UserError: If an argument is out of range.
    """

    needs_targets = False
    needs_second_moment = False
    depth = 2 / 3  # 21 of 32 in LLaMA3-8B
    max_layers = 1

    def __init__(
        self,
        learning_rate: float | None = None,
        epochs: int = 25,
        batch_size: int = 64,
        stop_loss: float = 1e-2,
        norm_constraint: float | None = None,
        relative_rate: float = RELATIVE_RATE,
    ) -> None:
        plan = Descent(learning_rate, epochs, batch_size, stop_loss, norm_constraint, relative_rate)
        self.plan = plan.check("FT")

    @property
    def name(self) -> str:
        """The name shown in results."""
        return "FT" if self.plan.radius is None else "FT-L"

    @property
    def lever(self) -> str:
        """See `Method.lever`."""
        if self.plan.radius is not None:
            return change_of("above", norm_constraint=self.plan.radius)
        return change_of("above", learning_rate=self.plan.learning_rate, relative_rate=self.plan.relative_rate)

    def initial_state(self, weight: Tensor, second_moment: Tensor | None) -> State:
        """Nothing is remembered."""
        return {}

    def update(self, problem: LayerProblem, state: State) -> Tensor:
        """See `descend`."""
        return descend(problem, self.plan)
