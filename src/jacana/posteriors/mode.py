"""Mode: where a log posterior over the weights is largest, by Newton's method."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor

from jacana.errors import NotConverged
from jacana.posteriors.sides.side import Precision, Side

__all__ = ["Mode", "mode_of"]

_MOST = 100
_ARMIJO = 1e-4
_SHORTEST = 1e-10
_ROUNDING = 1e-14


@final
@dataclass(frozen=True)
class Mode:
    """A maximum of Ψ(δ) = log p(y | m + J δ) − ½ δᵀ S⁻¹ δ.

    Attributes:
        u: its coordinates.
        f: m + J δ.
        value: Ψ.
        precision: S⁻¹ + Jᵀ H J there.
        root: of H there.
        steps: how many it took.
    """

    u: Float64[Tensor, " q"]
    f: Float64[Tensor, "n c"]
    value: float
    precision: Precision
    root: Float64[Tensor, "n c r"]
    steps: int


def mode_of(side: Side, start: Float64[Tensor, " q"] | None = None) -> Mode:
    """Newton's method on the Fisher curvature, with a line search; where log p is concave in f there is one mode.

    Ψ grows at every step. It ends where the decrement, twice what a step can still gain, is lost in rounding.

    Args:
        side: the prior and the data.
        start: coordinates to begin at; by default no change.

    Warns:
        NotConverged: the mode was not reached.

    References:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, algorithm 3.3. Boyd and Vandenberghe 2004,
        Convex Optimization, section 9.5, for the decrement.
    """
    data = side.observations
    likelihood, y = data.likelihood, data.targets

    def objective(u: Tensor, f: Tensor) -> float:
        value = float(likelihood.log_prob(f, y).sum()) - 0.5 * side.inner(u, u)
        return value if value == value else -float("inf")  # a step too far may overflow

    u = side.zero() if start is None else start.clone()
    f = data.offset + side.values(u)
    value = objective(u, f)
    if start is not None and value < objective(side.zero(), data.offset):  # worse than no change
        u, f = side.zero(), data.offset.clone()
        value = objective(u, f)
    decrement = float("inf")
    for step in range(_MOST):
        root = likelihood.curvature_root(f)
        precision = side.at(root)
        slope = side.pull(likelihood.gradient(f, y)) - u
        direction = precision.solve(slope)
        decrement = side.inner(slope, direction)
        if decrement <= side.tolerance * (1.0 + abs(value)):  # the step adds digits to δ̂ that Ψ does not show
            return Mode(u + direction, f + side.values(direction), value, precision, root, step)
        change, length = side.values(direction), 1.0
        rounding = _ROUNDING * (1.0 + abs(value)) + side.rounding(u)  # a wide prior's ⟨u, u⟩ has few digits
        while length > _SHORTEST:
            new = objective(u + length * direction, f + length * change)
            if new >= value + _ARMIJO * length * decrement - rounding:
                break
            length *= 0.5
        if length <= _SHORTEST:
            break
        u, f, value = u + length * direction, f + length * change, new
    if decrement > 1e3 * side.tolerance * (1.0 + abs(value)):
        warnings.warn(
            f"the mode of the log posterior was not reached: after {step + 1} steps a further one could gain "
            f"{0.5 * decrement:.1e} nats of {value:.6g}; take a smaller prior_std, or the network in float64.",
            NotConverged,
            stacklevel=3,
        )
    root = likelihood.curvature_root(f)
    return Mode(u, f, value, side.at(root), root, step + 1)
