"""Surface: what scales and a temperature make of the prior at some data, as points of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from jacana.likelihoods import Likelihood, Tempered
from jacana.linearization import Prior, fits
from jacana.networks import places
from jacana.posteriors import Mode, Model, Observations, mode_of
from jacana.posteriors.sides import KernelSide, Side, WeightSide

__all__ = ["LARGEST", "Asked", "Surface", "Vector"]

LARGEST = 3_000
"""Function values, or parameters, of which a curvature is factorised a hundred times in a minute or a few."""

_MANY = 30_000
"""Function values, where it is the curvature of fewer parameters."""

_WIDER = 3
"""A side of the data so many times as large as that of the parameters is still factorised in less time."""

_SCALE_RANGE = (1e-5, 1e3)
"""Of the prior's standard deviation of a logit."""

_TEMPERATURE_RANGE = (0.05, 20.0)
_POWER_RANGE = (0.1, 1e4)

_SPREAD = 0.5
"""Of log T a priori, about zero: the network's logits are those of its own task, or half or twice them."""

_POWER_SPREAD = 1.5
"""Of log w: labels are worth one observation, or a few."""

Vector = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Asked:
    """What is learned: scales, one or one a layer, the temperature, and what each label is worth."""

    scales: bool
    by_layer: bool
    temperature: bool
    power: bool = False


@final
class Surface:
    """The prior at each point: logarithms of factors on the scales, then of 1 / T, then of the power of p(y | f).

    Attributes:
        asked: what the coordinates are.
        bounds: of each coordinate.
        given: the point that there is.
        typical: the logarithm of the standard deviation of a logit that each scale gives.

    Args:
        side: of the data.
        asked: what is learned.
        subset: whether there are more data.
    """

    def __init__(self, side: KernelSide | WeightSide, asked: Asked, *, subset: bool) -> None:
        self.asked, self._side, self._subset = asked, side, subset
        observations, size = side.observations, side.sizes
        self._temperature = observations.model.temperature
        self.logits = observations.offset * self._temperature
        typical: Vector = torch.where(size > 0.0, size, 1.0).log().cpu().numpy()  # a layer that does nothing stays
        self.n_scales = len(size) if asked.scales else 0
        low, high = np.log(_SCALE_RANGE)
        self.typical = typical[: self.n_scales]
        moves = size.tolist()[: self.n_scales]
        self.bounds = [(low - t, high - t) if s > 0.0 else (0.0, 0.0) for s, t in zip(moves, self.typical, strict=True)]
        if asked.temperature:
            cold, hot = np.log(_TEMPERATURE_RANGE)
            self.bounds.append((-hot, -cold))
        if asked.power:
            weak, strong = np.log(_POWER_RANGE)
            self.bounds.append((weak, strong))
        rest = [-math.log(self._temperature)] * asked.temperature + [0.0] * asked.power
        self.given: Vector = np.array([0.0] * self.n_scales + rest)
        self._start: Tensor | None = None

    @classmethod
    def of(cls, observations: Observations, asked: Asked, *, most: int | None = None, progress: bool) -> Surface:
        """Of all of these, or with more than ``most`` function values and parameters of a subset.

        The subset is as good as at random, whatever their order: a prior is not of the data. Copies of an example are
        one of their weight; what weighs nothing is not there.
        """
        some = observations.counting()
        index = _ranked(some, LARGEST if most is None else most)
        some = (some if index is None else some.some(index, some.x.some(index))).distinct()
        return cls(_side(some, asked, progress=progress), asked, subset=some is not observations)

    def thinned(self, most: int) -> Surface:
        """The same with at most so many function values, where there are more and as many parameters: a rough map."""
        observations = self._side.observations
        index = _ranked(observations, most)
        if index is None:
            return self
        some = observations.some(index, observations.x.some(index))
        side = self._side
        side = side.some(some, index) if isinstance(side, KernelSide) else _side(some, self.asked, progress=False)
        return Surface(side, self.asked, subset=True)

    def common(self, size: float, temperature: float = 1.0, power: float = 1.0) -> Vector:
        """The point where all layers with the same share give a logit this standard deviation."""
        share = 0.5 * math.log(max(1, self.n_scales))
        tail = [-math.log(temperature)] * self.asked.temperature + [math.log(power)] * self.asked.power
        return self.clipped(np.concatenate([math.log(size) - share - self.typical, tail]))

    def clipped(self, point: Vector) -> Vector:
        """The nearest point within bounds."""
        low, high = np.array(self.bounds).reshape(-1, 2).T
        return np.clip(point, low, high)

    def read(self, point: Vector) -> tuple[list[float], float]:
        """Factors on the scales, and the temperature."""
        values = np.exp(point).tolist()
        inverse = values[self.n_scales] if self.asked.temperature else 1.0 / self._temperature
        return values[: self.n_scales] or [1.0], 1.0 / inverse

    def power(self, point: Vector) -> float:
        """What each label is worth."""
        return float(np.exp(point[-1])) if self.asked.power else 1.0

    def doubt(self, point: Vector) -> tuple[float, Vector]:
        """−log p of temperature and power, up to a constant, and its slope: a few labels do not say everything."""
        spread = [math.inf] * self.n_scales + [_SPREAD] * self.asked.temperature + [_POWER_SPREAD] * self.asked.power
        share = point / np.array(spread)
        return 0.5 * float(share @ share), share / np.array(spread)

    def mode(self, point: Vector) -> tuple[Side, Mode]:
        """The side there, and the mode, searched from that of the last point.

        Raises:
            NotPositiveDefinite: the curvature cannot be factorised.
        """
        side = self._at(*self.read(point), self.power(point))
        by_weights, start = isinstance(side, WeightSide), self._start
        if isinstance(side, WeightSide) and start is not None:
            start = side.coordinates(start)
        mode = mode_of(side, start)
        self._start = side.weights(mode.u) if by_weights else mode.u  # a gradient is one whatever the scales
        return side, mode

    def settled(self, point: Vector, model: Model, likelihood: Likelihood) -> Side | None:
        """The side there for the model and the likelihood that were made of it; None where it is of some examples."""
        if self._subset:
            return None
        here = replace(self._side.observations, model=model, offset=self.logits / model.temperature)
        here = replace(here, likelihood=likelihood)
        if isinstance(self._side, KernelSide):
            return self._side.rescaled(here, self.read(point)[0])
        return self._side.rescaled(here)

    def learned(self, point: Vector, n_layers: int) -> tuple[list[float], float]:
        """Factors, one a layer, and the temperature."""
        scales, temperature = self.read(point)
        return (scales if self.asked.by_layer and self.n_scales else scales * n_layers), temperature

    def _at(self, scales: list[float], temperature: float, power: float) -> Side:
        observations = self._side.observations
        model = replace(observations.model, temperature=temperature)
        likelihood = Tempered(observations.likelihood, power) if self.asked.power else observations.likelihood
        here = replace(observations, model=model, offset=self.logits / temperature, likelihood=likelihood)
        if isinstance(self._side, KernelSide):
            return self._side.rescaled(here, scales)
        names, layers = here.model.lin.names, here.model.lin.layers
        factors = dict(zip(layers, scales if self.asked.by_layer else scales * len(layers), strict=True))
        owner = {name: layer for layer, names in layers.items() for name in names}
        stds = {name: std * factors[owner[name]] for name, std in zip(names, here.model.prior.stds, strict=True)}
        prior = Prior.of(here.model.lin.network, stds)
        return self._side.rescaled(replace(here, model=replace(model, prior=prior)))


def _side(observations: Observations, asked: Asked, *, progress: bool) -> KernelSide | WeightSide:
    """The side of less work, by layer if asked for."""
    rows, p = observations.n * observations.c, observations.model.lin.n_parameters
    if rows <= p or rows <= min(_WIDER * p, LARGEST) or not fits(6 * 8 * p * p, observations.model.lin.device):
        return KernelSide.of(observations, layers=asked.by_layer, progress=progress)
    return WeightSide(observations, layers=asked.by_layer)


def _ranked(observations: Observations, most: int) -> Int64[Tensor, " m"] | None:
    """As many as a side of that size can be factorised for, whatever their order; None for all."""
    n = observations.n
    count = max(1, (most if observations.model.lin.n_parameters > most else max(_MANY, most)) // observations.c)
    if n <= count:
        return None
    order = places(observations.x).argsort(stable=True)
    return order[((torch.arange(count) + 0.5) * (n / count)).to(torch.int64)].sort().values
