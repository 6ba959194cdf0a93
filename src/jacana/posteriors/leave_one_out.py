"""Leave-one-out: what the other examples say of each, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption
from jacana.likelihoods import Gaussian
from jacana.posteriors.method import State

__all__ = ["LeaveOneOut", "leave_one_out"]


@final
@dataclass(frozen=True)
class LeaveOneOut:
    """Predictions of each example's observation from all other examples.

    Attributes:
        mean: (n, c), or (n,) where y was (n,).
        residual: y − mean.
        covariance: (n, c, c), of the observation: its outputs are left out together.
        log_probability: (n,), log p(y_i | all other y), its sum a pseudo-likelihood to compare models by.

    Example:
        >>> import jacana, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
        >>> x = torch.linspace(-1, 1, 9).unsqueeze(1)
        >>> left_out = jacana.TangentGP(net).condition(x, x[:, 0].sin(), noise_std=0.1).leave_one_out()
        >>> bool(torch.allclose(left_out.mean + left_out.residual, x[:, 0].sin().double()))
        True
    """

    mean: Float64[Tensor, "n"] | Float64[Tensor, "n c"]
    residual: Float64[Tensor, "n"] | Float64[Tensor, "n c"]
    covariance: Float64[Tensor, "n c c"]
    log_probability: Float64[Tensor, " n"]


def leave_one_out(state: State) -> LeaveOneOut:
    """y_i − μ_i = B_i⁻¹ [A⁻¹ r]_i with B_i = [A⁻¹]_ii, the c by c block of example i, and covariance B_i⁻¹.

    Raises:
        InvalidOption: noise that is not Gaussian, or a method that does not factorise.

    References:
        Rasmussen and Williams 2006, section 5.4.2, equations 5.12, for c = 1; by blocks here.
    """
    observations = state.observations
    if not isinstance(observations.likelihood, Gaussian):
        raise InvalidOption(
            f"leave_one_out: got a {type(observations.likelihood).__name__} likelihood; it has a closed form for "
            "Gaussian noise alone. Hold examples out and score predictions of them, e.g. with jacana.metrics, or "
            "compare log_evidence."
        )
    blocks, alpha = state.precision
    lower = torch.linalg.cholesky(blocks)
    residual = torch.cholesky_solve(alpha.unsqueeze(2), lower).squeeze(2)
    covariance = torch.cholesky_inverse(lower)
    log_precision = 2.0 * lower.diagonal(dim1=1, dim2=2).log().sum(1)
    fit = (residual * alpha).sum(1)
    log_probability = 0.5 * (log_precision - fit - observations.c * math.log(2.0 * math.pi))
    mean = observations.targets - residual
    if observations.flat:
        mean, residual = mean.squeeze(1), residual.squeeze(1)
    return LeaveOneOut(mean, residual, covariance, log_probability)
