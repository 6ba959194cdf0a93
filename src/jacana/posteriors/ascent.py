"""Ascent: to the Gaussian of a family that bounds the evidence best, by natural gradients."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.errors import InvalidData, NotConverged
from jacana.linearization import diagonal_blocks
from jacana.posteriors.expectations import Expectations, Expected, root_of
from jacana.posteriors.families import Family
from jacana.posteriors.mode import mode_of
from jacana.posteriors.sides import Precision, Side, Spread

__all__ = ["Optimum", "ascend"]

_ROUNDING = 1e-12
_WIDEST = 10.0
_MOST_NARROWED = 100
_SLOWEST, _SHORTEST = 2.0**-10, 2.0**-20


@final
@dataclass(frozen=True)
class Optimum:
    """Where a bound is largest: q = N(δ(u), ·).

    Attributes:
        side: the prior and the data.
        u: coordinates of the mean.
        curvature: H, which the spread follows from.
        spread: of q.
        bounds: of log p(y), one a step, from the start to the end.
    """

    side: Side
    u: Float64[Tensor, " q"]
    curvature: Float64[Tensor, "n c c"]
    spread: Spread
    bounds: tuple[float, ...]


def ascend(side: Side, family: Family, rtol: float, max_steps: int) -> Optimum:
    """Maximise E log p(y | f) − KL(q ‖ N(0, S)) over a family.

        H ← H + t ρ (E H(f) − H),     u ← u + t (S⁻¹ + Jᵀ H J)⁻¹ S⁻¹ (pull(E ∇ log p) − u)

    Both are natural gradients. It starts at the mode with the curvature there; ρ ≤ 1 follows from the step before, and
    t is halved from one until the bound grows. Where no t makes it grow, because the likelihood's H is not −∇² log p
    or the nodes do not tell, the mean moves alone: its gradient is exact on any nodes. It ends where a whole step gains
    less than ``rtol``, or none gains.

    Args:
        side: the prior and the data.
        family: of q.
        rtol: the least gain, of one plus the bound's size.
        max_steps: at most so many.

    Raises:
        InvalidData: log p(y | f) is not finite at the start.
        InvalidOption: a curvature that is not positive semidefinite.
        NotPositiveDefinite: function values of which a variance is lost in the rounding of the prior's.

    Warns:
        NotConverged: the steps did not end, or nothing made the bound grow where its slope says that something should.

    References:
        Khan and Rue 2023, The Bayesian learning rule (arXiv 2107.04562), for natural gradients of a Gaussian: its
        natural parameters are linear in H.
    """
    ascent = _Ascent(side, family, rtol)
    points = ascent.start()
    bounds, point = [point.bound for point in points], points[-1]
    ended, gain = False, math.inf
    for _ in range(max_steps):
        new, ended = ascent.step(point)
        gain = new.bound - point.bound
        if gain != 0.0:
            bounds.append(new.bound)
        point = new
        if ended:
            break
    if not ended:
        warnings.warn(
            f"the bound of the evidence was still growing after {max_steps} steps, the last by {gain:.1e} nats to "
            f"{point.bound:.6g}; take a larger max_steps, or a larger rtol.",
            NotConverged,
            stacklevel=3,
        )
    return Optimum(side, point.u, point.shape.curvature, point.shape.spread, tuple(bounds))


@dataclass(frozen=True)
class _Shape:
    """The covariance that follows from H, as seen at the data, and its part of KL(q ‖ prior)."""

    curvature: Float64[Tensor, "n c c"]
    precision: Precision
    spread: Spread
    covariance: Float64[Tensor, "n c c"]
    divergence: float


@dataclass(frozen=True)
class _Point:
    """A q, with what the data say under it; ``size`` is that of the terms of the bound."""

    u: Float64[Tensor, " q"]
    shape: _Shape
    expected: Expected
    bound: float
    size: float


def _next_rate(old: _Point, new: _Point, rate: float) -> float:
    """The ρ that would have made E H − H vanish where a step left some of it, or turned its sign; one at the most.

    Under a wide covariance E H answers to H so strongly that steps with ρ = 1 go to and fro.

    References:
        Barzilai and Borwein 1988, Two-point step size gradient methods.
    """
    covariance = new.shape.covariance
    was = old.expected.curvature - old.shape.curvature
    now = new.expected.curvature - new.shape.curvature
    scaled = covariance @ was @ covariance
    size = float((scaled * was).sum())
    if not size > 0.0:
        return 1.0
    left = float((scaled * now).sum()) / size
    return min(1.0, max(_SLOWEST, rate / max(1.0 - left, rate)))


class _Ascent:
    def __init__(self, side: Side, family: Family, rtol: float) -> None:
        data = side.observations
        self._side, self._spreads, self._rtol, self._rate = side, family.spreads(side), rtol, 1.0
        prior = diagonal_blocks(data.model.lin, data.examples, data.model.prior).diagonal(dim1=1, dim2=2)
        self._expectations = Expectations(data, prior.amax(1))

    def start(self) -> list[_Point]:
        """The mode with the curvature there; or, where that is too wide to step from, the best of what is narrower.

        An exponential rate averaged over a wide Gaussian is astronomical, and so would be the next precision.

        Raises:
            InvalidData: log p(y | f) is not finite there.
        """
        side, data = self._side, self._side.observations
        mode = mode_of(side)
        points = self._narrowed(self._point(mode.u, self._shape(mode.root @ mode.root.mT)))
        if len(points) > 1:
            unmoved = self._shape(data.likelihood.curvature(data.offset).to(data.offset))
            other = self._narrowed(self._point(side.zero(), unmoved))[-1]
            if other.bound > points[-1].bound:
                points = [points[0], other]
        if not math.isfinite(points[-1].bound):
            raise InvalidData(
                "y: got targets of which log p(y | f), or its derivatives, are finite neither about the prior mean nor "
                "at the mode; expected targets that the likelihood can give, on its scale."
            )
        return points

    def step(self, point: _Point) -> tuple[_Point, bool]:
        """A better point, and whether it is the last."""
        side, tolerance = self._side, self._rtol * (1.0 + abs(point.bound))
        slope, rate = side.pull(point.expected.gradient) - point.u, self._rate

        def moved(length: float) -> _Point:
            shape = self._shape(torch.lerp(point.shape.curvature, point.expected.curvature, length * rate))
            return self._point(point.u + length * shape.precision.solve(slope), shape)

        length, new = 1.0, moved(1.0)
        if new.bound >= point.bound - _ROUNDING * point.size:
            self._rate = _next_rate(point, new, rate)
            return new, new.bound - point.bound <= rate * tolerance
        if new.bound >= point.bound - rate * tolerance:
            return point, True
        best = point
        while length > _SLOWEST:
            length *= 0.5
            new = moved(length)
            if new.bound > best.bound:
                best, self._rate = new, _next_rate(point, new, length * rate)
            elif best is not point:  # the one before was better: where the first that gains overshoots, it hardly does
                break
        if best.bound > point.bound + tolerance:
            return best, False

        direction = point.shape.precision.solve(slope)
        decrement, length = side.inner(slope, direction), 1.0
        while decrement > tolerance and length > _SHORTEST:
            new = self._point(point.u + length * direction, point.shape)
            if new.bound > point.bound + tolerance:
                return new, False
            length *= 0.5
        if decrement > 1e3 * tolerance:
            warnings.warn(
                f"the bound of the evidence, {point.bound:.6g}, did not grow along its slope, by which it could gain "
                f"{0.5 * decrement:.1e} nats: does likelihood.gradient belong to its log_prob? Else take a smaller "
                "prior_std, or the network in float64.",
                NotConverged,
                stacklevel=4,
            )
        return point, True

    def _shape(self, curvature: Float64[Tensor, "n c c"]) -> _Shape:
        root = root_of(curvature)
        precision = self._side.at(root)
        spread = self._spreads(root, precision)
        covariance = spread.fitted()
        # tr(S⁻¹Σ) − p = −tr(F (S⁻¹ + F)⁻¹) = −Σ tr(H_i V_i), for F or, where weights are independent, its diagonal
        divergence = 0.5 * (spread.log_determinant.value - float((curvature * covariance).sum()))
        return _Shape(curvature, precision, spread, covariance, divergence)

    def _point(self, u: Float64[Tensor, " q"], shape: _Shape) -> _Point:
        side = self._side
        expected = self._expectations.at(side.observations.offset + side.values(u), shape.covariance)
        away = 0.5 * side.inner(u, u)
        bound = expected.log_prob - away - shape.divergence
        known = torch.isfinite(expected.gradient).all() & torch.isfinite(expected.curvature).all()
        if not (math.isfinite(bound) and bool(known)):  # a step too far may overflow
            bound = -math.inf
        return _Point(u, shape, expected, bound, 1.0 + abs(expected.log_prob) + away + abs(shape.divergence))

    def _narrowed(self, point: _Point) -> list[_Point]:
        """The same mean with a smaller and smaller covariance, while examples see too wide a one."""
        points = [point]
        for _ in range(_MOST_NARROWED):
            curvature = self._narrower(points[-1])
            if curvature is None:
                break
            new = self._point(point.u, self._shape(curvature))
            if new.bound <= points[-1].bound and math.isfinite(new.bound):
                break
            points.append(new)
        return points

    def _narrower(self, point: _Point) -> Float64[Tensor, "n c c"] | None:
        """More curvature, by which no variance becomes less than an eleventh through its own example, if one asks more.

        None if every example asks for less.
        """
        curvature, covariance = point.shape.curvature, point.shape.covariance
        c = curvature.shape[1]
        wanted = (point.expected.curvature * covariance).sum((1, 2))
        wide = ~(wanted <= _WIDEST * c)
        if not bool(wide.any()):
            return None
        known = torch.isfinite(wanted) & torch.isfinite(point.expected.curvature).all(2).all(1)
        unit = torch.eye(c, dtype=torch.float64, device=covariance.device)
        even = unit / covariance.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        more = torch.where(known.view(-1, 1, 1), point.expected.curvature / wanted.view(-1, 1, 1), even)
        return curvature + _WIDEST * c * torch.where(wide.view(-1, 1, 1), more, 0.0)
