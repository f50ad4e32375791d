"""Pure functions behind the metrics."""

import torch
from torch import Tensor


def exact_hits(predicted: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Whether all tokens of each row are predicted.

    Args:
        predicted: Token ids, shape `[rows, tokens]`.
        target: Token ids, padded with `ignore_index`, shape `[rows, tokens]`.
        ignore_index: Marks positions that do not count.

    Returns:
        1 or 0 for each row, float64 `[rows]`.

    Example:
        >>> exact_hits(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, -100], [3, 5]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    right: Tensor = (predicted == target) | (target == ignore_index)
    return right.all(dim=1).double()


def record_means(hits: Tensor, record: Tensor) -> Tensor:
    """Mean over the rows of each record.

    Args:
        hits: One value a row, shape `[rows]`.
        record: Which record each row belongs to; any integers, shape `[rows]`.

    Returns:
        One mean for each record that occurs, in ascending order of record.

    Example:
        >>> record_means(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([7, 7, 9]))
        tensor([0.5000, 1.0000])
    """
    _, index, counts = torch.unique(record, return_inverse=True, return_counts=True)
    means: Tensor = torch.zeros_like(counts, dtype=hits.dtype).index_add(0, index, hits) / counts
    return means


def standard_error(total: Tensor, squares: Tensor, count: Tensor) -> Tensor:
    """Standard error of a mean from sums.

    Args:
        total: Sum of the values, of any shape.
        squares: Sum of their squares, of the same shape.
        count: How many there were.

    Returns:
        The standard error, of that shape; NaN for a single value.

    Example:
        >>> standard_error(torch.tensor(2.0), torch.tensor(2.0), torch.tensor(4.0))
        tensor(0.2887)
    """
    variance: Tensor = (squares - total**2 / count) / (count - 1)
    return torch.sqrt(variance.clamp_min(0) / count)
