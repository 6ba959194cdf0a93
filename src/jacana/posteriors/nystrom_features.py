"""Nyström features: the posterior through some landmark examples, with what they leave out added to its variances."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, NotConverged
from jacana.linearization import Products, budget, require
from jacana.networks import Examples
from jacana.operators import norm_bound, standard_normal
from jacana.posteriors.landmarks import Landmarks, Projected
from jacana.posteriors.method import Method, State
from jacana.posteriors.observations import Observations
from jacana.posteriors.triangle import Triangle
from jacana.solvers.preconditioners.nystrom import valid_rank

__all__ = ["NystromFeatures", "Report"]

_RANK = 12.0
_SQUARES = 16
"""How many r by r matrices are held at once."""
_CERTAIN = 1e-4
"""A trace below this is bound enough of the norm: s = .01."""


@final
@dataclass(frozen=True)
class NystromFeatures(Method):
    """Inference in r features of m landmark examples, whose variances are never below the exact posterior's.

        φ(x) = L⁻¹ K(Z, x),     L Lᵀ = K(Z, Z),     Q = φᵀφ ≤ K,     A = I + Σ_i φ_i Σ_i⁻¹ φ_iᵀ     (r by r)
        δ̂ = S J_Zᵀ L⁻ᵀ A⁻¹ φ Σ⁻¹ (y − m)
        cov f* = (1 + s + s²) φ*ᵀ A⁻¹ φ* + (1 + s) (K** − Q**),     s² ≥ ‖Σ^-½ (K − Q) Σ^-½‖₂

    Choose it for data by the hundred thousand: they are passed over, from memory or from a DataLoader, and never needed
    again; a prediction costs what m training examples would. The landmarks are drawn uniformly. Where they leave much
    (``NotConverged`` says so where s² > 1) the variances grow; with all examples as landmarks it is exact.

    Why that is enough: let f = g + f̃, independent with covariances Q and K − Q. The mean is m* + Cᵀ(y − m), and its
    error (g* − Cᵀ(g + ε)) + (f̃* − Cᵀf̃). The first part has the covariance V = φ*ᵀA⁻¹φ*, the second at most
    (1 + s) (K − Q)** + (1 + 1/s) Cᵀ(K − Q)C, where Cᵀ(K − Q)C ≤ s² CᵀΣC ≤ s² V. And no linear predictor has a smaller
    error than the exact posterior's. s² is the trace, or a bound of the norm that fails with a probability of 1e-6.

    Its log-evidence is the variational lower bound of the exact one, log N(y − m; 0, Q + Σ) − ½ tr Σ⁻¹(K − Q).

    Cost: one kernel of r by n·c and 4 n·c r² operations, 10 products of 8 columns with K for s, 16 r² float64 numbers.

    Args:
        rank: r, rounded up to whole examples; by default 12 √(n·c), or what fits in a quarter of the free memory.
        seed: of the draw and of the probes for s.

    Raises:
        InvalidOption: no rank, no seed; at conditioning, where some noise is zero.
        InsufficientMemory: at conditioning, where that rank does not fit.

    References:
        Deng, Zhou, Zhu 2022, Accelerated linearized Laplace approximation for Bayesian deep learning
        (arXiv 2210.12642), section 4. Titsias 2009, Variational learning of inducing variables in sparse Gaussian
        processes, equation 9.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> gp, x = jacana.TangentGP(net), torch.linspace(-1, 1, 300).unsqueeze(1)
        >>> post = gp.condition(x, x.sin(), noise_std=0.1, method=jacana.NystromFeatures(rank=20))
        >>> exact, new = gp.condition(x, x.sin(), noise_std=0.1), torch.tensor([[0.5], [3.0]])
        >>> bool((post.predict(new).variance >= exact.predict(new).variance * (1 - 1e-6)).all())
        True
        >>> bool(post.log_evidence < exact.log_evidence + 1e-3)
        True
    """

    exact: ClassVar[bool] = False

    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        valid_rank(self.rank)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InvalidOption(f"seed: got {self.seed!r}; expected a whole number.")

    @property
    def streams(self) -> bool:
        return True

    def condition(self, observations: Observations, *, progress: bool) -> State:
        _refuse_zero_noise(observations)
        lin, n, c = observations.model.lin, observations.n, observations.c
        room = math.isqrt(budget(lin.device) // (8 * _SQUARES))
        rank = min(int(_RANK * math.sqrt(n * c)), room) if self.rank is None else self.rank
        count = min(n, max(1, -(-rank // c)))
        require(8 * _SQUARES * (count * c) ** 2, lin.device, f"inference in {count * c:,} features",
                "take a smaller rank, or fewer outputs (output=).")  # fmt: skip
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(n, generator=generator)[:count].sort().values
        landmarks = Landmarks(observations.model, Products(lin, observations.x).some(chosen), c)
        projected = Projected(Triangle.prior(landmarks.rank, lin.device), 0.0).after(
            observations, landmarks, progress=progress
        )
        return _NystromState(observations, landmarks, projected, generator, progress=progress)


@final
@dataclass(frozen=True)
class Report:
    """What the landmarks are worth.

    Attributes:
        rank: how many features.
        trace: tr Σ^-½ (K − Q) Σ^-½.
        unexplained: s², a bound of its norm.
    """

    rank: int
    trace: float
    unexplained: float


class _NystromState(State):
    """The posterior of the features' coefficients, and s."""

    def __init__(
        self,
        observations: Observations,
        landmarks: Landmarks,
        projected: Projected,
        generator: torch.Generator,
        *,
        progress: bool = False,
    ) -> None:
        super().__init__(observations)
        self._landmarks, self._projected, self._generator = landmarks, projected, generator
        self.report = Report(landmarks.rank, projected.trace, self._bound(progress))
        self._s = math.sqrt(self.report.unexplained)
        self._inner, self._outer = 1.0 + self._s + self._s**2, 1.0 + self._s
        if self._s > 1.0:
            warnings.warn(
                f"NystromFeatures: the landmarks leave up to {self.report.unexplained:.2g} times the noise variance "
                f"unexplained (1 is asked for), and variances are taken {self._inner:.2g} times to make up for that; "
                f"take a larger rank (now {landmarks.rank}).",
                NotConverged,
                stacklevel=4,
            )

    def _bound(self, progress: bool) -> float:
        """s², over all data."""
        trace = max(0.0, self._projected.trace) + self._projected.doubt
        if trace <= _CERTAIN:
            return trace
        model = self.observations.model
        products = Products(model.lin, self.observations.x)
        std = self.observations.noise.sqrt().reshape(-1, 1)
        at_once = max(1, budget(model.lin.device) // (6 * 8 * model.lin.n_parameters))

        def times(vectors: Float64[Tensor, "nc k"]) -> Float64[Tensor, "nc k"]:
            parts = [
                products.precise_times(self._landmarks.unexplained(products.precise_transposed_times(some / std)))
                for some in torch.split(vectors, at_once, dim=1)
            ]
            return torch.cat(parts, dim=1) / std

        source = torch.Generator()
        source.set_state(self._generator.get_state())
        return min(trace, norm_bound(times, len(std), device=std.device, generator=source, progress=progress))

    @cached_property
    def weights(self) -> Float64[Tensor, " p"]:
        return self._landmarks.weights_for(self._projected.triangle.mean).squeeze(1)

    @property
    def log_evidence(self) -> float:
        noise, triangle = self.observations.noise, self._projected.triangle
        log_determinant = triangle.log_determinant + float(noise.log().sum())
        fit = triangle.misfit + self._projected.trace
        return -0.5 * (fit + log_determinant + noise.numel() * math.log(2.0 * math.pi))

    def variance(self, x: Examples) -> Float64[Tensor, "m c"]:
        explained = [
            self._projected.triangle.half_solve(self._landmarks.features(x[start:stop])).square().sum(0)
            for start, stop in self.observations.model.lin.bounds(x)
        ]
        known = torch.cat(explained).view(len(x), -1)
        return self._inner * known + self._outer * self._landmarks.rest.variance(x)

    def covariance(self, x: Examples) -> Float64[Tensor, "mc mc"]:
        root = self._projected.triangle.half_solve(self._landmarks.features(x))
        return self._inner * (root.T @ root) + self._outer * self._landmarks.rest.covariance(x)

    def sample_weights(self, n: int, generator: torch.Generator | None) -> Float64[Tensor, "p n"]:
        rest = self._landmarks.rest.sample_weights(n, generator)
        noise = standard_normal(self.report.rank, n, generator=generator, device=rest.device)
        spread = self._landmarks.weights_for(self._projected.triangle.spread(noise))
        return self.weights.unsqueeze(1) + math.sqrt(self._inner) * spread + math.sqrt(self._outer) * rest

    def extended(self, more: Observations) -> State:
        """With the same landmarks."""
        _refuse_zero_noise(more)
        projected = self._projected.after(more, self._landmarks, progress=False)
        return _NystromState(self.observations.followed_by(more), self._landmarks, projected, self._generator)


def _refuse_zero_noise(observations: Observations) -> None:
    if bool((observations.noise == 0.0).any()):
        raise InvalidOption(
            "noise_std: got zero, and the features' precision divides by it; give a small one, or use "
            "FunctionSpace(Eigh()) to interpolate."
        )
