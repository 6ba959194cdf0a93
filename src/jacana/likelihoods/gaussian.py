"""The Gaussian likelihood: y = f(x) + ε, ε ~ N(0, σ²), independent over examples and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods.likelihood import Likelihood, normal

__all__ = ["Gaussian"]


@final
@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """y = f(x) + ε with noise of standard deviation ``noise_std``.

        ∇ log p = (y − f) / σ²,     H = diag(1 / σ²)

    Args:
        noise_std: σ in the units of y: a number; (c,), one for each output; or (n, c), one for each observation.
            Not negative; zero interpolates, and needs a kernel of full rank.

    Raises:
        InvalidOption: negative, not finite, or of rank over two.

    Example:
        >>> import jacana
        >>> jacana.Gaussian(0.1)
        Gaussian(noise_std=0.1)
        >>> jacana.Gaussian([0.1, 0.2]).noise_std
        tensor([0.1000, 0.2000], dtype=torch.float64)
    """

    noise_std: Float64[Tensor, "..."]

    def __init__(self, noise_std: Any) -> None:
        try:
            given = noise_std.detach().cpu().numpy() if isinstance(noise_std, Tensor) else np.asarray(noise_std)
            if np.iscomplexobj(given):
                raise TypeError("complex numbers")
            std = torch.as_tensor(np.array(given, dtype=np.float64))  # a Python float keeps all its digits
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidOption(
                f"noise_std: got {noise_std!r} ({error}); pass a number, (c,) or (n, c) standard deviations."
            ) from error
        if std.ndim > 2 or std.numel() == 0:
            raise InvalidOption(f"noise_std: got shape {tuple(std.shape)}; expected a number, (c,) or (n, c).")
        if not bool(torch.isfinite(std).all()) or bool((std < 0).any()):
            raise InvalidOption(
                f"noise_std: got {noise_std!r}; expected finite standard deviations, zero or larger (σ, not σ²)."
            )
        object.__setattr__(self, "noise_std", std)

    def log_prob(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        precision = self._precisions(f)
        return 0.5 * (precision.log() - precision * (y.to(f) - f).square() - math.log(2.0 * math.pi)).sum(1)

    def gradient(self, f: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return self._precisions(f) * (y.to(f) - f)

    def curvature(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed(self._precisions(f))

    def curvature_times(self, f: Float[Tensor, "n c"], v: Float[Tensor, "n c k"]) -> Float[Tensor, "n c k"]:
        return self._precisions(f).to(v).unsqueeze(2) * v

    def curvature_root(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c c"]:
        return torch.diag_embed(self._precisions(f).sqrt())

    def saturated(self, y: Float[Tensor, "n c"]) -> Float64[Tensor, " n"]:
        y = y.to(torch.float64)
        return self.log_prob(y, y)

    @property
    def by_output(self) -> bool:
        return self.noise_std.ndim == 0

    def sample(self, f: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Float64[Tensor, "n c"]:
        return f.to(torch.float64) + self.variances(len(f), f.shape[1], f.device).sqrt() * normal(f, generator)

    def conditional_moments(self, f: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        return f, self.variances(len(f), f.shape[1], f.device).to(f)

    def moments(
        self, mean: Float[Tensor, "m c"], covariance: Float[Tensor, "m c c"]
    ) -> tuple[Float[Tensor, "m c"], Float[Tensor, "m c"]]:
        noise = self.variances(len(mean), mean.shape[1], mean.device).to(mean)
        return mean, covariance.diagonal(dim1=1, dim2=2) + noise

    def log_expected(
        self, mean: Float[Tensor, "n c"], covariance: Float[Tensor, "n c c"], y: Float[Tensor, "n c"]
    ) -> Float[Tensor, " n"]:
        noise = self.variances(mean.shape[0], mean.shape[1], mean.device).to(mean)
        lower = torch.linalg.cholesky(covariance + torch.diag_embed(noise))
        half = torch.linalg.solve_triangular(lower, (y.to(mean) - mean).unsqueeze(2), upper=False).squeeze(2)
        logs = lower.diagonal(dim1=1, dim2=2).log() + 0.5 * math.log(2.0 * math.pi)
        return -(0.5 * half.square() + logs).sum(1)

    def check(self, n: int, c: int) -> None:
        self.variances(n, c, torch.device("cpu"))

    def part(self, start: int, stop: int) -> Gaussian:
        return Gaussian(self.noise_std[start:stop]) if self.noise_std.ndim == 2 else self

    def at(self, index: Int64[Tensor, " m"]) -> Gaussian:
        return Gaussian(self.noise_std[index.cpu()]) if self.noise_std.ndim == 2 else self

    def _precisions(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        if bool((self.noise_std == 0.0).any()):
            raise InvalidOption("noise_std: got zero, where the density is infinite; give a positive noise.")
        return self.variances(f.shape[0], f.shape[1], f.device).reciprocal().to(f)

    def variances(self, n: int, c: int, device: torch.device) -> Float64[Tensor, "n c"]:
        """σ² of every observation.

        Raises:
            InvalidOption: the noise has a shape that fits neither the outputs nor the observations.
        """
        std = self.noise_std
        if std.ndim == 1 and len(std) not in (1, c):
            raise InvalidOption(
                f"noise_std: got {len(std)} standard deviations for {c} outputs; expected ({c},), one for each output, "
                f"or ({n}, {c}), one for each observation."
            )
        if std.ndim == 2 and tuple(std.shape) != (n, c):
            raise InvalidOption(
                f"noise_std: got shape {tuple(std.shape)} for {n} examples with {c} outputs; expected ({n}, {c}). "
                "Noise that is given for each example belongs to these examples only: give it anew for others."
            )
        return std.square().expand(n, c).to(device)

    def followed_by(self, other: Gaussian, n: int, m: int, c: int) -> Gaussian:
        """The noise of n examples and then of m others."""
        if (
            self.noise_std.ndim < 2
            and other.noise_std.ndim < 2
            and torch.equal(self.noise_std.expand(c), other.noise_std.expand(c))
        ):
            return self
        cpu = torch.device("cpu")
        return Gaussian(torch.cat([self.variances(n, c, cpu), other.variances(m, c, cpu)]).sqrt())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gaussian) and torch.equal(self.noise_std, other.noise_std)

    def __hash__(self) -> int:
        return hash((self.noise_std.shape, tuple(self.noise_std.flatten().tolist())))

    def __repr__(self) -> str:
        std = self.noise_std
        shown = (
            f"{float(std):.6g}" if std.ndim == 0 else str([round(v, 6) for v in std.tolist()]) if std.ndim == 1 else ""
        )
        return f"Gaussian(noise_std={shown or tuple(std.shape)})"
