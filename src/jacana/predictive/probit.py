"""Probit: class probabilities in closed form, the logistic function taken for a probit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor

from jacana.likelihoods import Likelihood
from jacana.predictive.predictive import Predictive, checked

__all__ = ["Probit"]


@final
@dataclass(frozen=True)
class Probit(Predictive):
    """Logits divided by √(1 + π/8 v), v the variance of the label's logit or of the difference of two classes' logits.

        p_k = sigmoid(m_k / √(1 + π/8 V_kk))                                           for labels
        p_k ∝ 1 / Σ_l exp(−(m_k − m_l) / √(1 + π/8 var(f_k − f_l)))                    for classes

    The default choice: it costs c² operations an example, is the plug-in where nothing is uncertain, knows the
    covariances, and does not change when a constant, random or not, is added to all logits. Probabilities of labels
    and of two classes are right to 0.02. Those of more classes are right to a few hundredths while standard deviations
    are below one; they may be off by 0.2 where these are several times that, and unequal: take :class:`MonteCarlo`.

    References:
        MacKay 1992, The evidence framework applied to classification networks. Lu, Ie, Sha 2020, Mean-field
        approximation to Gaussian-softmax integral with application to uncertainty estimation (arXiv 2006.07584).

    Example:
        >>> import jacana, torch
        >>> mean, covariance = torch.tensor([[0.0, 2.0]]).double(), 4.0 * torch.eye(2).unsqueeze(0).double()
        >>> jacana.Probit().probabilities(jacana.Categorical(), mean, covariance)
        tensor([[0.2723, 0.7277]], dtype=torch.float64)
    """

    def probabilities(
        self, likelihood: Likelihood, mean: Float64[Tensor, "m c"], covariance: Float64[Tensor, "m c c"]
    ) -> Float64[Tensor, "m c"]:
        return likelihood.probit(*checked(mean, covariance))
