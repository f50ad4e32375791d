"""Sequential knowledge editing of language models with SPHERE: one edit batch, one Lightning step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sphere_pl.text.version import __version__ as __version__

if TYPE_CHECKING:
    from sphere_pl.api.edit import edit
    from sphere_pl.api.report import EditReport, FactResult
    from sphere_pl.data.datamodule import EditDataModule, EditLoader
    from sphere_pl.data.request import EditRequest
    from sphere_pl.editing.guard import GuardSettings
    from sphere_pl.editing.moments import StatisticsSettings
    from sphere_pl.editing.target_settings import TargetSettings
    from sphere_pl.editor import SequentialEditor
    from sphere_pl.errors import UserError
    from sphere_pl.evaluation.settings import EvaluationSettings
    from sphere_pl.history.delta import apply_delta
    from sphere_pl.methods import EMMET, FT, MEMIT, ROME, AlphaEdit, LocFTBF, Method, UltraEdit

__all__ = [
    "EMMET",
    "FT",
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "EditDataModule",
    "EditLoader",
    "EditReport",
    "EditRequest",
    "EvaluationSettings",
    "FactResult",
    "GuardSettings",
    "LocFTBF",
    "Method",
    "SequentialEditor",
    "StatisticsSettings",
    "TargetSettings",
    "UltraEdit",
    "UserError",
    "apply_delta",
    "edit",
]

_HOMES = {
    **dict.fromkeys(
        ("EMMET", "FT", "MEMIT", "ROME", "AlphaEdit", "LocFTBF", "Method", "UltraEdit"), "sphere_pl.methods"
    ),
    **dict.fromkeys(("EditDataModule", "EditLoader"), "sphere_pl.data.datamodule"),
    **dict.fromkeys(("EditReport", "FactResult"), "sphere_pl.api.report"),
    "EditRequest": "sphere_pl.data.request",
    "EvaluationSettings": "sphere_pl.evaluation.settings",
    "GuardSettings": "sphere_pl.editing.guard",
    "SequentialEditor": "sphere_pl.editor",
    "StatisticsSettings": "sphere_pl.editing.moments",
    "TargetSettings": "sphere_pl.editing.target_settings",
    "UserError": "sphere_pl.errors",
    "apply_delta": "sphere_pl.history.delta",
    "edit": "sphere_pl.api.edit",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sphere_pl' has no attribute {name!r}. It offers {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)
