"""Sequential knowledge editing of language models with SPHERE: one edit batch, one Lightning step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphere_pl.data.datamodule import EditDataModule, EditLoader
    from sphere_pl.data.request import EditRequest
    from sphere_pl.editor import SequentialEditor
    from sphere_pl.history.delta import apply_delta

__version__ = "0.1.0"
__all__ = ["EditDataModule", "EditLoader", "EditRequest", "SequentialEditor", "apply_delta"]

_HOMES = {
    "EditDataModule": "sphere_pl.data.datamodule",
    "EditLoader": "sphere_pl.data.datamodule",
    "EditRequest": "sphere_pl.data.request",
    "SequentialEditor": "sphere_pl.editor",
    "apply_delta": "sphere_pl.history.delta",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sphere_pl' has no attribute {name!r}. It offers {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)
