"""What a model's own file says, where a program leaves it open: the command line reads such files by itself."""

from sphere_pl.editing.moments import StatisticsSettings
from sphere_pl.editing.target_settings import TargetSettings
from sphere_pl.methods import AlphaEdit
from sphere_pl.methods.base import Method
from sphere_pl.model.known import known_settings


def as_known(
    name: object,
    method: Method | None,
    layers: list[int] | None,
    targets: TargetSettings,
    statistics: StatisticsSettings,
) -> tuple[Method, list[int] | None, TargetSettings, StatisticsSettings]:
    """Fill what is open by the settings that a model has of its own.

    Args:
        name: The model's name.
        method: The method; the model's AlphaEdit if None.
        layers: Blocks to edit; the model's own if None and the method edits several.
        targets: How targets are optimised; the model's own for its own layers, if nothing is set.
        statistics: Where second moments come from; the same.
    """
    own = known_settings(name) if isinstance(name, str) else {}
    if method is None:
        method = AlphaEdit(**own.get("method", {}).get("init_args", {}))
    if layers is None and "layers" in own and isinstance(method, Method) and method.depth is None:
        layers = own["layers"]
        if targets == TargetSettings():
            targets = TargetSettings(**own.get("targets", {}))
        if statistics == StatisticsSettings():
            statistics = StatisticsSettings(**own.get("statistics", {}))
    return method, layers, targets, statistics
