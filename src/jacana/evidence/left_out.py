"""Leave-one-out: the scales and temperatures under which each label is most probable given all others."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from scipy.optimize import Bounds, minimize

from jacana.errors import InvalidOption, NotPositiveDefinite
from jacana.evidence.approximate import approximate
from jacana.evidence.scaled import asked_for, scaled, with_temperature
from jacana.evidence.sharpest import sharpest
from jacana.evidence.surface import Asked, Surface, Vector
from jacana.likelihoods import (
    Bernoulli,
    Categorical,
    HeteroscedasticGaussian,
    Likelihood,
    Tempered,
    layers,
    unscaled,
)
from jacana.networks import Data
from jacana.posteriors import (
    FunctionSpace,
    Laplace,
    Method,
    Nonlinear,
    Posterior,
    TangentGP,
    WeightSpace,
    cavity_of,
    observe,
)
from jacana.posteriors.sides import KernelSide, Side

__all__ = ["LeftOut", "left_out", "maximize_leave_one_out"]

_SIZES = (0.1, 0.5, 1.5, 4.0, 12.0)
_TEMPERATURES = (0.7, 1.5)
_POWERS = (1.0, 10.0, 100.0)
_FEW = 1_500
"""Function values that tell how the scales of layers compare."""

_ROUGH = 600
"""Function values by which the way is looked for, where there are more."""

_FAR, _NEAR, _END = 0.3, 0.15, 0.02
"""Radii of the search: about the best of a grid, about what few of the examples say, and in the end."""

_MOST = 25
"""Evaluations of the search, for each coordinate."""

_DEAR = 1e3
"""Nats that no point is worse by than the first, for models of a cliff say nothing."""

_DIGITS = 6
"""Decimals of nats and of logarithms that it sees: where rounding is told apart, the order of examples leads it."""

_FAILED = 1e300


def maximize_leave_one_out(
    gp: TangentGP,
    x: Data,
    y: Any = None,
    *,
    likelihood: Likelihood,
    prior_std: Any = "shared",
    temperature: Any = None,
    power: Any = None,
    sharpness: Any = None,
) -> tuple[TangentGP, Likelihood]:
    """The prior scale and the temperatures under which each label is most probable given all the others.

        Σ_i log E p(y_i | τ f_i) − ½ (log T / ½)² − ½ (log w / 1½)² − ½ (log τ)²

    f_i ~ the Laplace posterior without example i; τ = 1 while the others are learned, and then the best of all.

    The cavities come from one Laplace approximation in closed form; nothing is fitted again. Where
    :func:`maximize_evidence` asks how probable the labels are under the prior, this asks for what a classifier is for,
    good probabilities of labels that it has not seen, and does not trust the model. It is better with few labels and
    confident networks: there the evidence may prefer another temperature over any adaptation, or scales that are far
    too wide. Beside them it learns what a label is worth, w: the returned likelihood is :class:`Tempered` with it. A
    softmax takes a label for one throw of a die, and under a wide prior its posterior is much less sure than clean
    labels let it be; whether these are clean is what those left out say. And of class labels it learns how sure what is
    said of new ones should be, τ: what smooths best need not be calibrated. Temperature, w and τ have a prior about
    one, because a few labels do not say everything.

    Costs some 100 Laplace approximations, each of a few factorisations: on at most 600 function values all but 30 of
    them, and these on at most 3,000; 30,000 where the parameters are fewer than 3,000.

    Args:
        gp: the model; its ``prior_std`` gives the shape of the prior that is scaled.
        x: n examples, or a DataLoader of (input, target).
        y: targets.
        likelihood: how y comes from f.
        prior_std: ``"shared"`` (or None) learns one factor; ``"layers"`` takes the layers' scales relative to each
            other from the evidence, and one factor on them from the labels left out; a number or a mapping is fixed.
        temperature: None learns T where the prior mean is the network's; a number is held fixed.
        power: None learns w, if p(y | f) is no :class:`Tempered` yet; a number is held fixed, one for none.
        sharpness: None learns τ, of class labels, if p(y | f) is no :class:`Tempered` yet; a number is held fixed. It
            is for averages over the posterior: for :class:`MAP`, whose probabilities are of a point, give one.

    Returns:
        The model with what was learned, and the likelihood, tempered.

    Raises:
        InvalidData: data that cannot be used.
        InvalidOption: an unknown word, or an impossible value; :class:`HeteroscedasticGaussian`.

    References:
        Rasmussen and Williams 2006, section 5.4.2. Vehtari et al. 2016 (arXiv 1412.7461), section 3.3.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))
        >>> x = torch.randn(40, 2)
        >>> gp, likelihood = jacana.TangentGP(net), jacana.Categorical()
        >>> gp, likelihood = jacana.maximize_leave_one_out(gp, x, (x[:, 0] > 0).long(), likelihood=likelihood)
        >>> post = gp.condition(x, (x[:, 0] > 0).long(), likelihood=likelihood)
    """
    found = left_out(
        gp, x, y, likelihood=likelihood, prior_std=prior_std, temperature=temperature, power=power, sharpness=sharpness
    )
    return found.gp, found.likelihood


@final
@dataclass(frozen=True)
class LeftOut:
    """What was learned, and how well.

    Attributes:
        gp: the model.
        likelihood: tempered.
        score: what was maximised, in nats: by it models with other means can be compared; NaN where nothing was.
        side: of all examples under the model, with what was computed of them; None where only some were looked at.
    """

    gp: TangentGP
    likelihood: Likelihood
    score: float
    side: Side | None

    def condition(self, x: Data, y: Any, method: Method | None) -> Posterior:
        """``gp.condition``; what would be computed again is taken from the search."""
        at_mode = method.method if isinstance(method, Nonlinear) else method
        if not isinstance(at_mode, Laplace) or at_mode.method is not None or self.side is None:
            return self.gp.condition(x, y, likelihood=self.likelihood, method=method)
        inner = FunctionSpace() if isinstance(self.side, KernelSide) else WeightSpace()
        own = type(method).__name__ + ", with " if isinstance(method, Nonlinear) else ""
        reason = f"{own}the Laplace approximation, by {type(inner).__name__} as the scales were learned"
        at_mode = replace(at_mode, method=inner)
        taken = method.by(at_mode) if isinstance(method, Nonlinear) else at_mode
        return Posterior(taken, taken.after(self.side, progress=self.gp.progress), reason)


def left_out(
    gp: TangentGP,
    x: Data,
    y: Any,
    *,
    likelihood: Likelihood,
    prior_std: Any,
    temperature: Any,
    power: Any,
    sharpness: Any,
    most: int | None = None,
) -> LeftOut:
    """:func:`maximize_leave_one_out` on at most so many function values, by default 3,000, with the score."""
    if not isinstance(gp, TangentGP):
        raise InvalidOption(f"gp: got {type(gp).__name__}; expected jacana.TangentGP(net).")
    if not isinstance(likelihood, Likelihood):
        raise InvalidOption(f"likelihood: got {likelihood!r}; expected one like jacana.Categorical().")
    if isinstance(unscaled(likelihood), HeteroscedasticGaussian):
        raise InvalidOption(
            "likelihood: got HeteroscedasticGaussian(), whose curvature is an expectation, so that nothing can be left "
            "out of it in closed form; take jacana.maximize_evidence(gp, x, y, likelihood=...)."
        )
    base, asked = asked_for(gp, prior_std, temperature)
    told = any(isinstance(layer, Tempered) for layer in layers(likelihood))
    learns = power is None and not told
    sharpens = sharpness is None and not told and isinstance(unscaled(likelihood), Categorical | Bernoulli)
    w, tau = (1.0 if value is None else value for value in (power, sharpness))
    held = likelihood if w == tau == 1.0 else Tempered(likelihood, w, tau)
    observations = observe(base.model, x, y, held, streams=True)
    if not (asked.scales or asked.temperature or learns or sharpens):
        return LeftOut(base, held, math.nan, None)
    with torch.inference_mode(False):
        if asked.scales and asked.by_layer:
            scales, _ = approximate(observations, asked, most=_FEW, progress=gp.progress)
            base = scaled(base, scales, layers=True)
            observations = replace(observations, model=base.model)
        shared = Asked(asked.scales, by_layer=False, temperature=asked.temperature, power=learns)
        surface = Surface.of(observations, shared, most=most, progress=gp.progress)
        point, score = _search(surface)
        scales, found = surface.learned(point, len(base.linearization.layers))
        base = scaled(base, scales, layers=False) if asked.scales else base
        base = with_temperature(base, found)
        if sharpens:
            here, mode = surface.mode(point)
            data = here.observations
            tau, gain = sharpest(cavity_of(mode, data), data.likelihood, data.targets)
            score += gain
        if learns or sharpens:
            held = Tempered(likelihood, w * surface.power(point), tau)
        side = surface.settled(point, base.model, held)
    return LeftOut(base, held, score, side)


def _search(surface: Surface) -> tuple[Vector, float]:
    """The best of a grid, refined, and its score: with few of the examples first, then with all.

    References:
        Ragonneau and Zhang 2024, COBYQA: derivative-free optimization by quadratic models in a trust region.
    """
    given = surface.clipped(surface.given)
    if not len(given):
        return given, -_cost(surface, given)
    rough = surface.thinned(_ROUGH)
    point, cost = _refined(rough, [*_grid(rough), rough.clipped(rough.given)], _FAR)
    if rough is not surface:
        point, cost = _refined(surface, [surface.clipped(point), given], _NEAR)
    return point, -cost


def _grid(surface: Surface) -> list[Vector]:
    temperatures = _TEMPERATURES if surface.asked.temperature else (1.0,)
    sizes = _SIZES if surface.n_scales else (1.0,)
    powers = _POWERS if surface.asked.power else (1.0,)
    return [surface.common(*point) for point in itertools.product(sizes, temperatures, powers)]


def _refined(surface: Surface, starts: list[Vector], radius: float) -> tuple[Vector, float]:
    """Where quadratic models of the cost lead from the best of these, the first of this radius, and the cost there."""
    costs = [_cost(surface, start) for start in starts]
    best = min(costs)
    start = starts[costs.index(best)]
    if best >= _FAILED:
        return start, best

    def cost(change: Vector) -> float:
        return round(min(_cost(surface, start + change) - best, _DEAR), _DIGITS)

    options: Any = {"initial_tr_radius": radius, "final_tr_radius": _END, "maxfev": _MOST * len(start)}
    room = Bounds(*(np.array(surface.bounds).T - start).round(_DIGITS))
    found = minimize(cost, np.zeros_like(start), method="COBYQA", bounds=room, options=options)
    return surface.clipped(start + found.x), best + float(found.fun)


def _cost(surface: Surface, point: Vector) -> float:
    """What is made small: less the log-probability of the labels left out, and the doubt."""
    point = surface.clipped(point)
    try:
        side, mode = surface.mode(point)
    except NotPositiveDefinite:
        return _FAILED
    data = side.observations
    log_probability = cavity_of(mode, data).log_probability(data.likelihood, data.targets).sum()
    value = surface.doubt(point)[0] - float(log_probability)
    return value if np.isfinite(value) else _FAILED
