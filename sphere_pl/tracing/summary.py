"""What tracing many facts says, as trace.json holds it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sphere_pl.tracing.functional import KINDS, LAST_SUBJECT, ROLES, Average, average, by_role, suggest_layers
from sphere_pl.tracing.trace import FactTrace, TraceSettings


def average_effects(traces: Sequence[FactTrace]) -> Average:
    """Average indirect effect of `N` traces, `[K, R, L]`: the mean over each role's tokens, then over facts."""
    return average(torch.stack([by_role(trace.effects, torch.tensor(trace.roles)) for trace in traces]))


def summarize(traces: Sequence[FactTrace], settings: TraceSettings, count: int) -> dict[str, Any]:
    """Average over facts and suggest layers.

    Args:
        traces: At least one.
        settings: How they were traced.
        count: How many layers to suggest.

    Returns:
        What JSON can hold; null stands for what cannot be known.
    """
    effects = average_effects(traces)
    layers = effects.mean.shape[-1]
    clean = torch.tensor([trace.clean for trace in traces])
    corrupted = torch.tensor([trace.corrupted for trace in traces])
    return {
        "settings": {**asdict(settings), "window": settings.width(layers)},
        "layers": layers,
        "traced": len(traces),
        "probability": {
            "clean": _entry(average(clean)),
            "corrupted": _entry(average(corrupted)),
            "total_effect": _entry(average(clean - corrupted)),
        },
        "average_indirect_effect": {
            kind: {
                role: _entry(Average(*(part[k, r] for part in effects))) | {"facts": int(effects.facts[k, r, 0])}
                for r, role in enumerate(ROLES)
            }
            for k, kind in enumerate(KINDS)
        },
        "suggested_layers": suggest_layers(effects.mean[KINDS.index("mlp"), LAST_SUBJECT], count),
        "facts": [_fact(trace) for trace in traces],
    }


def config_line(summary: Mapping[str, Any]) -> str:
    """The suggested layers as an argument of `fit`.

    Example:
        >>> config_line({"suggested_layers": [2, 3, 4]})
        '--model.layers=[2,3,4]'
    """
    return f"--model.layers=[{','.join(map(str, summary['suggested_layers']))}]"


def _entry(found: Average) -> dict[str, Any]:
    return {"mean": _plain(found.mean), "standard_error": _plain(found.standard_error)}


def _fact(trace: FactTrace) -> dict[str, Any]:
    effects = {kind: _plain(trace.effects[k]) for k, kind in enumerate(KINDS)}
    roles = [ROLES[role] for role in trace.roles]
    return {**trace._asdict(), "roles": roles, "effects": effects}


def _plain(values: Tensor | list[Any] | float) -> Any:
    """Numbers in lists, six digits each, None for NaN."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [_plain(value) for value in values]
    return None if math.isnan(values) else float(f"{values:.6g}")
