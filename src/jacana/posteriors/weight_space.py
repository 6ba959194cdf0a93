"""Weight space: factorise F + S⁻¹, p by p."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import InvalidOption, NotPositiveDefinite
from jacana.linearization import require
from jacana.networks import Examples
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.prediction import standard_normal
from jacana.solvers import Cholesky, Factor

__all__ = ["WeightSpace"]


@final
@dataclass(frozen=True)
class WeightSpace(Method):
    """Exact inference on the side of the parameters.

        δ̂ = (F + S⁻¹)⁻¹ Jᵀ Σ⁻¹ (y − m),     cov f* = J* (F + S⁻¹)⁻¹ J*ᵀ,     F = Jᵀ Σ⁻¹ J

    Choose it where there are fewer parameters p than observations n·c, e.g. for a head. It factorises
    I + S^½ F S^½, whose smallest eigenvalue is one: n·c p² operations, p³/3 for the factorisation, p² float64 numbers;
    the data are read in blocks. A mean is one Jacobian-vector product; variances are sums of squares, never negative.

    Args:
        solver: the factorisation.

    Raises:
        InvalidOption: at conditioning, where some noise is zero.
        NotPositiveDefinite: at conditioning, where the noise is so small that float64 cannot hold F.

    References:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, section 2.1.2.
        Maddox et al. 2021 (arXiv 2103.01439), section 3.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> head = jacana.TangentGP(jacana.linearize(net, parameters="2"))
        >>> x = torch.linspace(-1, 1, 50).unsqueeze(1)
        >>> post = head.condition(x, x.sin(), noise_std=0.05, method=jacana.WeightSpace())
        >>> post.weights.shape
        torch.Size([21])
    """

    solver: Cholesky = field(default_factory=Cholesky)

    def condition(self, observations: Observations, *, progress: bool) -> State:
        lin = observations.model.lin
        p = lin.n_parameters
        require(2 * 8 * p * p, lin.device, f"factorising the precision of {p:,} parameters",
                "use FunctionSpace(), or linearize in fewer parameters (parameters=).")  # fmt: skip
        empty = torch.zeros(p, p, dtype=torch.float64, device=lin.device)
        right = torch.zeros(p, 1, dtype=torch.float64, device=lin.device)
        fisher, right = _add(empty, right, observations, progress)
        return _WeightSpaceState(observations, self.solver, fisher, right)


def _add(fisher: Tensor, right: Tensor, observations: Observations, progress: bool) -> tuple[Tensor, Tensor]:
    """Add S^½ Jᵀ Σ⁻¹ J S^½ and S^½ Jᵀ Σ⁻¹ (y − m) of ``observations``, in place."""
    if bool((observations.noise == 0).any()):
        raise InvalidOption("noise_std: got zero, and weight space divides by it; use FunctionSpace() to interpolate.")
    std = observations.model.prior.vector(fisher.device)
    lin, start = observations.model.lin, 0
    sigma = observations.noise.sqrt().reshape(-1, 1)
    residual = observations.residual.reshape(-1, 1) / sigma
    bounds = lin.bounds(observations.x)
    for low, high in tqdm(bounds, desc="Fisher", unit="block", delay=1.0, leave=False, disable=not progress):
        rows = lin.features(observations.x[low:high]).dense().mul_(std)
        stop = start + len(rows)
        rows /= sigma[start:stop]
        fisher.addmm_(rows.T, rows)
        right.addmm_(rows.T, residual[start:stop])
        start = stop
    return fisher, right


class _WeightSpaceState(State):
    """L Lᵀ = I + S^½ F S^½ and w = (L Lᵀ)⁻¹ S^½ Jᵀ Σ⁻¹ (y − m), so that δ̂ = S^½ w."""

    def __init__(self, observations: Observations, solver: Cholesky, fisher: Tensor, right: Tensor) -> None:
        super().__init__(observations)
        self._solver, self._fisher, self._right = solver, fisher, right
        self._std = observations.model.prior.vector(fisher.device)
        precision = fisher.clone()
        precision.diagonal().add_(1.0)
        try:
            self._factor: Factor = solver.factor(precision)
        except NotPositiveDefinite as error:
            raise NotPositiveDefinite(
                f"noise_std: {error} The noise is too small beside the prior for float64; use FunctionSpace(), a "
                "larger noise_std, or a smaller prior_std."
            ) from error
        self._w = self._factor.solve(right)

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._std * self._w.squeeze(1)

    @property
    def log_evidence(self) -> float:
        noise = self.observations.noise
        misfit = float((self._unexplained.square() / noise).sum()) + float(self._w.square().sum())
        n = noise.numel()
        return -0.5 * (misfit + self._factor.log_determinant + float(noise.log().sum()) + n * math.log(2.0 * math.pi))

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        roots = [root.square().sum(0) for root in self._roots(x)]
        return torch.cat(roots).view(len(x), -1)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        root = torch.cat(list(self._roots(x)), dim=1)
        return root.T @ root

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        noise = standard_normal(len(self._w), n, generator=generator, device=self._w.device)
        spread = torch.linalg.solve_triangular(self._factor.lower.T, noise, upper=True)
        return self._std.unsqueeze(1) * (self._w + spread)

    @cached_property
    def precision(self) -> tuple[Float64[Tensor, "n c c"], Float64[Tensor, "n c"]]:
        sigma = self.observations.noise.sqrt()
        c = sigma.shape[1]
        blocks, start = [], 0
        unit = torch.eye(c, dtype=torch.float64, device=sigma.device)
        for root in self._roots(self.observations.x):
            per_example = root.T.reshape(-1, c, len(root))
            inverse = 1.0 / sigma[start : start + len(per_example)]
            start += len(per_example)
            scaled = per_example * inverse.unsqueeze(2)
            blocks.append(inverse.unsqueeze(2) * (unit - scaled @ scaled.mT) * inverse.unsqueeze(1))
        return torch.cat(blocks), self._unexplained / self.observations.noise

    def extended(self, more: Observations) -> State:
        fisher, right = _add(self._fisher.clone(), self._right.clone(), more, progress=False)
        return _WeightSpaceState(self.observations.followed_by(more), self._solver, fisher, right)

    @cached_property
    def _unexplained(self) -> Float64[Tensor, "n c"]:
        """Y − m − J δ̂, from the same numbers as F."""
        lin = self.observations.model.lin
        explained = [
            block.push(self.weights.unsqueeze(1), lin.network.sizes) for block in lin.blocks(self.observations.x)
        ]
        return self.observations.residual - torch.cat(explained).view_as(self.observations.residual)

    def _roots(self, x: Examples) -> Iterator[Float64[Tensor, "p k"]]:
        """L⁻¹ S^½ J*ᵀ, block by block; its Gram is the posterior covariance."""
        for block in self.observations.model.lin.blocks(x):
            yield self._factor.half_solve((block.dense() * self._std).T)
