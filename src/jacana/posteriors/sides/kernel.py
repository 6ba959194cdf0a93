"""The side of the data: I + H^½ K H^½, n·r by n·r."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from jacana.errors import NotPositiveDefinite
from jacana.linearization import dense_kernel, layer_kernels, pull, push, require
from jacana.networks import Examples
from jacana.operators import Estimate, standard_normal
from jacana.posteriors.conditioned import Conditioned, Explained
from jacana.posteriors.joseph import EPS, TRUSTED
from jacana.posteriors.observations import Observations
from jacana.posteriors.sides.compressed import Compressed
from jacana.posteriors.sides.side import Precision, Side, Spread
from jacana.solvers import Cholesky, Factor

__all__ = ["KernelSide"]


@final
class KernelSide(Side):
    """δ = S Jᵀ u with K = Σ_l s_l² K_l: u holds a number for each value of f.

    Args:
        observations: n examples; its prior has the scales.
        kernels: the shares K_l without them, each with a scale of its own.
        scales: s_l.
    """

    def __init__(self, observations: Observations, kernels: Sequence[Tensor], scales: Sequence[float]) -> None:
        super().__init__(observations)
        self._kernels, self._scales = kernels, list(scales)
        kernel = kernels[0] if self._scales[0] == 1.0 else self._scales[0] ** 2 * kernels[0]
        for share, scale in zip(kernels[1:], self._scales[1:], strict=True):  # one by one: they may be made anew
            kernel = torch.add(kernel, share, alpha=scale**2)
        self.kernel: Float64[Tensor, "nc nc"] = kernel

    @classmethod
    def of(cls, observations: Observations, *, layers: bool = False, progress: bool = False) -> KernelSide:
        """Compute the kernel, with a share a layer or as one.

        Raises:
            InsufficientMemory: it would not fit.
        """
        model, rows = observations.model, observations.n * observations.c
        require(5 * 8 * rows**2, model.lin.device, f"the curvature of {rows:,} function values",
                "use Laplace(WeightSpace()), Laplace(Pathwise()), or fewer examples.")  # fmt: skip
        if layers:
            kernels = layer_kernels(model.lin, observations.examples, model.prior, progress=progress)
        else:
            kernels = [dense_kernel(model.lin, observations.examples, None, model.prior, progress=progress)]
        return cls(observations, kernels, [1.0] * len(kernels))

    def rescaled(self, observations: Observations, scales: Sequence[float]) -> KernelSide:
        """The same shares with other scales, which the prior of ``observations`` has."""
        return KernelSide(observations, self._kernels, scales)

    def some(self, observations: Observations, index: Int64[Tensor, " m"]) -> KernelSide:
        """Of the examples with these numbers, which ``observations`` are, from the same kernel."""
        c = self.observations.c
        rows = (c * index.unsqueeze(1) + torch.arange(c)).flatten().to(self.kernel.device)
        return KernelSide(observations, [kernel[rows][:, rows] for kernel in self._kernels], self._scales)

    def narrowed(self, observations: Observations, factor: float) -> KernelSide:
        return self.rescaled(observations, [factor * scale for scale in self._scales])

    @property
    def sizes(self) -> Float64[Tensor, " l"]:
        """The root of the mean variance of f that each share gives."""
        found = [s * k.diagonal().mean().sqrt() for s, k in zip(self._scales, self._kernels, strict=True)]
        return torch.stack(found)

    def rounding(self, u: Float64[Tensor, " nc"]) -> float:
        return EPS * self._norm * float(torch.dot(u, u))

    @cached_property
    def _norm(self) -> float:
        return float(torch.linalg.vector_norm(self.kernel))

    def zero(self) -> Float64[Tensor, " nc"]:
        return self.kernel.new_zeros(len(self.kernel))

    def values(self, u: Float64[Tensor, " nc"]) -> Float64[Tensor, "n c"]:
        return (self.kernel @ u).view(self.observations.n, self.observations.c)

    def pull(self, gradient: Float64[Tensor, "n c"]) -> Float64[Tensor, " nc"]:
        return gradient.reshape(-1)

    def weights(self, u: Float64[Tensor, " nc"]) -> Float64[Tensor, " p"]:
        lin, prior = self.observations.model.lin, self.observations.model.prior
        pulled = pull(lin, self.observations.examples, u.unsqueeze(1)).squeeze(1)
        return prior.vector(lin.device).square() * pulled

    def shares(self, u: Float64[Tensor, " nc"], v: Float64[Tensor, " nc"]) -> Float64[Tensor, " l"]:
        if len(self._scales) == 1:
            return torch.dot(u, self.kernel @ v).unsqueeze(0)
        found = [s**2 * torch.dot(u, kernel @ v) for s, kernel in zip(self._scales, self._kernels, strict=True)]
        return torch.stack(found)

    def inner(self, u: Float64[Tensor, " nc"], v: Float64[Tensor, " nc"]) -> float:
        return float(torch.dot(u, self.kernel @ v))

    def at(self, root: Float64[Tensor, "n c r"]) -> Precision:
        return _KernelPrecision(self, root)

    def traces(self, matrix: Float64[Tensor, "nc nc"]) -> Float64[Tensor, " l"]:
        """Σ s_l² tr(M K_l) for a symmetric M."""
        if len(self._scales) == 1:
            return (matrix * self.kernel).sum().unsqueeze(0)
        found = [s**2 * (matrix * kernel).sum() for s, kernel in zip(self._scales, self._kernels, strict=True)]
        return torch.stack(found)


class _KernelPrecision(Precision):
    """B = I + Rᵀ K R.

    References:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, equations 3.26, 3.27 and 3.30, here with
        the curvature of all outputs of an example, not one by one.
    """

    def __init__(self, side: KernelSide, root: Float64[Tensor, "n c r"]) -> None:
        self._side, self._root = side, root
        try:
            self._factor: Factor = Cholesky().factor(self._system())
        except NotPositiveDefinite as error:
            raise NotPositiveDefinite(
                f"prior_std: {error} So wide a prior, next to so many examples, is lost in rounding on the side of the "
                "data; take a smaller prior_std, or the side of the parameters: Laplace(WeightSpace())."
            ) from error

    def _system(self) -> Float64[Tensor, "nr nr"]:
        n, c, r = self._root.shape
        half = (self._root.mT @ self._side.kernel.view(n, c, n * c)).view(n * r, n, c)
        system = torch.einsum("amc,mcr->amr", half, self._root).reshape(n * r, n * r)
        system.diagonal().add_(1.0)
        return system

    def within(self, rtol: float) -> Spread:
        return Compressed(self, self._side.observations, self._root, self._system, rtol) if rtol > 0.0 else self

    def solve(self, u: Float64[Tensor, " nc"]) -> Float64[Tensor, " nc"]:
        seen = self._seen((self._side.kernel @ u).unsqueeze(1))
        return u - self._spread(self._factor.solve(seen)).squeeze(1)

    @property
    def log_determinant(self) -> Estimate:
        return Estimate(self._factor.log_determinant, 0.0, 0)

    @cached_property
    def freedom(self) -> Float64[Tensor, " l"]:
        inverse = self._spread(self._factor.inverse())
        return self._side.traces(self._spread(inverse.T.contiguous()))

    def fitted(self) -> Float64[Tensor, "n c c"]:
        n, c, _ = self._root.shape
        kernel = self._side.kernel
        half = self._factor.half_solve(self._seen(kernel)).view(-1, n, c).permute(1, 2, 0)
        prior = kernel.view(n, c, n, c).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        covariance = prior - half @ half.mT
        variances, doubt = (blocks.diagonal(dim1=1, dim2=2) for blocks in (covariance, EPS * prior))
        for i in (variances < TRUSTED * doubt).any(1).nonzero().flatten().tolist():  # Joseph's form, in functions
            rows = slice(i * c, (i + 1) * c)
            spread = self._factor.solve(self._seen(kernel[:, rows]))
            gap = -self._spread(spread)
            gap[rows].diagonal().add_(1.0)
            covariance[i] = gap.T @ (kernel @ gap) + spread.T @ spread
        return 0.5 * (covariance + covariance.mT)

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        return self._conditioned.variance(x)

    def blocks(self, x: Examples) -> Float64[Tensor, "m c c"]:
        return self._conditioned.blocks(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        return self._conditioned.covariance(x)

    def deviations(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        """Matheron's rule: a prior sample, less what the curvatures see of it and of their own noise."""
        model = self._side.observations.model
        lin, std = model.lin, model.prior.vector(model.lin.device).unsqueeze(1)
        prior = std * standard_normal(lin.n_parameters, n, generator=generator, device=lin.device)
        seen = self._seen(push(lin, self._side.observations.examples, prior))
        noise = standard_normal(*seen.shape, generator=generator, device=lin.device)
        return prior - std.square() * self._pulled(self._spread(self._factor.solve(seen + noise)))

    @property
    def _conditioned(self) -> Conditioned:
        observations = self._side.observations
        return Conditioned(observations.model, observations.examples, self._explained)

    def _explained(self, cross: Float64[Tensor, "nc mc"]) -> Explained:
        """C = R B⁻¹ Rᵀ K*, of which Rᵀ K* and B⁻¹ Rᵀ K* are what A = B would have."""
        half = self._factor.half_solve(self._seen(cross))
        spread = self._factor.complete(half)
        return Explained(half, self._spread(spread), spread, self._factor.norm * spread.square().sum(0))

    def _seen(self, values: Float64[Tensor, "nc k"]) -> Float64[Tensor, "nr k"]:
        """Rᵀ V."""
        n, c, r = self._root.shape
        return (self._root.mT @ values.view(n, c, -1)).view(n * r, -1)

    def _spread(self, values: Float64[Tensor, "nr k"]) -> Float64[Tensor, "nc k"]:
        """R V."""
        n, c, r = self._root.shape
        return (self._root @ values.view(n, r, -1)).view(n * c, -1)

    def _pulled(self, values: Float64[Tensor, "nc k"]) -> Float64[Tensor, "p k"]:
        """Jᵀ V."""
        return pull(self._side.observations.model.lin, self._side.observations.examples, values)
