"""DualAscent: the mode of a log posterior through one number for each function value, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from jacana.likelihoods import Likelihood
from jacana.linearization import Products
from jacana.networks import Source
from jacana.operators import NTK, Operator, standard_normal
from jacana.posteriors.observations import Observations

__all__ = ["Certified", "DualAscent"]

_FLOOR = 1e-6
"""In standard deviations of the prior: the length of a change that is as good as none."""

_EVERY = 10
"""Epochs from one measurement of λ to the next."""

_POWER_STEPS = 3
_FALL = 4.0
"""Where for a moment everything seems fitted, the curvature is all but gone: that is believed in part."""

_POOL_BYTES = 2**28
"""Of examples that wait, so that batches need not come in the order in which they are read."""

_GROWN = 30.0
"""What is seen of the gradient on the way goes up and down by a few times; where a step is too long, up without end."""

_PATIENCE = 30, 4.0
"""Epochs without a new least: so many, or so many times those in which the error should fall by e."""


@final
@dataclass(frozen=True)
class Certified:
    """A point with what bounds its distance from the mode.

    Attributes:
        dual: α.
        u: Rᵀα.
        slope: the gradient of the log posterior at u, in units of the prior.
    """

    dual: Float64[Tensor, "n c"]
    u: Float64[Tensor, "p 1"]
    slope: Float64[Tensor, "p 1"]

    @property
    def bound(self) -> float:
        """Of the distance from the mode, relative to u: at most the slope's length, by 1-strong concavity."""
        return float(self.slope.norm()) / max(float(self.u.norm()), _FLOOR)


@final
@dataclass(frozen=True)
class _Part:
    """A batch of the observations, with R = J S^½ there."""

    which: slice
    root: Operator
    offset: Float64[Tensor, "k c"]
    targets: Shaped[Tensor, "k ..."]
    likelihood: Likelihood

    def change(self, u: Float64[Tensor, "p 1"]) -> Float64[Tensor, "k c"]:
        """R u."""
        return self.root.times(u.to(self.root.dtype)).to(torch.float64).view_as(self.offset)

    def pull(self, cotangents: Float64[Tensor, "k c"]) -> Float64[Tensor, "p 1"]:
        """Rᵀ of them."""
        return self.root.transposed_times(cotangents.reshape(-1, 1).to(self.root.dtype)).to(torch.float64)

    def gradient(self, f: Float64[Tensor, "k c"]) -> Float64[Tensor, "k c"]:
        """Of log p."""
        return self.likelihood.gradient(f, self.targets)


@final
class DualAscent:
    """Algorithm 1 of Lin, Lu and Xiao on α, a batch of examples for a coordinate; the weights are u = Rᵀα, R = J S^½.

        y = (x + κ z) / (1 + κ),     d_B = ∇ log p(y_B | f_B) − y_B,     κ = √η / number of batches
        x ← y + η d_B,     z ← (1 − κ) z + κ y + √η d_B

    Kept are a = (x + z) / 2 and v = (z − x) / 2 with their images under Rᵀ: a batch changes a and v at its own examples
    alone, but that all of v shrinks by (1 − κ) / (1 + κ), a factor that is left to the end of an epoch.

    Args:
        observations: n examples, which may stay where they are.
        step: η, relative to 1 / (1 + λ), at first.
        start: α to begin from.

    Attributes:
        best: the point with the smallest certified bound so far.
        epochs: how many there were.
    """

    def __init__(self, observations: Observations, step: float, start: Float64[Tensor, "n c"]) -> None:
        model = observations.model
        self._data, self._step, self.epochs, self._products = observations, float(step), 0, 0
        products = Products(model.lin, observations.x)
        self._kernel = NTK(model.lin, products, prior_std=model.prior.given)
        self._pool: float = math.inf  # of batches that are views of what is in memory
        if isinstance(products.source, Source):
            self._pool = _POOL_BYTES / sum(tensor[0].nbytes for tensor in products.head.tensors)
        self._generator = torch.Generator().manual_seed(0)
        self._stiffest = standard_normal(*start.shape, generator=self._generator, device=start.device)
        self._stiffness: list[float] = []
        u = start.new_zeros(self._kernel.n_weights, 1)
        if bool(start.any()):
            for part in self._parts():
                u += part.pull(start[part.which])
        self.best = self._begin(start, u)

    @property
    def passes(self) -> int:
        """Products with J and its transpose, in passes over the data."""
        return -(-self._products // len(self._stiffness))

    def _begin(self, dual: Float64[Tensor, "n c"], u: Float64[Tensor, "p 1"]) -> Certified:
        """Rest at a point; certifies it, and measures λ there."""
        self._a, self._v = dual.clone(), torch.zeros_like(dual)
        self._a_image, self._v_image = u.clone(), torch.zeros_like(u)
        self._stiffness = []
        point = self._certified(dual, u, measure=True)
        self._nearest = float(point.slope.norm()), dual, u
        self._since = 0
        return point

    def epoch(self) -> float:
        """One pass; gives ‖g‖ / ‖u‖ as the batches saw it come by, infinite where it has to begin again."""
        of_x = min(1.0, self._step / (1.0 + max(self._stiffness)))  # η
        of_z = math.sqrt(of_x)
        pace = of_z / len(self._stiffness)  # κ
        shrink, scale = (1.0 - pace) / (1.0 + pace), 1.0
        measure = self.epochs % _EVERY == 0
        slope = torch.zeros_like(self._a_image)
        for number, part in self._shuffled():
            scale *= shrink
            f = part.offset + part.change(self._a_image - scale * self._v_image)
            missing = part.gradient(f) - (self._a[part.which] - scale * self._v[part.which])
            pulled = part.pull(missing)
            slope += pulled
            self._a[part.which] += 0.5 * (of_z + of_x) * missing
            self._a_image += 0.5 * (of_z + of_x) * pulled
            self._v[part.which] += 0.5 * (of_z - of_x) / scale * missing
            self._v_image += 0.5 * (of_z - of_x) / scale * pulled
            if measure:
                self._stiffness[number] = max(self._measured(part, f), self._stiffness[number] / _FALL)
        self._v *= scale
        self._v_image *= scale
        self.epochs += 1
        self._since += 1
        length = float(slope.norm())
        if not length <= _GROWN * self._nearest[0] or self._since > max(_PATIENCE[0], _PATIENCE[1] / of_z):
            self._step = 0.5 * min(self._step, 1.0 + max(self._stiffness))
            self._better(self._begin(*self._nearest[1:]))
            return math.inf
        here = self._here()
        if length < self._nearest[0]:
            self._nearest = length, *here
            self._since = 0
        return length / max(float(here[1].norm()), _FLOOR)

    def certify(self) -> float:
        """The true ‖g‖ / ‖u‖, by a pass over all data."""
        point = self._certified(*self._here())
        self._better(point)
        return point.bound

    def certify_nearest(self) -> None:
        """The same where the batches saw the least of it."""
        self._better(self._certified(*self._nearest[1:]))

    def _here(self) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "p 1"]]:
        """X, with its image."""
        return self._a - self._v, self._a_image - self._v_image

    def _better(self, point: Certified) -> None:
        if point.bound < self.best.bound:
            self.best = point

    def _certified(
        self, dual: Float64[Tensor, "n c"], u: Float64[Tensor, "p 1"], *, measure: bool = False
    ) -> Certified:
        slope = -u
        for part in self._parts():
            f = part.offset + part.change(u)
            slope += part.pull(part.gradient(f))
            if measure:
                self._stiffness.append([self._measured(part, f) for _ in range(_POWER_STEPS)][-1])
        return Certified(dual, u, slope)

    def _parts(self) -> Iterator[_Part]:
        c, data = self._data.c, self._data
        for rows, root in self._kernel.roots():
            which = slice(rows.start // c, rows.stop // c)
            self._products += 1
            yield _Part(
                which, root, data.offset[which], data.targets[which], data.likelihood.part(which.start, which.stop)
            )

    def _shuffled(self) -> Iterator[tuple[int, _Part]]:
        """All batches with their numbers, each drawn from a pool that is filled as they are read.

        In the same order every time, what one batch leaves to the next one to correct would come round for long.
        """
        pool: list[tuple[int, _Part]] = []
        held = 0
        for item in enumerate(self._parts()):
            pool.append(item)
            held += len(item[1].offset)
            while held > self._pool and len(pool) > 1:
                drawn = pool.pop(self._drawn(len(pool)))
                held -= len(drawn[1].offset)
                yield drawn
        while pool:
            yield pool.pop(self._drawn(len(pool)))

    def _drawn(self, n: int) -> int:
        return int(torch.randint(n, (1,), generator=self._generator))

    def _measured(self, part: _Part, f: Float64[Tensor, "k c"]) -> float:
        """λ of a batch, as the Rayleigh quotient of Rᵀ H R after one more step of a power iteration."""
        self._products += 1
        u = part.pull(self._stiffest[part.which])
        change = part.change(u)
        curved = part.likelihood.curvature_times(f, change.unsqueeze(2)).squeeze(2)
        size, length = float(u.square().sum()), float(curved.norm())
        if not (size > 0.0 and 0.0 < length < math.inf):  # nothing of weight in it, or nothing that is finite
            return 0.0
        self._stiffest[part.which] = curved / length
        return float((change * curved).sum()) / size
