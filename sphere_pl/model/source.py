"""Where a run's language model comes from: opened once, to see whether it can be edited, and loaded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sphere_pl.model.families import check_layers
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import DeviceMap, Dtype, OpenedModel, load_weights, open_model
from sphere_pl.process.failures import doing


@dataclass
class ModelSource:
    """A model by its name; the arguments are those of `load_language_model`.

    Attributes:
        layers: Blocks that shall be edited; None if they are still to be found.
        opened: All of the model but its weights, once it has been opened.
        loaded: Whether the weights were loaded from here: a program may hold the model already.
    """

    name: str
    layers: Sequence[int] | None
    dtype: Dtype = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    cache_dir: str | None = None
    device_map: DeviceMap = None
    architecture: dict[str, Any] | None = None
    opened: OpenedModel | None = None
    loaded: bool = False

    def open(self) -> OpenedModel:
        """Find the model and read all but its weights: most of what can be wrong with it shows here.

        Raises:
            UserError: If it is not what editing needs, or has not the layers to edit.
        """
        if self.opened is None:
            opened = open_model(self.name, self.revision, self.trust_remote_code, self.cache_dir, self.architecture)
            self.adopt(opened)
        return self.opened  # type: ignore[return-value]

    def adopt(self, opened: OpenedModel) -> None:
        """Take a model that is open already.

        Raises:
            UserError: If it has not the layers to edit.
        """
        if self.layers is not None:
            check_layers(list(self.layers), opened.n_layers)
        self.opened = opened

    @doing("loading the language model")
    def load(self) -> LanguageModel:
        """Load the weights."""
        lm = load_weights(self.open(), self.dtype, self.device_map)
        self.loaded = True
        return lm
