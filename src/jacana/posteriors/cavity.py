"""Cavity: what all other examples say of each one's function values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.likelihoods import Likelihood
from jacana.posteriors.mode import Mode
from jacana.posteriors.observations import Observations

__all__ = ["Cavity", "cavity_of"]


@final
@dataclass(frozen=True)
class Cavity:
    """N(f_i; mean, covariance) without example i, whose outputs are left out together.

    Attributes:
        mean: (n, c).
        covariance: (n, c, c).
    """

    mean: Float64[Tensor, "n c"]
    covariance: Float64[Tensor, "n c c"]

    def log_probability(self, likelihood: Likelihood, y: Tensor) -> Float64[Tensor, " n"]:
        """Log E p(y_i | f_i): for classes by their closed form, otherwise by quadrature.

        Of a weighted likelihood, that of the likelihood itself, times the weight.
        """
        return likelihood.log_expected(self.mean, self.covariance, y)


def cavity_of(mode: Mode, observations: Observations) -> Cavity:
    """The Laplace posterior without an example's own Gaussian factor, of precision H and slope g at the mode.

        V₋ = (V⁻¹ − H)⁻¹ = (I − V H)⁻¹ V,     μ₋ = f̂ − V₋ g

    Nothing is fitted again: the curvatures at the other examples stay where they are.

    References:
        Rasmussen and Williams 2006, equations 3.56 and 5.4 to 5.12, for the like in expectation propagation and
        regression. Vehtari et al. 2016, Bayesian leave-one-out cross-validation approximations for Gaussian latent
        variable models (arXiv 1412.7461), section 3.3.
    """
    covariance = mode.precision.fitted()
    unit = torch.eye(covariance.shape[1], dtype=torch.float64, device=covariance.device)
    seen = unit - covariance @ mode.root @ mode.root.mT
    without = torch.linalg.solve(seen, covariance)
    without = 0.5 * (without + without.mT)
    gradient = observations.likelihood.gradient(mode.f, observations.targets)
    return Cavity(mode.f - (without @ gradient.unsqueeze(2)).squeeze(2), without)
