"""Chebyshev: a stabilised Runge-Kutta method for flows up a hill, which are stiff and have no oscillations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

__all__ = ["Flowed", "Height", "flow"]

_DAMPING = 2.0 / 13.0
_SAFETY = 0.8
_GROWTH = 5.0
_SHRINK = 0.1
_MARGIN = 1.25
"""By which the stiffness may be more than what the last stages saw of it."""

_PROBE = 1e-2
"""How far a probe of the stiffness goes, relative to 1 + ‖u‖."""

_ROUNDINGS = 10.0
"""By how many of its roundings a probe may change ψ: far less than one where the gradient is not a straight line."""

_PROBES = 3
"""At first."""

_EVERY = 4
"""Steps, and then one more."""

_ROUNDING = 1e-12
_SHORTEST = 1e-12
"""Of the whole time: a step so short stands still."""

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"

_STAGES = 100
"""The most of one step."""

_STILL = 1e-3
"""Of the error of a step: where all that is left would move less, nothing is left."""


class Height(NamedTuple):
    """A point of a hill.

    Attributes:
        value: ψ(u); −∞ where there is none.
        slope: ∇ψ(u).
        rounding: what of ψ may be.
    """

    value: float
    slope: Float64[Tensor, " q"]
    rounding: float = 0.0


Slope = Callable[[Float64[Tensor, " q"]], Height]


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
    slope: Slope,
    start: Float64[Tensor, " q"],
    time: float,
    *,
    rtol: float,
    most: int,
    top: float = math.inf,
    progress: bool = False,
) -> Flowed:
    """Solve u' = ∇ψ(u), u(0) = start, up to a time.

    Each step is one of Sommeijer, Shampine and Verwer's second order method, of as many stages as its length needs to
    be stable: s of them reach ⅔ (s² − 1) times as far as the stiffest direction lets a step of Euler's go halfway. Its
    length is held where the estimated error is ``rtol`` of 1 + ‖u‖, and a step that makes ψ less, which no flow does,
    is made again shorter.

    Args:
        slope: ψ and ∇ψ at u.
        start: u at time zero.
        time: for how long.
        rtol: error of a step.
        most: evaluations of ∇ψ, after which it stops.
        top: what ψ is at most. It ends where ψ could gain less than ``rtol`` of ½ ‖u‖² or of ½ ``rtol``.
        progress: show a bar.

    References:
        Sommeijer, Shampine, Verwer 1998, RKC: an explicit solver for parabolic PDEs, equations 2.2 to 2.9.
    """
    field = _Field(slope, most)
    here = field(start)
    if not math.isfinite(here.value) or not here.speed > 0.0:
        return Flowed(start, here.value, time, 0, field.evaluations)
    stiffness = max(field.stiffness(here) for _ in range(_PROBES))
    now, length, steps = 0.0, 1.0 / stiffness if stiffness > 0.0 else time, 0
    bar = tqdm(total=1.0, desc="flow", delay=1.0, leave=False, disable=not progress, bar_format=_BAR)
    while now < time and field.left > 1:
        tolerance = rtol * (1.0 + here.size)
        left = top - here.value
        if left <= 0.5 * rtol * max(rtol, here.size**2) or here.speed * (time - now) <= _STILL * tolerance:
            now = time
            break
        length = min(length, time - now, _reach(min(_STAGES, field.left), _MARGIN * stiffness))
        there, error, seen = field.step(here, length, _MARGIN * stiffness)
        error /= tolerance
        factor = min(_GROWTH, max(_SHRINK, _SAFETY * error ** (-1.0 / 3.0))) if error > 0.0 else _GROWTH
        if error <= 1.0 and there.value >= here.value - here.rounding - there.rounding:
            last = length >= time - now
            here, now, steps = there, time if last else now + length, steps + 1
            stiffness = max(seen, stiffness)
            if not last and steps % _EVERY == 0 and field.left > 1:
                stiffness = field.stiffness(here)
        elif length <= _SHORTEST * time:
            break
        else:
            factor = min(factor, 0.5)
            stiffness = max(stiffness, field.stiffness(here)) if field.left > 1 else stiffness
        length *= factor
        bar.set_postfix_str(f"{field.evaluations} gradients", refresh=False)
        bar.update(now / time - bar.n)
    bar.close()
    return Flowed(here.u, here.value, now, steps, field.evaluations)


def _stages(length: float, stiffness: float) -> int:
    """So many are stable."""
    return max(2, math.ceil(math.sqrt(1.0 + 1.54 * length * stiffness)))


def _reach(stages: int, stiffness: float) -> float:
    """How far so many are."""
    return (max(2, stages - 1) ** 2 - 1.0) / (1.54 * stiffness) if stiffness > 0.0 else math.inf


@final
@dataclass(frozen=True)
class _Point:
    """U with ψ and its gradient."""

    u: Float64[Tensor, " q"]
    value: float
    slope: Float64[Tensor, " q"]
    rounding: float

    @cached_property
    def size(self) -> float:
        """‖u‖."""
        return float(self.u.norm())

    @cached_property
    def speed(self) -> float:
        """‖∇ψ‖; zero where it underflows."""
        return float(self.slope.norm())

    @property
    def exists(self) -> bool:
        """Whether there is such a point of the hill."""
        return math.isfinite(self.value) and math.isfinite(self.speed)


@final
class _Field:
    """∇ψ, counted."""

    def __init__(self, slope: Slope, most: int) -> None:
        self._slope, self._most, self.evaluations = slope, most, 0
        self._stiffest: Tensor | None = None
        self._stiffness = 0.0

    @property
    def left(self) -> int:
        """Evaluations that may still be made."""
        return self._most - self.evaluations

    def __call__(self, u: Float64[Tensor, " q"]) -> _Point:
        self.evaluations += 1
        found = self._slope(u)
        return _Point(u, found.value, found.slope, found.rounding + _ROUNDING * (1.0 + abs(found.value)))

    def stiffness(self, here: _Point) -> float:
        """How fast the gradient changes where it changes fastest, by one more power of differences."""
        direction = here.slope if self._stiffest is None else self._stiffest
        size = _PROBE * (1.0 + here.size)
        if self._stiffness > 0.0:
            size = min(size, math.sqrt(2.0 * _ROUNDINGS * here.rounding / self._stiffness))
        length = float(direction.norm())
        if not length > 0.0:
            return 0.0
        near = self(here.u + size / length * direction)
        found = float((near.slope - here.slope).norm()) / size
        if not near.exists or not math.isfinite(found):
            return 1.0 / size
        if found > 0.0:
            self._stiffest, self._stiffness = near.slope - here.slope, found
        return found

    def step(self, here: _Point, h: float, stiffness: float) -> tuple[_Point, float, float]:
        """The point a time h later, what it may be wrong by, and how stiff it was on the way."""
        first, terms = _coefficients(_stages(h, stiffness))
        before, point = here, self(here.u + first * h * here.slope)
        seen = _ratio(here, point)
        for mu, nu, gain, back in terms:
            if not point.exists:
                return point, math.inf, 0.0
            u = (1.0 - mu - nu) * here.u + mu * point.u + nu * before.u + h * (gain * point.slope + back * here.slope)
            before, point = point, self(u)
            seen = max(seen, _ratio(before, point))
        wrong = float((0.8 * (here.u - point.u) + 0.4 * h * (here.slope + point.slope)).norm())
        return point, wrong if math.isfinite(wrong) and point.exists else math.inf, seen


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
