"""Jacana as the experiments use it: every setting that is left open is chosen by the evidence of the target labels."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import jacana

__all__ = ["Adapted", "Setting", "adapt"]


@dataclass(frozen=True)
class Setting:
    """One candidate for what the evidence does not learn by itself.

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
class Adapted:
    """An adapted network and how its settings were chosen.

    Attributes:
        posterior: The exact posterior given all target labels.
        setting: The candidate with the greatest evidence.
        log_evidences: The log marginal likelihood of each candidate, on the labels that hyper-parameters came from.
        labels_used: How many labels those were.
        prior_std: The learned prior, in the network's own parameters.
        noise_std: The learned noise, in the units of the targets.
        seconds: Wall time of all of this.
    """

    posterior: jacana.Posterior
    setting: Setting
    log_evidences: dict[str, float]
    labels_used: int
    prior_std: Any
    noise_std: float
    seconds: float

    def predict(self, x: Tensor, *, block: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of observations, each (m,), in blocks of inputs that bound the memory."""
        parts = [self.posterior.predict(part, observed=True) for part in x.split(block)]
        return torch.cat([part.mean for part in parts]).numpy(), torch.cat([part.std for part in parts]).numpy()

    def summary(self) -> dict[str, Any]:
        """The choice, for a record."""
        return {
            "setting": self.setting.name,
            "log_evidences": self.log_evidences,
            "labels_used_for_hyper_parameters": self.labels_used,
            "prior_std": self.prior_std,
            "noise_std": self.noise_std,
        }


def adapt(net: nn.Module, x: Tensor, y: Tensor, *, settings: Sequence[Setting], max_hyper: int = 2000) -> Adapted:
    """Learn the scales of every candidate, keep the one with the greatest evidence, condition it on all labels.

    Args:
        net: The source network.
        x: Target inputs, examples first.
        y: Target labels, (n,).
        settings: The candidates.
        max_hyper: Scales and choice come from the first ``max_hyper`` labels; the posterior is exact on all of them.
    """
    start = time.perf_counter()
    linearization = jacana.linearize(net)
    some = slice(max_hyper)
    fits = []
    for setting in settings:
        prior = jacana.TangentGP(linearization, prior_std=setting.prior, mean=setting.mean, progress=False)
        gp, likelihood = jacana.maximize_evidence(prior, x[some], y[some], prior_std=setting.scales)
        posterior = gp.condition(x[some], y[some], likelihood=likelihood)
        fits.append((posterior.log_evidence, setting, gp, likelihood, posterior))
    _, setting, gp, likelihood, posterior = max(fits, key=lambda fit: fit[0])
    if len(x) > max_hyper:
        posterior = gp.condition(x, y, likelihood=likelihood)
    return Adapted(
        posterior=posterior,
        setting=setting,
        log_evidences={fit[1].name: fit[0] for fit in fits},
        labels_used=min(len(x), max_hyper),
        prior_std=gp.prior_std,
        noise_std=float(likelihood.noise_std),
        seconds=time.perf_counter() - start,
    )
