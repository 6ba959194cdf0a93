"""Layout: where the examples are in a tensor that a network computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["Layout", "layouts"]


@dataclass(frozen=True)
class Layout:
    """Dimension ``dim`` runs over n examples with ``repeats`` entries of each, one after the other if ``major``.

    A lone example owns a tensor whole: ``dim`` is then -1.
    """

    dim: int
    repeats: int = 1
    major: bool = True

    def arrange(self, tensor: Tensor, n: int) -> Shaped[Tensor, "n ..."]:
        """The examples first; what each has more than once stays in the place where the examples were."""
        if self.dim < 0:
            return tensor.unsqueeze(0)
        if self.major:
            return torch.unflatten(tensor, self.dim, (n, self.repeats)).movedim(self.dim, 0)
        return torch.unflatten(tensor, self.dim, (self.repeats, n)).movedim(self.dim + 1, 0)


def layouts(shape: tuple[int, ...], dims: Iterable[int], n: int) -> list[Layout]:
    """What may be the layout of a tensor, the likeliest first; ``dims`` are those that may run over examples."""
    if n == 1:
        return [Layout(-1)]
    dims = list(dims)
    exact = [Layout(dim) for dim in dims if shape[dim] == n]
    multiple = [dim for dim in dims if shape[dim] % n == 0 and shape[dim] > n]
    return exact + [Layout(dim, shape[dim] // n, major) for dim in multiple for major in (True, False)]
