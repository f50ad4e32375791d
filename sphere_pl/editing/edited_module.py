"""A language model as Lightning trains it: its edited matrices are the module's parameters."""

from collections.abc import Sequence
from typing import Any, Self

import lightning as L
from torch import Tensor, nn

from sphere_callbacks import LayerwiseEdit
from sphere_pl.editing.algorithm import layer_walk
from sphere_pl.editing.fast_products import FastProducts
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel


class EditedModule(L.LightningModule):
    """A module whose language model follows the matrices that are edited.

    The edited matrices live here as float32 parameters of shape `[d_out, d_in]`: they are what the optimizer,
    the callbacks and the checkpoint see. The language model's own tensors follow them, in the model's dtype.

    Attributes:
        lm: The language model; None until it is loaded.
        sites: Where the edited matrices are in it, shallow to deep.
        weights: The matrices themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = self.strict_loading = False  # a checkpoint holds the edited matrices only
        self.lm: LanguageModel | None = None
        self.sites, self.weights = list[EditSite](), nn.ParameterList()

    @property
    def language_model(self) -> LanguageModel:
        """The language model; there from `configure_model` on."""
        if self.lm is None:
            raise RuntimeError("The language model is loaded by the trainer, or by calling `configure_model()`.")
        return self.lm

    def take_matrices(self, layers: Sequence[int]) -> None:
        """Take float32 copies of the matrices to edit, once."""
        if not self.sites:
            self.sites = self.language_model.sites(list(layers))
            self.weights.extend(nn.Parameter(site.read()) for site in self.sites)

    @property
    def matrices(self) -> dict[str, Tensor]:
        """The edited matrices by their Hugging Face names, shallow to deep; no copies."""
        return {site.name: weight.detach() for site, weight in zip(self.sites, self.weights, strict=True)}

    def refresh_model(self) -> None:
        """Copy every edited matrix into the language model."""
        for site, weight in zip(self.sites, self.weights, strict=True):
            site.write(weight)

    def norms(self) -> list[Tensor]:
        """The Frobenius norm of each edited matrix, `[]` on the CPU."""
        return [weight.detach().norm().cpu() for weight in self.weights]

    def configure_optimizers(self) -> LayerwiseEdit:
        """One parameter group for each edited matrix, under its Hugging Face name."""
        return layer_walk(self.sites, self.weights)

    def configure_callbacks(self) -> FastProducts:
        """What every run needs around it."""
        return FastProducts()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Leave everything where it is if the model is spread over devices: Lightning would move it to one of them.

        The edited matrices lie beside the model's own, and what scores them counts on the CPU.
        """
        return self if self.lm is not None and self.lm.spread else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
