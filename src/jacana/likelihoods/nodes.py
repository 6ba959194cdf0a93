"""Nodes: expectations over Gaussian function values, as weighted sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.stats import qmc
from torch import Tensor

from jacana.errors import InvalidData, InvalidOption

__all__ = ["ROUNDING", "Nodes", "whole"]

ROUNDING = 64.0
"""How many eps of a covariance's trace may be rounding."""

_HERMITE, _SOBOL, _TRAPEZOIDAL = 64, 256, 1024
_MOST_HERMITE = 100  # numpy's nodes are tested so far
_BITS = 30  # of Sobol points
_REACH = 8.5  # the normal distribution has 2e-17 beyond
_ENOUGH = 4  # points a dimension, to make their covariance one
_NUMBERS = 2**22  # held at once: 32 MiB


@final
@dataclass(frozen=True, eq=False)
class Nodes:
    """z_i with weights w_i, Σ w_i g(z_i) ≈ E g(z) for z ~ N(0, I) in c dimensions.

        E g(f) ≈ Σ_i w_i g(m + R z_i),     f ~ N(m, V),     R Rᵀ = V, singular or not

    In one dimension :meth:`standard` is Gauss and Hermite's rule, exact for polynomials; :meth:`trapezoidal` is for
    bounded functions, however steep. In more they are scrambled Sobol points of equal weight, mirrored, so that
    whatever is odd integrates to zero exactly, and turned so that their covariance is the identity. The first of them,
    which are spread best, go with the largest eigenvalue of V.

    Cost: q values of g for each example, and an eigendecomposition of each c × c covariance.

    Attributes:
        nodes: z, (q, c).
        weights: w, (q,); they sum to one.

    References:
        Golub and Welsch 1969, Calculation of Gauss quadrature rules. Owen 1998, Scrambling Sobol' and
        Niederreiter-Xing points. Trefethen and Weideman 2014, The exponentially convergent trapezoidal rule.

    Example:
        >>> import torch
        >>> from jacana.likelihoods import Nodes
        >>> mean, covariance = torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double()
        >>> Nodes.standard(1).expect(torch.exp, mean, covariance)  # exp(1/2)
        tensor([[1.6487]], dtype=torch.float64)
        >>> Nodes.standard(3).nodes.shape
        torch.Size([256, 3])
    """

    nodes: Float64[Tensor, "q c"]
    weights: Float64[Tensor, " q"]

    @classmethod
    def standard(cls, c: int, size: int | None = None, seed: int = 0) -> Nodes:
        """Gauss and Hermite's nodes for one dimension, Sobol points for more.

        Args:
            c: dimensions.
            size: q; by default 64 for one dimension, where 100 is the most, and 256 for more, where it is a power of 2.
            seed: of the scrambling.

        Raises:
            InvalidOption: dimensions, a size or a seed out of range.
        """
        c, seed = whole(c, "c", 1), whole(seed, "seed", 0)
        if c == 1:
            size = whole(_HERMITE if size is None else size, "size", 1)
            if size > _MOST_HERMITE:
                raise InvalidOption(
                    f"size: got {size}; expected at most {_MOST_HERMITE} for one dimension, or Nodes.trapezoidal(size)."
                )
            places, shares = np.polynomial.hermite_e.hermegauss(size)
            return cls(torch.from_numpy(places).unsqueeze(1), torch.from_numpy(shares / shares.sum()))
        size = whole(_SOBOL if size is None else size, "size", 2)
        if size & (size - 1):
            raise InvalidOption(f"size: got {size}; expected a power of two, e.g. {2 ** size.bit_length()}.")
        if c > qmc.Sobol.MAXDIM:
            raise InvalidOption(f"c: got {c}; Sobol points have at most {qmc.Sobol.MAXDIM} dimensions.")
        uniform = torch.from_numpy(qmc.Sobol(c, bits=_BITS, seed=seed).random(size // 2))
        half = torch.special.ndtri(uniform + 0.5**_BITS / 2.0)  # the middle of each cell, so never zero
        nodes = _whitened(torch.cat([half, -half]))
        return cls(nodes, torch.full((size,), 1.0 / size, dtype=torch.float64))

    @classmethod
    def trapezoidal(cls, size: int = _TRAPEZOIDAL) -> Nodes:
        """Equally spaced nodes in one dimension.

        With 1,024 of them the probability of a label, of which the logit has standard deviation s, is right to 1e-11
        up to s = 50, to 1e-6 up to 100, and to 4e-3 whatever s is. Gauss and Hermite's 64 are off by 5e-5 at s = 5, and
        by 0.02 at 20.

        Args:
            size: q.

        Raises:
            InvalidOption: a size below two.
        """
        nodes = torch.linspace(-_REACH, _REACH, whole(size, "size", 2), dtype=torch.float64)
        weights = (-0.5 * nodes.square()).exp()
        return cls(nodes.unsqueeze(1), weights / weights.sum())

    def at(self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "q m c"]:
        """F = m + R z of each example at every node.

        Raises:
            InvalidData: a covariance that is not finite, symmetric and positive semidefinite, up to rounding.
            InvalidOption: nodes of another dimension.
        """
        return mean + torch.einsum("mcd,qd->qmc", self._root(covariance), self.nodes.to(mean))

    def expect(
        self,
        function: Callable[[Float[Tensor, "k c"]], Float[Tensor, "k ..."]],
        mean: Float[Tensor, "m c"],
        covariance: Float[Tensor, "m c c"],
        chunk: int | None = None,
    ) -> Float[Tensor, "m ..."]:
        """E g(f) of each example.

        Args:
            function: g, row by row: it takes the values of all examples at some nodes, node after node.
            mean: of f.
            covariance: of f.
            chunk: nodes at once; by default as many as hold four million numbers.

        Raises:
            InvalidData: as :meth:`at`.
            InvalidOption: as there.
        """
        m, c = mean.shape
        chunk = max(1, _NUMBERS // max(1, m * c)) if chunk is None else whole(chunk, "chunk", 1)
        root, nodes, weights = self._root(covariance), self.nodes.to(mean), self.weights.to(mean)
        total: Tensor | None = None
        for some, shares in zip(torch.split(nodes, chunk), torch.split(weights, chunk), strict=True):
            f = mean + torch.einsum("mcd,qd->qmc", root, some)
            values = function(f.flatten(0, 1))
            part = torch.tensordot(shares.to(values), values.reshape(len(some), m, *values.shape[1:]), 1)
            total = part if total is None else total + part
        if total is None:
            raise InvalidOption("nodes: got none; expected one or more.")
        return total

    def _root(self, covariance: Float[Tensor, "m c c"]) -> Float[Tensor, "m c c"]:
        """R with R Rᵀ = V, its columns from the largest to the smallest."""
        c = covariance.shape[1]
        if self.nodes.shape[1] != c:
            raise InvalidOption(f"nodes: got nodes in {self.nodes.shape[1]} dimensions; expected {c}, as f has.")
        if not bool(torch.isfinite(covariance).all()):
            raise InvalidData("covariance: got NaN or infinite entries; expected finite ones.")
        rounding = ROUNDING * torch.finfo(covariance.dtype).eps * covariance.diagonal(dim1=1, dim2=2).sum(1)
        skew = (covariance - covariance.mT).abs().amax((1, 2))
        if bool((skew > rounding.abs()).any()):
            raise InvalidData(f"covariance: got one that is not symmetric, by {float(skew.max()):.3g}.")
        values, vectors = (covariance[:, 0], torch.ones_like(covariance)) if c == 1 else torch.linalg.eigh(covariance)
        if bool((values < -rounding.unsqueeze(1)).any()):
            worst = int((values[:, 0] + rounding).argmin())
            raise InvalidData(
                f"covariance: got an eigenvalue of {float(values[worst, 0]):.3g} for example {worst}, which is no "
                "rounding; expected a positive semidefinite covariance for each example."
            )
        return (vectors * values.clamp(min=0.0).sqrt().unsqueeze(1)).flip(2)


def whole(value: object, name: str, least: int) -> int:
    """A whole number that is large enough.

    Raises:
        InvalidOption: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{name}: got {value!r}; expected a whole number, {least} or larger.")
    return value


def _whitened(nodes: Float64[Tensor, "q c"]) -> Float64[Tensor, "q c"]:
    """Mirrored nodes with variance one in each direction; where they are few, in each coordinate."""
    q, c = nodes.shape
    if q < _ENOUGH * c:
        return nodes / nodes.square().mean(0).sqrt()
    values, vectors = torch.linalg.eigh(nodes.T @ nodes / q)
    return nodes @ (vectors / values.sqrt()) @ vectors.T
