"""Which layers to edit, judged by their depth alone.

Facts are read out of the MLPs of early blocks (Meng et al. 2022, Fig. 2). The band below holds the layers that a search
found for SmolLM2-135M (2 to 6 of 30) and that do in Gemma-3-270M (1 to 3 of 18) and Qwen2.5-0.5B (2 to 5 of 24); the
SPHERE authors take 4 to 8 of LLaMA3-8B's 32.
"""

from collections.abc import Sequence

_BAND = (0.07, 0.19)  # of the depth
_MOST = 5  # layers


def layers_by_depth(editable: Sequence[int], n_layers: int) -> list[int]:
    """Neighbouring early layers for methods that edit several.

    The last block is left out where there is another: what is written there only the token itself reads.

    Args:
        editable: Numbers of the blocks that have a matrix to edit, ascending; one at least.
        n_layers: How many blocks the model has.

    Example:
        >>> layers_by_depth(range(30), 30)
        [2, 3, 4, 5, 6]
        >>> layers_by_depth(range(18), 18)
        [1, 2, 3]
        >>> layers_by_depth([0], 24)  # the others are routed experts
        [0]
    """
    first, last = (round(share * n_layers) for share in _BAND)
    count = min(_MOST, max(1, last - first + 1))
    start = first + (last - first + 1 - count) // 2  # in the middle of the band of a deep model
    open_to_edits = [layer for layer in editable if layer < n_layers - 1] or list(editable)
    return moved(open_to_edits, start, count)


def layer_at(editable: Sequence[int], n_layers: int, depth: float) -> list[int]:
    """The layer nearest to a depth, for methods that edit one.

    Example:
        >>> layer_at(range(18), 18, 0.67)
        [12]
    """
    return [min(editable, key=lambda layer: abs(layer - depth * n_layers))]


def moved(editable: Sequence[int], start: int, count: int) -> list[int]:
    """Some neighbouring editable layers from `start` on, or from as near to it as there are so many.

    Example:
        >>> moved(range(6), 4, 3)
        [3, 4, 5]
    """
    place = sum(layer < start for layer in editable)
    place = max(0, min(place, len(editable) - count))
    return list(editable[place : place + count])
