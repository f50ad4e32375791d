"""CrispEdit's projection: keep updates to directions along which the loss over ordinary text is not curved."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from sphere_callbacks._base import WeightCallback, log_values
from sphere_callbacks._weights import EditedWeight, stack
from sphere_callbacks.functional import exact_products
from sphere_callbacks.functional._checks import as_matrix
from sphere_callbacks.functional.curvature import CurvatureBasis, curvature_basis, project_low_curvature

Factors = Mapping[str, tuple[Tensor, Tensor]]


class CurvatureProjection(WeightCallback):
    r"""Weaken the part of each update along which the loss over ordinary text is curved (arXiv 2602.15823).

    The curvature of a weight ``[n, d]`` is approximated by Kronecker factors: the second moment ``A`` of its inputs and
    ``B`` of the gradients at its outputs, both on the weights as they are at the start of the fit. It stands beside
    :class:`SparseProjection`, which cuts by the weight's own directions and on the input side alone; in a list of
    callbacks the later one has the last word.

    The factors come with ``factors``, or from the module's own ``curvature_factors(tokens)``, which returns a mapping
    from the names of the weights to pairs ``(A, B)``. :func:`record_factors` measures them on any module. A resumed fit
    asks again: a module must then answer for the weights before the first update, and not for those of the checkpoint.

    Not settled by a public source, and this implementation's own: that the factors are those of the unedited model
    throughout, the share of curvature, and that closed-form updates are projected once; the authors project each
    gradient step.

    Logged for each batch, as the mean over weights and updates:
        - ``curvature/removed``: share of the squared norm of the update that was taken away;
        - ``curvature/high``: share of all directions that count as curved.

    Cost: eigenvectors of ``A`` and ``B`` once, about ``9 (d^3 + n^3)`` flops, and ``4 n d (n + d)`` for each update.

    Args:
        cumulative_ratio: Share of the curvature that the curved directions exceed, in ``[0, 1)``.
        strength: How much of the part is removed, in ``[0, 1]``; 0 changes no bit and still logs.
        tokens: How much text the module is asked to measure on, if it does.
        factors: ``(A, B)`` by the name of the weight.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: At the start of a fit, if a weight has no factors of its shape.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = CurvatureProjection(cumulative_ratio=0.9, modules="*down_proj*")
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    label: ClassVar[str] = "CrispEdit"

    def __init__(
        self,
        cumulative_ratio: float = 0.9,
        strength: float = 1.0,
        tokens: int = 20_000,
        factors: Mapping[str, Any] | None = None,
        modules: str | None = None,
    ) -> None:
        super().__init__(modules)
        if not 0 <= cumulative_ratio < 1:
            raise ValueError(f"`CurvatureProjection(cumulative_ratio={cumulative_ratio})` must lie in [0, 1).")
        if not 0 <= strength <= 1:
            raise ValueError(f"`CurvatureProjection(strength={strength})` must lie in [0, 1].")
        if tokens < 2:
            raise ValueError(f"`CurvatureProjection(tokens={tokens})` must be at least 2.")
        self.cumulative_ratio, self.strength, self.tokens = cumulative_ratio, strength, tokens
        self.factors: Factors | None = factors
        self._bases: dict[str, CurvatureBasis] = {}
        self._measured: list[Tensor] = []

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Find the curvature of each weight."""
        super().on_train_start(trainer, pl_module)
        self._bases, self._measured = {}, []
        self._record(trainer, pl_module)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Project the gradients that are ready."""
        for weight in self._with_grad(optimizer, pl_module):
            self._require_recorded(weight.name, self._bases)
            basis = self._bases[weight.name]
            projected = project_low_curvature(weight.grad, basis, self.strength)
            total = as_matrix(weight.grad).square().sum()
            removed = torch.where(total == 0, 0.0, as_matrix(weight.grad - projected).square().sum() / total)
            self._measured.append(torch.stack([removed.float(), basis.high.float().mean()]))
            weight.grad.copy_(projected)

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Log what the projection did to the batch."""
        if self._measured:
            removed, high = stack(self._measured).mean(dim=0)
            log_values(trainer, pl_module, {"curvature/removed": removed, "curvature/high": high})
        self._measured = []

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        factors = self._factors_of(pl_module)
        missing = [weight for weight in self._weights if weight.name not in self._bases]
        self._bases |= {weight.name: self._basis(weight, factors) for weight in missing}

    def _factors_of(self, module: nn.Module) -> Factors:
        if self.factors is not None:
            return self.factors
        measure = getattr(module, "curvature_factors", None)
        if measure is None:
            raise MisconfigurationException(
                f"`CurvatureProjection` needs the Kronecker factors of the weights, and {type(module).__name__} has no "
                "method `curvature_factors(tokens)`. Give them with `factors=`; `record_factors` measures them."
            )
        found: Factors = measure(self.tokens)
        return found

    def _basis(self, weight: EditedWeight, factors: Factors) -> CurvatureBasis:
        d_out, d_in = weight.weight.shape
        given = factors.get(weight.name)
        if given is None or [list(each.shape) for each in given] != [[d_in, d_in], [d_out, d_out]]:
            found = "none" if given is None else f"factors of shapes {[list(each.shape) for each in given]}"
            raise MisconfigurationException(
                f"`CurvatureProjection` needs factors of shapes {[[d_in, d_in], [d_out, d_out]]} for `{weight.name}`, "
                f"found {found}. Their names are {', '.join(list(factors)[:5]) or 'none'}."
            )
        a, b = (each.to(weight.parameter.device, torch.float64) for each in given)
        inputs, outputs, high = curvature_basis(a, b, self.cumulative_ratio)
        dtype = as_matrix(weight.weight).dtype  # not that of a half precision weight: its eight bits are no basis
        return CurvatureBasis(inputs.to(dtype), outputs.to(dtype), high)


class RecordedFactors:
    """What :func:`record_factors` has seen so far.

    Args:
        modules: The modules by the names of their weights.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._sums: dict[str, list[Tensor]] = {}
        self._rows: dict[str, int] = {}

    def add(self, name: str, inputs: Tensor, gradients: Tensor) -> None:
        """Take in rows of inputs ``[t, d]`` and of gradients at the outputs ``[t, n]``."""
        with exact_products():
            moments = [(rows.T @ rows).double() for rows in (inputs, gradients)]
        known = self._sums.get(name)
        self._sums[name] = moments if known is None else [a + b for a, b in zip(known, moments, strict=True)]
        self._rows[name] = self._rows.get(name, 0) + len(inputs)

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``(A, B)`` by name, means over all rows, float64.

        Raises:
            RuntimeError: If a module saw no backward pass.
        """
        missing = [name for name in self._modules if name not in self._sums]
        if missing:
            raise RuntimeError(f"No gradient reached {missing[0]}: call `backward` on a loss inside `record_factors`.")
        return {name: (a / self._rows[name], b / self._rows[name]) for name, (a, b) in self._sums.items()}


@contextmanager
def record_factors(modules: Mapping[str, nn.Module]) -> Iterator[RecordedFactors]:
    """Measure Kronecker factors while losses over ordinary text are differentiated; frozen weights will do.

    Args:
        modules: Modules with one input and one output, such as ``nn.Linear``, by the names of their weights.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> with record_factors({"weight": layer}) as factors:
        ...     layer(torch.eye(3)).sum().backward()
        >>> [list(each.shape) for each in factors.moments()["weight"]]
        [[3, 3], [2, 2]]
    """
    factors = RecordedFactors(modules)
    handles = [
        module.register_forward_hook(_probe(name, factors), with_kwargs=True) for name, module in modules.items()
    ]
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()


def _probe(name: str, factors: RecordedFactors) -> Any:
    """A hook that adds to a module's output a zero, whose gradient is the output's."""

    def hook(_: nn.Module, args: tuple[Tensor, ...], by_name: dict[str, Tensor], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output).requires_grad_()
        inputs = (*args, *by_name.values())[0].detach()

        def take(gradient: Tensor) -> None:
            rows = (inputs.reshape(-1, inputs.shape[-1]).float(), gradient.reshape(-1, gradient.shape[-1]).float())
            factors.add(name, *rows)

        probe.register_hook(take)
        return output + probe

    return hook
