"""The search over many scales and noises: exact gradients from several starts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from jacana.errors import NotPositiveDefinite
from jacana.evidence.spectrum import NOISE_RANGE
from jacana.evidence.statistics import Statistics
from jacana.likelihoods import Gaussian

__all__ = ["ascend"]

_N_SPREAD = 4
_FAILED = 1e300
Vector = NDArray[np.float64]


def ascend(
    found: Statistics,
    summits: list[tuple[float, float]],
    *,
    learn_scales: bool,
    by_output: bool,
    noise: Gaussian | None,
) -> tuple[list[float], list[float]]:
    """Scales (one a group) and noises (one, or one an output) of the largest evidence found.

    Starts are the ``summits`` of the evidence over one common scale and one common noise, so that the answer is never
    below them, points spread around the best of them, and the best of a coarse grid; each is climbed by L-BFGS in the
    logarithms of what is learned, within bounds relative to the data.
    """
    rms = found.root_mean_square.cpu().numpy()
    typical = float(np.sqrt((rms**2).mean()))
    n_scales = found.n_scales if learn_scales else 0
    n_noises = 0 if noise is not None else (found.c if by_output else 1)
    size = found.size.cpu().numpy()
    idle = size <= 0.0  # a layer that does not reach the output: its scale stays as it was given
    unit = np.where(idle, 0.0, np.log(typical) - np.log(np.where(idle, 1.0, size)))  # a layer alone explains the data
    floor = np.where(rms > 0, rms, typical) if by_output else np.array([typical])
    shared = np.log([scale for scale, _ in summits])
    bounds = [(min(u, *shared) - np.log(1e5), max(u, *shared) + np.log(1e4)) for u in unit[:n_scales]]
    bounds += [(np.log(f * NOISE_RANGE[0]), np.log(f * NOISE_RANGE[1])) for f in floor[:n_noises]]
    given = None if noise is None else noise.variances(found.n, found.c, found.residual.device)

    def evaluate(point: Vector) -> tuple[float, Vector]:
        variable = torch.tensor(point, dtype=torch.float64, device=found.residual.device, requires_grad=True)
        scales = variable[:n_scales].exp() if n_scales else variable.new_ones(found.n_scales)
        noises = (2.0 * variable[n_scales:]).exp()
        variances = given if given is not None else noises.expand(found.n, found.c)
        try:
            with torch.enable_grad():
                value = found.log_evidence(scales, variances)
                (slope,) = torch.autograd.grad(value, variable)
        except RuntimeError:  # torch.linalg.LinAlgError: not positive definite at these scales
            return _FAILED, np.zeros_like(point)
        return -float(value.detach()), -slope.cpu().numpy()

    best, where = _FAILED, None
    common = [np.log([*[scale] * n_scales, *[noise] * n_noises]) for scale, noise in summits]
    for start in _starts(evaluate, common, unit[:n_scales], np.log(floor[:n_noises]), bounds):
        result = minimize(evaluate, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 300})
        if result.fun < best:
            best, where = float(result.fun), result.x
    if where is None:
        raise NotPositiveDefinite(
            "prior_std: no scale within bounds gives a covariance that float64 can factorise; repeated examples with "
            "noise_std fixed too small? Learn the noise, or give a larger one."
        )
    scales = [1.0 if i else float(s) for s, i in zip(np.exp(where[:n_scales]), idle, strict=False)] or [
        1.0
    ] * found.n_scales
    return scales, [float(s) for s in np.exp(where[n_scales:])]


def _starts(
    evaluate: Callable[[Vector], tuple[float, Vector]],
    common: list[Vector],
    unit: Vector,
    floor: Vector,
    bounds: list[tuple[float, float]],
) -> list[Vector]:
    """The common summits, points spread around the best two, and the two best of a coarse grid."""
    low, high = np.array(bounds).T
    share = 0.5 * np.log(max(len(unit), 1))
    grid = [
        np.concatenate([unit - share + s, floor + b])
        for s in np.log([1e-3, 1e-2, 1e-1, 1.0, 10.0])
        for b in np.log([1e-3, 1e-2, 0.1, 0.3, 1.0])
    ]
    unique = list({point.tobytes(): point for point in (np.clip(point, low, high) for point in grid)}.values())
    ranked = sorted(unique, key=lambda point: evaluate(point)[0])
    generator = np.random.default_rng(0)
    spread = [point + generator.normal(0.0, 1.5, len(low)) for point in common[:2] for _ in range(_N_SPREAD)]
    return [np.clip(point, low, high) for point in (*common, *ranked[:2], *spread)]
