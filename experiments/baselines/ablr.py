"""Adaptive Bayesian linear regression: shared tanh features, one Bayesian linear head a task."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["ABLR"]

Task = tuple[ArrayLike, ArrayLike]
"""Inputs (n, d) and targets (n,) of one task."""

PRIOR_DECADES = 4.0
"""A head's prior variance stays within this many decades of 1, in squared standard deviations of its task's targets."""

NOISE_FLOOR = 1e-6
"""Smallest noise variance, in the same unit; with the bound on the prior it keeps the covariance factorisable."""


class ABLR:
    r"""Learn features on source tasks, then adapt to a new task by its Bayesian linear head alone.

    Task t has :math:`y_t = \Phi_t w_t + \varepsilon_t`, :math:`w_t \sim N(0, \tau_t^2 I)`,
    :math:`\varepsilon_t \sim N(0, \sigma_t^2)`. The features (an MLP with tanh after every layer) are shared; they and
    the two variances of each source task minimise the *summed* negative log evidence of the source tasks, exactly, by
    L-BFGS from ``starts`` random initialisations, of which the greatest evidence wins. A new task keeps the features
    and learns its own two variances by its own evidence. Targets are scaled by each task's standard deviation.

    Args:
        tasks: The source tasks.
        widths: Widths of the feature network, input first.
        starts: Random initialisations.
        steps: L-BFGS iterations a start.
        seed: For the initialisations.
        progress: Whether to show a progress bar.

    References:
        Perrone, Jenatton, Seeger and Archambeau, "Scalable Hyperparameter Transfer Learning" (NeurIPS 2018), section 3.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        widths: Sequence[int] = (1, 40, 40, 100),
        starts: int = 3,
        steps: int = 200,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        data = [_tensors(x, y) for x, y in tasks]
        scaled = [(x, y / _scale(y)) for x, y in data]
        self.negative_log_evidence = math.inf
        for start in tqdm(range(starts), desc="ABLR features", disable=not progress, leave=False):
            net = _network(widths, 1000 * seed + start)
            logs = _variances(len(scaled))

            def loss(net: nn.Module = net, logs: Tensor = logs) -> Tensor:
                return torch.stack(
                    [_negative_log_evidence(net(x), y, log) for (x, y), log in zip(scaled, logs, strict=True)]
                ).sum()

            reached = _minimise(loss, [*net.parameters(), logs], steps)
            if reached < self.negative_log_evidence:
                self.negative_log_evidence, self.features = reached, net

    def predict(self, x: ArrayLike, y: ArrayLike, new_x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Adapt to the task (x, y) and predict.

        Args:
            x: Inputs of the new task, (n, d).
            y: Its targets, (n,).
            new_x: Where to predict, (m, d).

        Returns:
            Mean and standard deviation of observations, each (m,).
        """
        inputs, targets = _tensors(x, y)
        scale = _scale(targets)
        targets = targets / scale
        with torch.no_grad():
            phi = self.features(inputs)
            new = self.features(torch.as_tensor(np.asarray(new_x), dtype=torch.float64))
        fits = []
        for start in (-4.0, 0.0, 4.0):  # only two numbers to learn: several starts cost nothing
            logs = _variances(1, prior=start)

            def loss(logs: Tensor = logs) -> Tensor:
                return _negative_log_evidence(phi, targets, logs[0])

            fits.append((_minimise(loss, [logs], 100), logs.detach()[0]))
        prior, noise = _bounded(min(fits, key=lambda fit: fit[0])[1])
        factor = torch.linalg.cholesky(_covariance(phi, prior, noise))
        cross = prior * phi @ new.T
        mean = cross.T @ torch.cholesky_solve(targets[:, None], factor)[:, 0]
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        variance = prior * (new**2).sum(1) + noise - (half**2).sum(0)
        return (mean * scale).numpy(), (variance.sqrt() * scale).numpy()


def _network(widths: Sequence[int], seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pairs = itertools.pairwise(widths)
        return nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh()))).double()


def _variances(tasks: int, prior: float = 0.0) -> Tensor:
    """Starting values of each task's unbounded logarithms of the prior and of the noise variance, (tasks, 2)."""
    return torch.tensor([[prior, math.log(1e-2)]] * tasks, dtype=torch.float64, requires_grad=True)


def _bounded(log: Tensor) -> tuple[Tensor, Tensor]:
    cap = PRIOR_DECADES * math.log(10.0)
    return (cap * torch.tanh(log[0] / cap)).exp(), log[1].exp() + NOISE_FLOOR


def _covariance(phi: Tensor, prior: Tensor, noise: Tensor) -> Tensor:
    return prior * phi @ phi.T + noise * torch.eye(len(phi), dtype=phi.dtype)


def _negative_log_evidence(phi: Tensor, y: Tensor, log: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(_covariance(phi, *_bounded(log)))
    half: Tensor = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    return 0.5 * (half**2).sum() + factor.diagonal().log().sum() + 0.5 * len(y) * math.log(2.0 * math.pi)


def _scale(y: Tensor) -> float:
    return float(y.std()) or 1.0


def _tensors(x: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor]:
    inputs, targets = (torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in (x, y))
    if inputs.ndim != 2 or targets.shape != inputs.shape[:1]:
        raise ValueError(f"got x {tuple(inputs.shape)} and y {tuple(targets.shape)}, expected (n, d) and (n,)")
    return inputs, targets


def _minimise(loss: Callable[[], Tensor], parameters: Sequence[Tensor], steps: int) -> float:
    """L-BFGS with a strong Wolfe line search; leaves the parameters at the end and gives the loss there."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(loss())
