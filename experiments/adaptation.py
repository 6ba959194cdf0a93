"""Jacana as the experiments use it: what is left open is chosen by the evidence of the target labels, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import jacana

__all__ = ["NOISE_FLOOR", "Chosen", "Setting", "choose", "predict"]

NOISE_FLOOR = 1e-3
"""Learned noise is at least so many standard deviations of the labels, here as in the baselines.

Ten labels that happen to lie on a smooth curve have the greatest evidence without any noise at all.
"""


@dataclass(frozen=True)
class Setting:
    """One candidate for what the evidence does not learn as a number.

    Attributes:
        name: For tables and records.
        mean: "network" or "zero".
        prior: The shape of the prior, which the evidence scales: a number, or a mapping of name prefixes.
        scales: "shared" learns one factor on the prior, "layers" one a layer.
    """

    name: str
    mean: str
    prior: float | Mapping[str, float] = 1.0
    scales: str = "shared"


@dataclass(frozen=True)
class Chosen:
    """The candidate with the greatest evidence, its numbers learned.

    Attributes:
        setting: The candidate.
        gp: The model with the learned prior.
        likelihood: The learned noise.
        log_evidences: The log marginal likelihood of every candidate.
        labels: How many labels decided.
    """

    setting: Setting
    gp: jacana.TangentGP
    likelihood: jacana.Gaussian
    log_evidences: dict[str, float]
    labels: int

    def condition(self, x: Tensor, y: Tensor, method: Any = None) -> jacana.Posterior:
        """The exact posterior given labels: those that decided, or more."""
        return self.gp.condition(x, y, likelihood=self.likelihood, method=method)

    def summary(self) -> dict[str, Any]:
        """The choice, for a record."""
        return {
            "setting": self.setting.name,
            "log_evidences": self.log_evidences,
            "labels_for_hyper_parameters": self.labels,
            "prior_std": self.gp.prior_std,
            "noise_std": float(self.likelihood.noise_std),
        }


def choose(net: nn.Module, x: Tensor, y: Tensor, settings: Sequence[Setting]) -> Chosen:
    """Learn the scales of every candidate and keep the one under which the labels are most probable.

    Args:
        net: The source network.
        x: Target inputs, examples first.
        y: Target labels, (n,).
        settings: The candidates.
    """
    linearization = jacana.linearize(net)
    candidates = []
    for setting in settings:
        prior = jacana.TangentGP(linearization, prior_std=setting.prior, mean=setting.mean, progress=False)
        gp, likelihood = jacana.maximize_evidence(prior, x, y, prior_std=setting.scales)
        floor = NOISE_FLOOR * float(y.std())
        if float(likelihood.noise_std) < floor:
            gp, likelihood = jacana.maximize_evidence(prior, x, y, prior_std=setting.scales, noise_std=floor)
        candidates.append((gp.condition(x, y, likelihood=likelihood).log_evidence, setting, gp, likelihood))
    _, setting, gp, likelihood = max(candidates, key=lambda candidate: candidate[0])
    return Chosen(
        setting=setting,
        gp=gp,
        likelihood=likelihood,
        log_evidences={candidate[1].name: candidate[0] for candidate in candidates},
        labels=len(x),
    )


def predict(posterior: jacana.Posterior, x: Tensor, *, block: int = 2500) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of observations, each (m,), in blocks of inputs that bound the memory."""
    predictions = [posterior.predict(part, observed=True) for part in torch.split(x, block)]
    mean = torch.cat([prediction.mean for prediction in predictions])
    std = torch.cat([prediction.std for prediction in predictions])
    return mean.numpy(), std.numpy()
