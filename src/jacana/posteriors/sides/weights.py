"""The side of the parameters: I + S^½ F S^½, p by p."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.linearization import fits, pull, push, require
from jacana.networks import Examples, layer_of
from jacana.operators import Estimate, standard_normal
from jacana.posteriors.observations import Observations
from jacana.posteriors.sides.side import Precision, Side
from jacana.posteriors.triangle import Triangle

__all__ = ["WeightSide"]


@final
class WeightSide(Side):
    """δ = S^½ u: u holds a number for each parameter.

    Args:
        observations: n examples; its prior has the scales.
        layers: whether each layer is a group of its own.
        jacobian: J, where it is there already and fits.
    """

    def __init__(
        self, observations: Observations, *, layers: bool = False, jacobian: Float64[Tensor, "nc p"] | None = None
    ) -> None:
        super().__init__(observations)
        lin = observations.model.lin
        p = lin.n_parameters
        require(6 * 8 * p * p, lin.device, f"factorising the precision of {p:,} parameters",
                "use Laplace(FunctionSpace()), or linearize in fewer parameters (parameters=).")  # fmt: skip
        self.std = observations.model.prior.vector(lin.device)
        names = list(lin.layers)
        groups = [names.index(layer_of(name)) if layers else 0 for name in lin.names]
        self.group = torch.tensor(groups, device=lin.device).repeat_interleave(
            torch.tensor(lin.network.sizes, device=lin.device)
        )
        self._layers, self.n_groups = layers, max(groups) + 1
        rows = observations.n * observations.c
        if jacobian is None and fits(4 * 8 * rows * p, lin.device):
            jacobian = torch.cat([block.dense() for block in lin.blocks(observations.examples)])
        self._jacobian = jacobian

    def rescaled(self, observations: Observations) -> WeightSide:
        """The same with another prior, which ``observations`` has."""
        return WeightSide(observations, layers=self._layers, jacobian=self._jacobian)

    def narrowed(self, observations: Observations, factor: float) -> WeightSide:  # noqa: ARG002 - it is in the prior
        return self.rescaled(observations)

    @property
    def sizes(self) -> Float64[Tensor, " l"]:
        """The root of the mean variance of f that each group gives."""
        squares = torch.stack([rows.square().sum(0) for rows in self.rows()]).sum(0)
        return (self.grouped(squares) / (self.observations.n * self.observations.c)).sqrt()

    def zero(self) -> Float64[Tensor, " p"]:
        return torch.zeros_like(self.std)

    def values(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, "n c"]:
        weights = (self.std * u).unsqueeze(1)
        if self._jacobian is None:
            found = push(self.observations.model.lin, self.observations.examples, weights)
        else:
            found = self._jacobian @ weights
        return found.view(self.observations.n, self.observations.c)

    def pull(self, gradient: Float64[Tensor, "n c"]) -> Float64[Tensor, " p"]:
        cotangents = gradient.reshape(-1, 1)
        if self._jacobian is None:
            found = pull(self.observations.model.lin, self.observations.examples, cotangents)
        else:
            found = self._jacobian.T @ cotangents
        return self.std * found.squeeze(1)

    def weights(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        return self.std * u

    def coordinates(self, weights: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        """The u of these weights."""
        return torch.where(self.std > 0.0, weights / self.std, 0.0)

    def shares(self, u: Float64[Tensor, " p"], v: Float64[Tensor, " p"]) -> Float64[Tensor, " l"]:
        return self.grouped(u * v)

    def grouped(self, values: Float64[Tensor, " p"]) -> Float64[Tensor, " l"]:
        """The sums over each group."""
        return values.new_zeros(self.n_groups).index_add_(0, self.group, values)

    def at(self, root: Float64[Tensor, "n c r"]) -> Precision:
        return _WeightPrecision(self, root)

    def rows(self) -> Iterator[Float64[Tensor, "k p"]]:
        """J S^½ in blocks of whole examples."""
        lin, examples = self.observations.model.lin, self.observations.examples
        start, c = 0, self.observations.c
        for low, high in lin.bounds(examples):
            stop = start + (high - low) * c
            block = lin.features(examples[low:high]).dense() if self._jacobian is None else self._jacobian[start:stop]
            yield block * self.std
            start = stop


class _WeightPrecision(Precision):
    """TᵀT = I + S^½ F S^½, by orthogonal steps on the rows Rᵀ J S^½."""

    def __init__(self, side: WeightSide, root: Float64[Tensor, "n c r"]) -> None:
        self._side, self._root = side, root
        p = len(side.std)
        self._triangle = Triangle.prior(p, side.std.device).after(self._seen())

    def _seen(self) -> Iterator[Float64[Tensor, "k q"]]:
        start, c = 0, self._root.shape[1]
        for rows in self._side.rows():
            stop = start + len(rows) // c
            mixed = self._root[start:stop].mT @ rows.view(stop - start, c, -1)
            yield torch.nn.functional.pad(mixed.flatten(0, 1), (0, 1))  # a Triangle also takes what is to be explained
            start = stop

    def solve(self, u: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        return self._triangle.spread(self._triangle.half_solve(u.unsqueeze(1))).squeeze(1)

    @property
    def log_determinant(self) -> Estimate:
        return Estimate(self._triangle.log_determinant, 0.0, 0)

    @property
    def freedom(self) -> Float64[Tensor, " l"]:
        inverse = self._triangle.spread(torch.eye(len(self._side.std), dtype=torch.float64, device=self._root.device))
        return self._side.grouped(1.0 - inverse.square().sum(1))

    def fitted(self) -> Float64[Tensor, "n c c"]:
        return torch.cat([self._gram(rows) for rows in self._side.rows()])

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return torch.cat([root.square().sum(0) for root in self._roots(x)]).view(len(x), -1)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        lin = self._side.observations.model.lin
        return torch.cat([self._gram(block.dense() * self._side.std) for block in lin.blocks(x)])

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        root = torch.cat(list(self._roots(x)), dim=1)
        return root.T @ root

    def deviations(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        std = self._side.std
        noise = standard_normal(len(std), n, generator=generator, device=std.device)
        return std.unsqueeze(1) * self._triangle.spread(noise)

    def _gram(self, rows: Float64[Tensor, "mc p"]) -> Float64[Tensor, "m c c"]:
        c = self._root.shape[1]
        half = self._triangle.half_solve(rows.T).T.reshape(-1, c, len(self._side.std))
        return half @ half.mT

    def _roots(self, x: Examples) -> Iterator[Float64[Tensor, "p k"]]:
        for block in self._side.observations.model.lin.blocks(x):
            yield self._triangle.half_solve((block.dense() * self._side.std).T)
