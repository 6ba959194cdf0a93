"""Chebyshev: a stabilised Runge-Kutta method for flows up a hill, which are stiff and have no oscillations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["Flowed", "flow"]

_DAMPING = 2.0 / 13.0
_SAFETY = 0.8
_GROWTH = 5.0
_SHRINK = 0.1
_MARGIN = 1.25
"""By which the stiffness may be more than what the last stages saw of it."""

_PROBE = 1e-2
"""How far a probe of the stiffness goes, relative to 1 + ‖u‖."""

_PROBES = 3
"""At first."""

_EVERY = 4
"""Steps, and then one more."""

_ROUNDING = 1e-12
_SHORTEST = 1e-12
"""Of the whole time: a step so short stands still."""

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"

Slope = Callable[[Float64[Tensor, " q"]], tuple[float, Float64[Tensor, " q"]]]
"""Of u: a value ψ(u), −∞ where there is none, and its gradient."""


@final
@dataclass(frozen=True)
class Flowed:
    """Where a flow ended.

    Attributes:
        u: there.
        value: ψ there.
        time: how long it flowed; less than was asked for where no further step could be made.
        steps: that were taken.
        evaluations: of the gradient.
    """

    u: Float64[Tensor, " q"]
    value: float
    time: float
    steps: int
    evaluations: int


def flow(
    slope: Slope, start: Float64[Tensor, " q"], time: float, *, rtol: float, most: int, progress: bool = False
) -> Flowed:
    """Solve u' = ∇ψ(u), u(0) = start, up to a time.

    Each step is one of Sommeijer, Shampine and Verwer's second order method, of as many stages as its length needs to
    be stable: s of them reach ⅔ (s² − 1) times as far as the stiffest direction lets a step of Euler's go halfway. Its
    length is held where the estimated error is ``rtol`` of 1 + ‖u‖, and a step that makes ψ less, which no flow does,
    is made again shorter.

    Args:
        slope: ψ and ∇ψ.
        start: u at time zero.
        time: for how long.
        rtol: error of a step.
        most: evaluations after which no further step is begun.
        progress: show a bar.

    References:
        Sommeijer, Shampine, Verwer 1998, RKC: an explicit solver for parabolic PDEs, equations 2.2 to 2.9.
    """
    field = _Field(slope)
    here = field(start)
    if not math.isfinite(here.value) or not bool(here.slope.any()):
        return Flowed(start, here.value, time, 0, field.evaluations)
    stiffness = max(field.stiffness(here) for _ in range(_PROBES))
    now, length, steps = 0.0, 1.0 / stiffness if stiffness > 0.0 else time, 0
    bar = tqdm(total=1.0, desc="flow", delay=1.0, leave=False, disable=not progress, bar_format=_BAR)
    while now < time and field.evaluations < most:
        length = min(length, time - now)
        there, error, seen = field.step(here, length, _MARGIN * stiffness)
        error /= rtol * (1.0 + max(float(here.u.norm()), float(there.u.norm())))
        factor = min(_GROWTH, max(_SHRINK, _SAFETY * error ** (-1.0 / 3.0))) if error > 0.0 else _GROWTH
        stiffness = max(seen, stiffness)
        if error <= 1.0 and there.value >= here.value - _ROUNDING * (1.0 + abs(here.value)):
            last = length >= time - now
            here, now, steps = there, time if last else now + length, steps + 1
            if not last and steps % _EVERY == 0:
                stiffness = field.stiffness(here)
        elif length <= _SHORTEST * time:
            break
        else:
            factor = min(factor, 0.5) if math.isfinite(error) else _SHRINK
        length *= factor
        bar.set_postfix_str(f"{field.evaluations} gradients", refresh=False)
        bar.update(now / time - bar.n)
    bar.close()
    return Flowed(here.u, here.value, now, steps, field.evaluations)


@final
@dataclass(frozen=True)
class _Point:
    """U with ψ and its gradient."""

    u: Float64[Tensor, " q"]
    value: float
    slope: Float64[Tensor, " q"]


@final
class _Field:
    """∇ψ, counted."""

    def __init__(self, slope: Slope) -> None:
        self._slope, self.evaluations = slope, 0
        self._stiffest: Tensor | None = None

    def __call__(self, u: Float64[Tensor, " q"]) -> _Point:
        self.evaluations += 1
        return _Point(u, *self._slope(u))

    def stiffness(self, here: _Point) -> float:
        """How fast the gradient changes where it changes fastest, by one more power of differences."""
        direction = here.slope if self._stiffest is None else self._stiffest
        size = _PROBE * (1.0 + float(here.u.norm()))
        change = self(here.u + size / float(direction.norm()) * direction).slope - here.slope
        found = float(change.norm()) / size
        if not 0.0 < found < math.inf:
            return 0.0 if found == 0.0 else 1.0 / size
        self._stiffest = change
        return found

    def step(self, here: _Point, h: float, stiffness: float) -> tuple[_Point, float, float]:
        """The point a time h later, what it may be wrong by, and how stiff it was on the way."""
        # 2.2: stability up to 0.653 s² + ..., with the damping of 2/13
        stages = max(2, math.ceil(math.sqrt(1.0 + 1.54 * h * stiffness)))
        first, terms = _coefficients(stages)
        before, point, seen = here, self(here.u + first * h * here.slope), 0.0
        seen = _ratio(here, point)
        for mu, nu, gain, back in terms:
            u = (1.0 - mu - nu) * here.u + mu * point.u + nu * before.u + h * (gain * point.slope + back * here.slope)
            before, point = point, self(u)
            seen = max(seen, _ratio(before, point))
        error = 0.8 * (here.u - point.u) + 0.4 * h * (here.slope + point.slope)
        wrong = float(error.norm())
        return point, wrong if math.isfinite(wrong) and math.isfinite(point.value) else math.inf, seen


def _ratio(one: _Point, two: _Point) -> float:
    """Of the changes of gradient and place."""
    ratio = float((two.slope - one.slope).norm()) / max(float((two.u - one.u).norm()), 1e-300)
    return ratio if math.isfinite(ratio) else 0.0


def _coefficients(s: int) -> tuple[float, list[tuple[float, float, float, float]]]:
    """Of the first stage, and of the others: equations 2.7 to 2.9, by the Chebyshev polynomials at w0."""
    w0 = 1.0 + _DAMPING / s**2
    t, d, dd = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, s + 1):
        t.append(2.0 * w0 * t[-1] - t[-2])
        dd.append(4.0 * d[-1] + 2.0 * w0 * dd[-1] - dd[-2])
        d.append(2.0 * t[-2] + 2.0 * w0 * d[-1] - d[-2])
    w1 = d[s] / dd[s]
    b = [dd[j] / d[j] ** 2 for j in range(2, s + 1)]
    b = [b[0], b[0], *b]
    terms = []
    for j in range(2, s + 1):
        gain = 2.0 * b[j] * w1 / b[j - 1]
        terms.append((2.0 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], gain, -(1.0 - b[j - 1] * t[j - 1]) * gain))
    return b[1] * w1, terms
