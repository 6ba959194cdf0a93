"""The Laplace evidence of prior scales and of a temperature, with exact gradients."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from jacana.errors import NotConverged, NotPositiveDefinite
from jacana.evidence.surface import Asked, Surface, Vector
from jacana.likelihoods import Likelihood
from jacana.posteriors import Mode, Observations
from jacana.posteriors.sides import Side

__all__ = ["approximate"]

_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
_ENOUGH = 0.01
"""Nats that a step may still gain where it is only asked which start leads higher."""

_CONVERGED = 1e-9
"""Of the evidence, in the end."""

_FEW = 600
"""Function values by which the way is looked for, where there are more."""

_FAILED = 1e300

_MOST = 100
_LEFT = 1e-20
"""Of what conjugate gradients solve, squared."""


def approximate(
    observations: Observations, asked: Asked, *, most: int | None = None, progress: bool
) -> tuple[list[float], float]:
    """Factors on the scales of the layers, and the temperature, of the largest Laplace evidence.

        L = log p(y | f̂) − ½ δ̂ᵀ S⁻¹ δ̂ − ½ log |I + S^½ Jᵀ H J S^½|

    less ½ (log T / ½)², without which a network that is right on all labels would be made ever more certain. It is at
    the mode of the linear model for each choice, by L-BFGS on logarithms: with few of the examples from the two best
    points of a coarse grid, and with all of them from the better end.

    References:
        Rasmussen and Williams 2006, section 5.5.1. Immer, Bauer, Fortuin, Rätsch, Khan 2021 (arXiv 2104.04975). Antorán
        et al. 2022 (arXiv 2206.08900): the mode has to be that of the linear model.
    """
    surface = Surface.of(observations, asked, most=most, progress=progress)
    rough = surface.thinned(_FEW)

    def objective(point: Vector, surface: Surface) -> tuple[float, Vector]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotConverged)  # of a point that is only looked at
                side, mode = surface.mode(point)
        except NotPositiveDefinite:
            return _FAILED, np.zeros_like(point)
        value, by_scale, by_temperature = evidence(side, mode, surface.logits / surface.read(point)[1])
        slope = by_scale.tolist()[: surface.n_scales] + [by_temperature] * asked.temperature
        doubt, by_doubt = surface.doubt(point)
        return doubt - value, by_doubt - np.array(slope)

    def climbed(start: Vector, surface: Surface, enough: float) -> OptimizeResult:
        return minimize(
            objective,
            surface.clipped(start),
            args=(surface,),
            jac=True,
            bounds=surface.bounds,
            method="L-BFGS-B",
            options={"maxiter": 60, "ftol": enough},
        )

    grid = [rough.common(size) for size in _GRID] if rough.n_scales else []
    ranked = sorted([*grid, rough.clipped(rough.given)], key=lambda point: objective(point, rough)[0])
    tops = [climbed(start, rough, _ENOUGH / max(1.0, abs(objective(start, rough)[0]))) for start in ranked[:2]]
    found = climbed(min(tops, key=lambda one: float(one.fun)).x, surface, _CONVERGED)  # the better of them to the end
    best, where = float(found.fun), found.x
    if best >= _FAILED:
        raise NotPositiveDefinite(
            "prior_std: no scale within bounds gives a curvature that float64 can factorise; fix prior_std."
        )
    return surface.learned(where, len(observations.model.lin.layers))


def evidence(side: Side, mode: Mode, logits: Float64[Tensor, "n c"]) -> tuple[float, Float64[Tensor, " l"], float]:
    """L, and its slope in the logarithms of the scales and of what the logits are multiplied with."""
    likelihood, y = side.observations.likelihood, side.observations.targets
    precision, u = mode.precision, mode.u
    value = mode.value - 0.5 * precision.log_determinant.value
    by_mode = -0.5 * _by_values(likelihood, mode.f, precision.fitted())
    moved = _moved(side, mode, side.pull(by_mode))  # how L changes as the mode moves with the prior
    by_scale = side.shares(u, u) + 2.0 * side.shares(moved, u) - precision.freedom
    seen = _curved(side.observations, mode.f, side.values(moved))
    by_temperature = float(((likelihood.gradient(mode.f, y) + by_mode - seen) * logits).sum())
    return value, by_scale, by_temperature


def _moved(side: Side, mode: Mode, pulled: Float64[Tensor, " q"]) -> Float64[Tensor, " q"]:
    """(S⁻¹ − Jᵀ ∇² log p J)⁻¹ S⁻¹ of these coordinates: where a step ends along which log p bends as it does.

    The precision has the curvature of the likelihood, which may be the expectation of that. Conjugate gradients after
    it end at once where it is not.
    """

    def bent(v: Tensor) -> Tensor:
        return v + side.pull(_curved(side.observations, mode.f, side.values(v)))

    found = mode.precision.solve(pulled)
    left, size = pulled - bent(found), side.inner(pulled, found)
    better = direction = mode.precision.solve(left)
    remains = side.inner(left, better)
    for _ in range(_MOST):
        if remains <= _LEFT * size:
            break
        image = bent(direction)
        curvature = side.inner(direction, image)
        if curvature <= 0.0:  # it is no maximum
            break
        length = remains / curvature
        found, left = found + length * direction, left - length * image
        better, before = mode.precision.solve(left), remains
        remains = side.inner(left, better)
        direction = better + (remains / before) * direction
    return found


def _curved(observations: Observations, f: Float64[Tensor, "n c"], v: Float64[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
    """−∇² log p(y | f) v."""
    with torch.enable_grad():
        variable = f.detach().clone().requires_grad_()
        slope = observations.likelihood.gradient(variable, observations.targets)
        (found,) = torch.autograd.grad(slope, variable, v)
    return -found


def _by_values(
    likelihood: Likelihood, f: Float64[Tensor, "n c"], covariance: Float64[Tensor, "n c c"]
) -> Float64[Tensor, "n c"]:
    """∂/∂f of Σ tr V_i H_i(f): the third derivatives of log p."""
    with torch.enable_grad():
        variable = f.detach().clone().requires_grad_()
        total = (covariance * likelihood.curvature(variable)).sum()
        if not total.requires_grad:  # the same curvature everywhere
            return torch.zeros_like(f)
        (slope,) = torch.autograd.grad(total, variable)
    return slope
