"""What all callbacks that act on a `SequentialEditor` share: they have it, by its type, and refuse other modules."""

from typing import Any, ClassVar

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from sphere_pl.editor import SequentialEditor


class EditorCallback(L.Callback):
    """A callback that acts on a `SequentialEditor`.

    Attributes:
        editor: The module that is trained; there from `setup` on.
        otherwise: A class's advice to whoever has another module.
        summary_name: Under which name `summary` stands in results.json; nowhere if empty.
    """

    editor: SequentialEditor
    otherwise: ClassVar[str] = ""
    summary_name: ClassVar[str] = ""

    def summary(self) -> dict[str, Any]:
        """What it leaves in results.json."""
        return {}

    @override
    def setup(self, trainer: "L.Trainer", pl_module: "L.LightningModule", stage: str) -> None:
        """Take hold of the editor.

        Raises:
            MisconfigurationException: If the module is another.
        """
        if not isinstance(pl_module, SequentialEditor):
            raise MisconfigurationException(
                f"`{type(self).__name__}` acts on a `SequentialEditor`, found {type(pl_module).__name__}. "
                f"{self.otherwise or 'Leave the callback out.'}"
            )
        self.editor = pl_module
