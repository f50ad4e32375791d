"""The arithmetic of causal tracing (Meng et al. 2022, arXiv 2202.05262, Sec. 2): tensors in, tensors out.

Shapes: `N` facts, `S` noise samples, `K` kinds of states (`KINDS`), `T` tokens of a prompt from the subject's first on,
`R` token roles (`ROLES`), `L` layers, `d` hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("state", "mlp", "attention")
ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
LAST_SUBJECT = ROLES.index("last subject token")


def token_roles(subject: int, after: int) -> list[int]:
    """The role of each token of a prompt, from the subject's first on, as an index into `ROLES`.

    Every token has one role. Where two would fit, the last subject token and the prompt's last token take precedence,
    in this order: a subject of one token has a last token only.

    Args:
        subject: How many tokens the subject has, at least 1.
        after: How many tokens follow it in the prompt.

    Example:
        >>> token_roles(3, 3), token_roles(1, 1)
        ([0, 1, 2, 3, 4, 5], [2, 5])
    """
    inside = [0] + [1] * (subject - 2) if subject > 1 else []
    later = [3] + [4] * (after - 2) if after > 1 else []
    return [*inside, LAST_SUBJECT, *later, *([5] if after else [])]


def subject_noise(samples: int, tokens: int, width: int, scale: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise for the embeddings of a subject.

    Args:
        samples: S.
        tokens: How many tokens the subject has.
        width: d.
        scale: Standard deviation; the paper takes three times that of the subjects' embeddings.
        generator: Where the noise comes from.

    Returns:
        Float32 `[S, tokens, d]` on the generator's device.
    """
    return scale * torch.randn(samples, tokens, width, generator=generator, device=generator.device)


def windows(layers: int, width: int) -> tuple[Tensor, Tensor]:
    """First layer and the one after the last of a window around every layer, cut at the model's ends.

    An even window reaches one layer further down than up, as in the authors' code.

    Returns:
        Two tensors of shape `[L]`.

    Example:
        >>> windows(5, 4)
        (tensor([0, 0, 0, 1, 2]), tensor([2, 3, 4, 5, 5]))
    """
    center = torch.arange(layers)
    return (center - width // 2).clamp_min(0), (center + (width + 1) // 2).clamp_max(layers)


def indirect_effects(restored: Tensor, corrupted: Tensor) -> Tensor:
    """How much of the answer's probability each restored state brings back, as the mean over noise samples.

    Args:
        restored: Probability of the answer with one state restored, shape `[..., S]`.
        corrupted: Probability without, shape `[S]`.

    Returns:
        Shape `[...]`.

    Example:
        >>> indirect_effects(torch.tensor([[0.5, 0.75], [0.125, 0.125]]), torch.tensor([0.125, 0.125]))
        tensor([0.5000, 0.0000])
    """
    return (restored - corrupted).mean(-1)


def by_role(effects: Tensor, roles: Tensor) -> Tensor:
    """Mean over the tokens of each role within one prompt.

    Args:
        effects: Shape `[K, T, L]`.
        roles: Role of each token, shape `[T]`.

    Returns:
        Shape `[K, R, L]`, NaN for a role that no token has.
    """
    return torch.stack([effects[:, roles == role].mean(1) for role in range(len(ROLES))], dim=1)


class Average(NamedTuple):
    """Means over facts.

    Attributes:
        mean: NaN where no fact counts.
        standard_error: Of the mean; NaN where fewer than two facts count.
        facts: How many facts count.
    """

    mean: Tensor
    standard_error: Tensor
    facts: Tensor


def average(values: Tensor) -> Average:
    """Average over facts, leaving out what is NaN.

    Args:
        values: Shape `[N, ...]`.

    Example:
        >>> average(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]))
        Average(mean=tensor([2., 2.]), standard_error=tensor([1., nan]), facts=tensor([2, 1]))
    """
    facts = (~values.isnan()).sum(0)
    mean = values.nanmean(0)
    squares = (values - mean).square().nansum(0)
    # 0 / 0 below two facts: NaN is what is meant.
    return Average(mean, (squares / (facts - 1) / facts).sqrt(), facts)


def suggest_layers(effects: Tensor, count: int) -> list[int]:
    """The neighbouring layers whose effects add up to most; the shallowest of several that do.

    Args:
        effects: Average indirect effect of the MLP outputs at the last subject token, shape `[L]`.
        count: How many layers, at most L.

    Example:
        >>> suggest_layers(torch.tensor([0.0, 0.1, 0.4, 0.3, 0.3, 0.0]), 3)
        [2, 3, 4]
    """
    sums = effects.double().unfold(0, count, 1).sum(1)
    first = int((sums == sums.max()).nonzero()[0])
    return list(range(first, first + count))
