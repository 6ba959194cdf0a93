"""Weight space: factorise F + S⁻¹, p by p."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from jacana.errors import InvalidOption
from jacana.linearization import push, require
from jacana.networks import Examples
from jacana.operators import standard_normal
from jacana.posteriors.iterated_weights import IteratedWeightsState
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.posteriors.triangle import Triangle
from jacana.solvers import Iterative

__all__ = ["WeightSpace"]


@final
@dataclass(frozen=True)
class WeightSpace(Method):
    """Exact inference on the side of the parameters.

        δ̂ = (F + S⁻¹)⁻¹ Jᵀ Σ⁻¹ (y − m),     cov f* = J* (F + S⁻¹)⁻¹ J*ᵀ,     F = Jᵀ Σ⁻¹ J

    Choose it where there are fewer parameters p than observations n·c, e.g. for a head. With δ = S^½ w, the triangle R
    of I + S^½ F S^½ = Rᵀ R is found by orthogonal steps on the rows Σ^-½ J S^½, block by block, so that F, whose
    condition number is the square of theirs, is never formed. Costs 2 n·c p² operations and more, p² float64 numbers.
    A mean is one Jacobian-vector product; variances are sums of squares, never negative.

    Args:
        solver: None factorises; :class:`CG` needs products with F alone, one Fisher product a step and column and
            vectors of p numbers, whatever n is: for observations n·c that outnumber the parameters by far, where p² do
            not fit. The data may be a DataLoader, and variances are never below the exact ones.

    Raises:
        InvalidOption: another solver; at conditioning, where some noise is zero.

    References:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, section 2.1.2.
        Golub and Van Loan 2013, Matrix Computations, section 5.3.3, for least squares by orthogonal triangularisation.
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

    solver: Iterative | None = None

    def __post_init__(self) -> None:
        if self.solver is not None and not isinstance(self.solver, Iterative):
            raise InvalidOption(
                f"solver: got {self.solver!r}; expected one that iterates, e.g. jacana.CG(), or None to factorise."
            )

    @property
    def streams(self) -> bool:
        return self.solver is not None

    def condition(self, observations: Observations, *, progress: bool) -> State:
        if self.solver is not None:
            return IteratedWeightsState(observations, self.solver, progress=progress)
        lin = observations.model.lin
        p = lin.n_parameters
        require(6 * 8 * p * p, lin.device, f"factorising the precision of {p:,} parameters",
                "use FunctionSpace(), or linearize in fewer parameters (parameters=).")  # fmt: skip
        return _WeightSpaceState(observations, Triangle.prior(p, lin.device).after(_rows(observations, progress)))


def _rows(observations: Observations, progress: bool) -> Iterator[Float64[Tensor, "k q"]]:
    """Σ^-½ [J S^½, y − m], block by block."""
    if bool((observations.noise == 0).any()):
        raise InvalidOption("noise_std: got zero, and weight space divides by it; use FunctionSpace() to interpolate.")
    lin, x = observations.model.lin, observations.examples
    std = observations.model.prior.vector(lin.device)
    sigma = observations.noise.sqrt().reshape(-1, 1)
    residual = observations.residual.reshape(-1, 1)
    start = 0
    for low, high in tqdm(lin.bounds(x), desc="weights", unit="block", delay=1.0, leave=False, disable=not progress):
        rows = lin.features(x[low:high]).dense().mul_(std)
        stop = start + len(rows)
        yield torch.cat([rows, residual[start:stop]], dim=1) / sigma[start:stop]
        start = stop


class _WeightSpaceState(State):
    """Rᵀ R = I + S^½ F S^½ and R w = z, so that δ̂ = S^½ w."""

    def __init__(self, observations: Observations, triangle: Triangle) -> None:
        super().__init__(observations)
        self._triangle = triangle
        self._std = observations.model.prior.vector(triangle.matrix.device)
        self._w = triangle.mean

    @property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._std * self._w.squeeze(1)

    @property
    def log_evidence(self) -> float:
        noise = self.observations.noise
        log_determinant = self._triangle.log_determinant + float(noise.log().sum())
        return -0.5 * (self._triangle.misfit + log_determinant + noise.numel() * math.log(2.0 * math.pi))

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        roots = [root.square().sum(0) for root in self._roots(x)]
        return torch.cat(roots).view(len(x), -1)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        root = torch.cat(list(self._roots(x)), dim=1)
        return root.T @ root

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        noise = standard_normal(len(self._w), n, generator=generator, device=self._w.device)
        return self._std.unsqueeze(1) * (self._w + self._triangle.spread(noise))

    @cached_property
    def precision(self) -> tuple[Float64[Tensor, "n c c"], Float64[Tensor, "n c"]]:
        observations = self.observations
        sigma = observations.noise.sqrt()
        c = sigma.shape[1]
        blocks, start = [], 0
        unit = torch.eye(c, dtype=torch.float64, device=sigma.device)
        for root in self._roots(observations.examples):
            per_example = root.T.reshape(-1, c, len(root))
            inverse = 1.0 / sigma[start : start + len(per_example)]
            start += len(per_example)
            scaled = per_example * inverse.unsqueeze(2)
            blocks.append(inverse.unsqueeze(2) * (unit - scaled @ scaled.mT) * inverse.unsqueeze(1))
        explained = push(observations.model.lin, observations.examples, self.weights.unsqueeze(1))
        unexplained = observations.residual - explained.view_as(observations.residual)
        return torch.cat(blocks), unexplained / observations.noise

    def extended(self, more: Observations) -> State:
        triangle = self._triangle.after(_rows(more, progress=False))
        return _WeightSpaceState(self.observations.followed_by(more), triangle)

    def _roots(self, x: Examples) -> Iterator[Float64[Tensor, "p k"]]:
        """R⁻ᵀ S^½ J*ᵀ, block by block; its Gram is the posterior covariance."""
        for block in self.observations.model.lin.blocks(x):
            yield self._triangle.half_solve((block.dense() * self._std).T)
