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
_NEAR = 1e4
"""What a further step may gain where steps end early, in tolerances: a posterior standard deviation in 10,000."""

_LOST = 1e-6
"""What the last step may lose of Ψ to rounding, relative to it."""


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

    def place(u: Tensor) -> tuple[Tensor, Tensor, float]:
        f = data.offset + side.values(u)  # anew: what is added up from step to step drifts away from it
        return u, f, objective(u, f)

    u, f = side.zero(), data.offset.clone()
    value = objective(u, f)
    if start is not None and (begun := place(start.clone()))[2] >= value:  # not worse than no change
        u, f, value = begun
    for step in range(_MOST):
        root = likelihood.curvature_root(f)
        precision = side.at(root)
        slope = side.pull(likelihood.gradient(f, y)) - u
        direction = precision.solve(slope)
        decrement, size = side.inner(slope, direction), 1.0 + abs(value)
        full = new = place(u + direction)
        gain, loss = 0.5 * decrement, value - full[2]
        if decrement <= side.tolerance * size and loss <= _LOST * size:
            return Mode(*full, precision, root, step)  # the step adds digits to δ̂ that Ψ does not show
        change, found, length = full[1] - f, full[2], 1.0
        rounding = _ROUNDING * size + side.rounding(u)  # a wide prior's ⟨u, u⟩ has few digits
        while found < value + _ARMIJO * length * decrement - rounding and length > _SHORTEST:
            length *= 0.5
            found = objective(u + length * direction, f + length * change)
        if length < 1.0:
            new = place(u + length * direction)
        if length <= _SHORTEST or new[2] < value - rounding:
            break
        u, f, value = new
    far = gain > _NEAR * side.tolerance * size
    if far or loss > _LOST * size:
        more = f"gain {gain:.1e}" if far else f"lose {loss:.1e}"
        warnings.warn(
            f"the mode of the log posterior was not reached: after {step + 1} steps a further one could {more} nats "
            f"of {value:.6g}; take a smaller prior_std, or the network in float64.",
            NotConverged,
            stacklevel=3,
        )
    root = likelihood.curvature_root(f)
    return Mode(u, f, value, side.at(root), root, step + 1)
