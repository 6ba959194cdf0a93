"""Route: one exact way to compute Jacobian-vector products of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from jacana.networks import Examples, Network, differentiable

__all__ = ["Route"]


class Route(ABC):
    """J V at θ0 for one mini-batch. Transposed products need no route: reverse mode always works."""

    name: ClassVar[str]

    @abstractmethod
    def jvp(self, network: Network, examples: Examples, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n c k"]:
        """J(x) V for every column of ``vectors``."""

    @contextmanager
    def context(self) -> Iterator[None]:
        """The switches that this route needs."""
        with differentiable():
            yield
