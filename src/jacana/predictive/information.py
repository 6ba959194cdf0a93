"""Information: how uncertain a class is, and how much of it more data would settle."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from jacana.errors import InvalidData
from jacana.likelihoods import Likelihood, Nodes
from jacana.predictive.monte_carlo import average

__all__ = ["entropy", "mutual_information"]


def entropy(probabilities: Float[Tensor, "m c"]) -> Float[Tensor, " m"]:
    """H(p) = −Σ_k p_k log p_k of each example, in nats.

    Args:
        probabilities: of the c classes.

    Raises:
        InvalidData: negative ones, or NaN.

    Example:
        >>> import torch
        >>> from jacana.predictive import entropy
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    if not bool((probabilities >= 0.0).all()):
        raise InvalidData(f"probabilities: got one of {float(probabilities.min()):.3g}; expected none below zero.")
    return torch.special.entr(probabilities).sum(1)


def mutual_information(
    likelihood: Likelihood,
    mean: Float64[Tensor, "m c"],
    covariance: Float64[Tensor, "m c c"],
    nodes: Nodes | None = None,
) -> Float64[Tensor, " m"]:
    """I(y; f) = H(E p) − E H(p): the uncertainty of the class that is the model's own, in nats (BALD).

    Examples where it is large are worth a label; where the classes overlap in truth it is small, and the entropy large.
    The labels of :class:`~jacana.Bernoulli` count one by one, and their informations are summed. It is never negative,
    up to rounding, since both terms are averages over the same nodes.

    Cost: as :class:`~jacana.MonteCarlo`.

    Args:
        likelihood: of classes.
        mean: of the latent at m examples.
        covariance: of the c outputs of each.
        nodes: in c dimensions, or in one where each output has a label of its own; by default 1,024.

    Raises:
        InvalidData: a mean or a covariance that is none.
        InvalidOption: a likelihood without classes, or nodes of another dimension.

    References:
        Houlsby, Huszár, Ghahramani, Lengyel 2011, Bayesian active learning for classification and preference learning
        (arXiv 1112.5745), equation 2.

    Example:
        >>> import jacana, torch
        >>> from jacana.predictive import mutual_information
        >>> mean, covariance = torch.zeros(2, 1).double(), torch.tensor([0.0, 9.0]).double().view(2, 1, 1)
        >>> [round(float(value), 4) + 0.0 for value in mutual_information(jacana.Bernoulli(), mean, covariance)]
        [0.0, 0.3326]
    """

    def both(f: Float64[Tensor, "k d"]) -> Float64[Tensor, "k e"]:
        p = likelihood.probabilities(f)
        return torch.cat([p, uncertainty(p).unsqueeze(1)], 1)

    def uncertainty(p: Float64[Tensor, "k d"]) -> Float64[Tensor, " k"]:
        return entropy(torch.cat([p, 1.0 - p], 1) if likelihood.by_output else p)

    found = average(likelihood, both, mean, covariance, nodes)
    return (uncertainty(found[:, :-1]) - found[:, -1]).view(len(mean), -1).sum(1)
