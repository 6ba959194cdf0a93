"""Temperature scaling: logits divided by one number that makes held-out labels most probable (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["BOUNDS", "fit_temperature", "hold_out"]

BOUNDS = (0.05, 20.0)
"""A temperature is searched for in here: a few held-out labels that are all right would have it at zero."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    r"""The temperature :math:`T` with the smallest mean cross-entropy of ``logits / T``.

    The loss is convex in :math:`1/T`, so that it has one minimum; it is searched for over :math:`\log T`.

    Args:
        logits: Of held-out examples, (n, c).
        labels: Their classes, (n,).

    References:
        Guo, Pleiss, Sun, Weinberger 2017, On calibration of modern neural networks (arXiv 1706.04599), section 4.2.
    """
    own = logits.double()

    def loss(log: float) -> float:
        return float(cross_entropy(own / float(np.exp(log)), labels))

    low, high = np.log(BOUNDS)
    found = float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x))
    return min((found, *BOUNDS), key=lambda temperature: loss(float(np.log(temperature))))


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places of the examples to fit on and of those to hold out, stratified, one of each class at the least.

    Args:
        labels: Classes, (n,).
        share: Of the examples to hold out.
        seed: Of the draw.
    """
    classes = len(torch.unique(labels))
    count = max(round(share * len(labels)), classes)
    fitted, held = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(fitted), torch.from_numpy(held)
