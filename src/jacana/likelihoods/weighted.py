"""Weighted: another likelihood, with a weight for each example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods.likelihood import Likelihood
from jacana.likelihoods.scaled import Scaled

__all__ = ["Weighted"]

_SHOWN = 8


@final
@dataclass(frozen=True, eq=False)
class Weighted(Scaled):
    """wᵢ log p(yᵢ | fᵢ), with a weight for each example: of weight two it counts twice, of weight zero not at all.

        ∇ log p ← w ∇ log p,     H ← w H

    The weights belong to the data that are learned from: samples, moments and probabilities of new observations are
    those of the likelihood itself. An empirical Fisher matrix is of second degree in the gradients, so in the weights.

    Args:
        likelihood: p(y | f).
        weights: (n,), finite, not negative and not all zero.

    Raises:
        InvalidOption: weights that are not; no likelihood.

    Example:
        >>> import jacana, torch
        >>> likelihood = jacana.Weighted(jacana.Categorical(), [1.0, 2.0])
        >>> f = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> likelihood.log_prob(f, torch.tensor([0, 1]))
        tensor([-0.6931, -0.2539])
    """

    likelihood: Likelihood
    weights: Float64[Tensor, " n"]

    def __init__(self, likelihood: Likelihood, weights: Any) -> None:
        if not isinstance(likelihood, Likelihood):
            raise InvalidOption(
                f"likelihood: got {type(likelihood).__name__}; expected one, e.g. jacana.Categorical()."
            )
        try:
            given = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else np.asarray(weights)
            if np.iscomplexobj(given):
                raise TypeError("complex numbers")
            values = torch.as_tensor(np.array(given, dtype=np.float64))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidOption(f"weights: got {weights!r} ({error}); pass (n,) numbers, one an example.") from error
        if values.ndim != 1:
            raise InvalidOption(f"weights: got shape {tuple(values.shape)}; expected (n,), one an example.")
        if not bool(torch.isfinite(values).all()) or bool((values < 0.0).any()) or not bool((values > 0.0).any()):
            raise InvalidOption("weights: expected finite numbers, zero or larger, and one of them positive.")
        object.__setattr__(self, "likelihood", likelihood)
        object.__setattr__(self, "weights", values)

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Shaped[Tensor, "n ..."]
    ) -> Float[Tensor, " n"]:
        return self.scale(self.likelihood.log_expected(mean, covariance, y))

    def check(self, n: int, c: int) -> None:
        if len(self.weights) != n:
            raise InvalidOption(f"weights: got {len(self.weights)} for {n} examples; expected one for each.")
        self.likelihood.check(n, c)

    def part(self, start: int, stop: int) -> Weighted:
        return self._of(self.likelihood.part(start, stop), self.weights[start:stop])

    def at(self, index: Int64[Tensor, " m"]) -> Weighted:
        return self._of(self.likelihood.at(index), self.weights[index.cpu()])

    def _of(self, likelihood: Likelihood, weights: Float64[Tensor, " m"]) -> Weighted:
        """Of some examples, which may all weigh nothing."""
        some = object.__new__(Weighted)
        object.__setattr__(some, "likelihood", likelihood)
        object.__setattr__(some, "weights", weights)
        return some

    def scale(self, values: Float[Tensor, "n ..."], *, root: bool = False) -> Float[Tensor, "n ..."]:
        weights = self.weights.sqrt() if root else self.weights
        if len(weights) != len(values):
            raise InvalidOption(f"weights: got {len(weights)} for {len(values)} examples; expected one for each.")
        weights = weights.to(values).view(-1, *(1 for _ in values.shape[1:]))
        return torch.where(weights > 0.0, weights * values, 0.0)  # what does not count may be infinite

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Weighted)
            and self.likelihood == other.likelihood
            and torch.equal(self.weights, other.weights)
        )

    def __hash__(self) -> int:
        return hash((self.likelihood, tuple(self.weights.tolist())))

    def __repr__(self) -> str:
        few = len(self.weights) <= _SHOWN
        shown = [round(v, 6) for v in self.weights.tolist()] if few else tuple(self.weights.shape)
        return f"Weighted({self.likelihood!r}, weights={shown})"
