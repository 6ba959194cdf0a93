"""Relinearize: the network's tangent at the mode of a posterior, with the prior where it was."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidOption, JacanaError, UnsupportedNetwork
from jacana.linearization import Linearization
from jacana.posteriors.observations import Model, Observations

__all__ = ["check_start", "log_posterior", "relinearized", "same_start"]

_HALVINGS = 12


def relinearized(observations: Observations, weights: Float64[Tensor, " p"]) -> Model:
    """One Gauss-Newton step on Ψ(θ) = log p(y | f(x; θ) / T) − ½ (θ − θ0)ᵀ S⁻¹ (θ − θ0) / T², cut until Ψ grows.

    The posterior mean of the linear model is where such a step ends. It goes up along Ψ, so that a step that is short
    enough never makes Ψ worse; where twelve halvings do not find one, nothing is moved.

    Args:
        observations: what Ψ is over, with the model there is.
        weights: δ̂.

    Returns:
        The model with the linearization at the new θ; its prior is still around θ0.

    Raises:
        InvalidOption: a model that does not start from the network's own output.
    """
    model = observations.model
    check_start(model)
    here = torch.zeros_like(weights) if model.origin is None else model.origin
    step = model.temperature * weights - here
    before, length = log_posterior(observations, model.lin, here), 1.0
    for _ in range(_HALVINGS):
        lin = model.lin.moved(length * step)
        there = here + length * step
        if log_posterior(observations, lin, there) >= before:
            return replace(model, lin=lin, origin=there)
        length *= 0.5
    return model


def check_start(model: Model) -> None:
    """Refuse a model that does not start from the network's own output, or whose weights cannot make small steps.

    Raises:
        InvalidOption: says what to do.
        UnsupportedNetwork: weights in half precision.
    """
    if torch.finfo(model.lin.dtype).eps > torch.finfo(torch.float32).eps:
        raise UnsupportedNetwork(
            f"net: got weights in {model.lin.dtype}, whose rounding is larger than the steps that would move them; "
            "take net.float(), with linearize(autocast=torch.bfloat16) where that is for speed."
        )
    if model.zero_mean:
        raise InvalidOption(
            "mean: got 'zero', and the tangent of a network that is not its own prior mean has nothing to follow; take "
            "mean='network'."
        )


def same_start(one: Model, other: Model) -> bool:
    """Whether two models are of the same weights θ0, up to the rounding of moves from there."""
    networks = one.lin.network, other.lin.network
    if networks[0].names != networks[1].names or networks[0].sizes != networks[1].sizes:
        return False
    rounding = 16.0 * max(network.eps for network in networks)
    return torch.allclose(_start(one).cpu(), _start(other).cpu(), rtol=rounding, atol=rounding)


def _start(model: Model) -> Float64[Tensor, " p"]:
    """θ0."""
    here = model.lin.network.flatten(model.lin.network.values).to(torch.float64)
    return here if model.origin is None else here - model.origin


def log_posterior(observations: Observations, lin: Linearization, origin: Float64[Tensor, " p"]) -> float:
    """Ψ of the network itself, at the weights θ0 + ``origin`` of a linearization; −∞ where its output is not finite."""
    model = observations.model
    try:
        f = torch.cat([lin(batch) for batch in observations.x.batches(lin.batch_size)]).to(torch.float64)
    except JacanaError:  # so far away that it fails, or its outputs are not finite
        return -math.inf
    change = origin / (model.temperature * model.prior.vector(lin.device))
    fit = observations.likelihood.log_prob(f / model.temperature, observations.targets).sum()
    return float(fit - 0.5 * change.square().sum())
