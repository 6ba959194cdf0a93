"""Leave-one-out: the scales and the temperature under which each label is most probable given all others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from jacana.errors import InvalidOption, NotPositiveDefinite
from jacana.evidence.approximate import approximate
from jacana.evidence.scaled import asked_for, scaled, with_temperature
from jacana.evidence.surface import Asked, Surface, Vector
from jacana.likelihoods import Likelihood
from jacana.networks import Data
from jacana.posteriors import TangentGP, cavity_of, observe

__all__ = ["maximize_leave_one_out"]

_SIZES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0)
_TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
_SPREAD = 0.5
"""Of log T a priori, about zero: the network's logits are those of its own task, or half or twice them."""

_FAILED = 1e300


def maximize_leave_one_out(
    gp: TangentGP,
    x: Data,
    y: Any = None,
    *,
    likelihood: Likelihood,
    prior_std: Any = "shared",
    temperature: Any = None,
) -> tuple[TangentGP, Likelihood]:
    """The prior scale and the temperature under which each label is most probable given all the others.

        Σ_i log E p(y_i | f_i) − ½ (log T / ½)²,     f_i ~ the Laplace posterior without example i

    The cavities come from one Laplace approximation in closed form; nothing is fitted again. Where
    :func:`maximize_evidence` asks how probable the labels are under the prior, this asks for what a classifier is for,
    good probabilities of labels that it has not seen, and does not trust the model. It is better with few labels and
    confident networks: there the evidence may prefer another temperature over any adaptation, or scales that are far
    too wide. The temperature has a prior, a factor of two about one, because a few labels do not say both.

    Costs some 60 Laplace approximations, each of a few factorisations; on at most 3,000 function values.

    Args:
        gp: the model; its ``prior_std`` gives the shape of the prior that is scaled.
        x: n examples, or a DataLoader of (input, target).
        y: targets.
        likelihood: how y comes from f.
        prior_std: ``"shared"`` (or None) learns one factor; ``"layers"`` takes the layers' scales relative to each
            other from the evidence, and one factor on them from the labels left out; a number or a mapping is fixed.
        temperature: None learns T where the prior mean is the network's; a number is held fixed.

    Returns:
        The model with what was learned, and the likelihood as it was given.

    Raises:
        InvalidData: data that cannot be used.
        InvalidOption: an unknown word, or an impossible value.

    References:
        Rasmussen and Williams 2006, section 5.4.2. Vehtari et al. 2016 (arXiv 1412.7461), section 3.3.

    Example:
        >>> import jacana, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))
        >>> x = torch.randn(40, 2)
        >>> gp, likelihood = jacana.TangentGP(net), jacana.Categorical()
        >>> gp, _ = jacana.maximize_leave_one_out(gp, x, (x[:, 0] > 0).long(), likelihood=likelihood)
        >>> post = gp.condition(x, (x[:, 0] > 0).long(), likelihood=likelihood)
    """
    if not isinstance(gp, TangentGP):
        raise InvalidOption(f"gp: got {type(gp).__name__}; expected jacana.TangentGP(net).")
    if not isinstance(likelihood, Likelihood):
        raise InvalidOption(f"likelihood: got {likelihood!r}; expected one like jacana.Categorical().")
    base, asked = asked_for(gp, prior_std, temperature)
    observations = observe(base.model, x, y, likelihood, streams=True)
    with torch.inference_mode(False):
        if asked.scales and asked.by_layer:
            scales, _ = approximate(observations, asked, progress=gp.progress)
            base = scaled(base, scales, layers=True)
            observations = replace(observations, model=base.model)
        if asked.scales or asked.temperature:
            shared = Asked(asked.scales, by_layer=False, temperature=asked.temperature)
            scales, found = _search(Surface(observations, shared, progress=gp.progress), len(base.linearization.layers))
            base = scaled(base, scales, layers=False) if asked.scales else base
            base = with_temperature(base, found)
    return base, likelihood


def _search(surface: Surface, n_layers: int) -> tuple[list[float], float]:
    """The best of a grid, refined by a simplex."""

    def objective(point: Vector) -> float:
        try:
            side, mode = surface.mode(surface.clipped(point))
        except NotPositiveDefinite:
            return _FAILED
        data = side.observations
        left_out = cavity_of(mode, data).log_probability(data.likelihood, data.targets).sum()
        doubt = 0.5 * (np.log(surface.read(point)[1]) / _SPREAD) ** 2 if surface.asked.temperature else 0.0
        value = float(doubt) - float(left_out)
        return value if np.isfinite(value) else _FAILED

    temperatures = _TEMPERATURES if surface.asked.temperature else (1.0,)
    sizes = _SIZES if surface.n_scales else (1.0,)
    grid = [surface.common(size, temperature) for temperature in temperatures for size in sizes]
    best = min([*grid, surface.clipped(surface.given)], key=objective)
    simplex = np.vstack([best, *(surface.clipped(best + 0.3 * unit) for unit in np.eye(len(best)))])
    found = minimize(
        objective, best, method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-3, "maxfev": 40},
    )  # fmt: skip
    return surface.learned(surface.clipped(found.x), n_layers)
