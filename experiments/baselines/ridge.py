"""The last layer refitted: Bayesian linear regression on a network's last features, by evidence."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import svd
from scipy.optimize import minimize_scalar
from torch import nn

__all__ = ["features_of", "last_layer"]


def last_layer(features: ArrayLike, targets: ArrayLike, new_features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    r"""Refit a last linear layer: ridge regression with a free bias, prior and noise by evidence, output by output.

    The model is :math:`y = b + \Phi w + \varepsilon`, :math:`w \sim N(0, \tau^2 I)`,
    :math:`\varepsilon \sim N(0, \sigma^2)`, with a flat prior on the bias, which is integrated out. One singular value
    decomposition of the centred features turns the evidence into a function of the ratio :math:`\tau^2/\sigma^2`
    alone (:math:`\sigma^2` has a closed form given it): a scan finds its global maximum, a line search refines it.

    Args:
        features: Features of the labelled examples, (n, d); n is at least 3.
        targets: Their targets, (n, c) or (n,).
        new_features: Features to predict at, (m, d).

    Returns:
        Mean and standard deviation of observations, each (m, c).

    References:
        MacKay, "Bayesian Interpolation" (1992); the flat bias as in restricted maximum likelihood.
    """
    phi, y, new = (np.asarray(a, dtype=np.float64) for a in (features, targets, new_features))
    y = y.reshape(len(y), -1)
    n = len(y)
    if n < 3 or phi.shape[0] != n or new.shape[1:] != phi.shape[1:]:
        raise ValueError(f"got {phi.shape}, {y.shape}, {new.shape}, expected (n, d), (n, c), (m, d) with n >= 3")
    centre, offset = phi.mean(axis=0), y.mean(axis=0)
    u, s, vt = svd(phi - centre, full_matrices=False)
    keep = s > s.max(initial=0.0) * max(phi.shape) * np.finfo(np.float64).eps
    u, s, vt = u[:, keep], s[keep], vt[keep]
    if not len(s):  # constant features: only the bias is left
        std = np.sqrt(y.var(axis=0, ddof=1) * (1.0 + 1.0 / n))
        return np.tile(offset, (len(new), 1)), np.tile(std, (len(new), 1))
    a = u.T @ (y - offset)
    left = np.maximum(((y - offset) ** 2).sum(axis=0) - (a**2).sum(axis=0), 0.0)  # outside the span of the features
    z = (new - centre) @ vt.T
    mean, std = np.empty((len(new), y.shape[1])), np.empty((len(new), y.shape[1]))
    for k in range(y.shape[1]):
        ratio = _best_ratio(s, a[:, k], left[k], n)
        noise = _noise_variance(ratio, s, a[:, k], left[k], n)
        weights = ratio * s / (1.0 + ratio * s**2) * a[:, k]
        mean[:, k] = offset[k] + z @ weights
        # Directions without data keep their prior variance: it is the part of the new features outside the span.
        inside = (z**2) @ (ratio / (1.0 + ratio * s**2))
        outside = ratio * np.maximum(((new - centre) ** 2).sum(axis=1) - (z**2).sum(axis=1), 0.0)
        std[:, k] = np.sqrt(noise * (1.0 + 1.0 / n + inside + outside))
    return mean, std


def _noise_variance(ratio: float, s: np.ndarray, a: np.ndarray, left: float, n: int) -> float:
    """The noise variance that maximises the evidence at this ratio of prior to noise variance."""
    return max(float((a**2 / (1.0 + ratio * s**2)).sum() + left) / (n - 1), float(np.finfo(np.float64).tiny))


def _best_ratio(s: np.ndarray, a: np.ndarray, left: float, n: int) -> float:
    """The ratio of prior to noise variance with the greatest evidence, noise profiled out."""

    def loss(log_ratio: float) -> float:
        ratio = float(np.exp(log_ratio))
        return (n - 1) * float(np.log(_noise_variance(ratio, s, a, left, n))) + float(np.log1p(ratio * s**2).sum())

    grid = np.log(10.0) * np.linspace(-8.0, 14.0, 89) - 2.0 * np.log(s[0])
    at = int(np.argmin([loss(point) for point in grid]))
    around = (grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)])
    return float(np.exp(minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6}).x))


def features_of(net: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The inputs (n, d) of the last `torch.nn.Linear` that ``net`` calls on ``x``, in evaluation mode, as float64.

    The network is left as it was: its mode is put back and the hooks are taken off.
    """
    seen: list[torch.Tensor] = []
    modes = {module: module.training for module in net.modules()}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        for module in net.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        net.eval()
        with torch.no_grad():
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise ValueError(f"got a {type(net).__name__} that calls no torch.nn.Linear, expected one with a linear head")
    return seen[-1].double().cpu().numpy()
