"""How target values are optimised: the settings, and in which units they count."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sphere_pl.errors import UserError
from sphere_pl.model.batching import MOST_TOKENS

Units = Literal["state", "absolute"]
Optimizer = Literal["adam", "polyak"]
LEARNING_RATE = 0.05  # of a state's root mean square: what three models of 135 to 500 million parameters share


@dataclass(frozen=True)
class TargetSettings:
    """How targets are optimised. The defaults do in any model what they do in one whose states are ten times as large.

    Args:
        steps: Evaluations of the loss; the last one is not followed by a step, so 25 evaluations are 24 steps.
        learning_rate: Adam's, in `units`; if None, that found for the model, or 0.05 of the state's root mean square.
        clamp: The shift's norm is at most this many times the norm of the state it is added to.
        weight_decay: Weight of `||shift|| / ||state||`, or in absolute units of MEMIT's `||shift|| / ||state||²`.
        kl_weight: Weight of the divergence on "{subject} is a".
        stop_loss: A request whose loss is below this has converged.
        max_tokens: Tokens in one forward pass; a run without it takes as many as its memory allows, 256 to 4096.
        anchor: Whether each target is rescaled to the norm that the unedited model's state has at its place
            (norm-anchored targets, arXiv 2602.02543): edits that build on earlier ones cannot make it grow then.
        optimizer: `adam` as in the papers, or `polyak`: steps against the gradient that are as long as the loss has
            still to fall over the gradient's norm (Polyak 1987, with half of the step before). It needs no learning
            rate and about half as many evaluations; docs/speed.md compares what they reach.
        same_key: Requests whose keys have at least this cosine are edited with one target for all of them, since one
            key has one value (MEMIT-Merge, arXiv 2502.07322); above 1 none are.
        units: What a step is measured in: `state`, the root mean square of the state that it is added to, or
            `absolute`, as the papers' learning rates are. If None, a `learning_rate` that is given is absolute.
        align: Weight of EAMET's alignment (arXiv 2505.11876), which lets the shifts of a batch lie to one another as
            their keys do; 0 leaves it out. It has no part in when a request has converged.
    """

    steps: int = 25
    learning_rate: float | None = None
    clamp: float = 1.0
    weight_decay: float = 0.0
    kl_weight: float = 0.3
    stop_loss: float = 0.4
    max_tokens: int | None = None
    anchor: bool = False
    same_key: float = 0.85
    optimizer: Optimizer = "adam"
    units: Units | None = None
    align: float = 0.0

    @property
    def tokens_at_once(self) -> int:
        """Tokens in one forward pass; the most that a run takes where nothing has settled it."""
        return self.max_tokens or MOST_TOKENS

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "learning_rate", "clamp", "max_tokens"):
            given = getattr(self, name)
            if given is not None and given <= 0:
                raise UserError(f"`targets.{name}={given}` must be above 0.")
        for name in ("weight_decay", "kl_weight", "stop_loss", "align"):
            if getattr(self, name) < 0:
                raise UserError(f"`targets.{name}={getattr(self, name)}` must be at least 0.")
        if self.optimizer not in get_args(Optimizer):
            raise UserError(f"`targets.optimizer={self.optimizer!r}` must be adam or polyak.")
        if self.optimizer == "polyak" and self.learning_rate is not None:
            raise UserError(
                f"`targets.learning_rate={self.learning_rate}` was given, but `targets.optimizer=polyak` has none. Set "
                "--model.targets.optimizer adam, which has one, or leave the learning rate out."
            )
        if self.optimizer == "polyak" and self.align:
            raise UserError(
                "`targets.align` has no part in the loss that `targets.optimizer=polyak` takes its steps from. Set the "
                "optimizer to adam, or leave `targets.align` at 0."
            )
        if self.units not in (None, *get_args(Units)):
            raise UserError(f"`targets.units={self.units!r}` must be state or absolute.")
        if self.units == "absolute" and self.learning_rate is None:
            raise UserError("`targets.units=absolute` needs the `targets.learning_rate` that it counts in.")

    @property
    def absolute(self) -> bool:
        """Whether steps are measured in absolute units."""
        return (self.units or ("state" if self.learning_rate is None else "absolute")) == "absolute"

    @property
    def by_adam(self) -> bool:
        """Whether it is Adam that takes the steps."""
        return self.optimizer == "adam"

    @property
    def rate_is_open(self) -> bool:
        """Whether there is a learning rate, and it is left to be found."""
        return self.learning_rate is None and self.by_adam

    @property
    def rate(self) -> float:
        """Adam's learning rate, in `units`."""
        return LEARNING_RATE if self.learning_rate is None else self.learning_rate

    def step_size(self, base: Tensor) -> tuple[float, Tensor | None]:
        """Adam's learning rate for shifts of the states `[n, d]`, and the unit `[n, 1]` of each; None is 1."""
        return self.rate, None if self.absolute else base.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)

    def decay(self, shift: Tensor, base_norm: Tensor) -> Tensor:
        """The penalty `[n]` of shifts `[n, d]` of states of the norms `[n]`."""
        # The norm is not squared in MEMIT's code; its gradient at zero is taken as zero, as torch does.
        scale: Tensor = base_norm**2 if self.absolute else base_norm
        decay: Tensor = self.weight_decay * shift.norm(dim=1) / scale
        return decay
