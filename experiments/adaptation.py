"""Jacana as the experiments use it: what is left open is settled by the evidence of the target labels, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import jacana

__all__ = ["NEGLIGIBLE", "NOISE_FLOOR", "Average", "Candidate", "Setting", "weigh"]

NOISE_FLOOR = 1e-3
"""Learned noise is at least so many standard deviations of the labels, here as in the baselines.

Ten labels that happen to lie on a smooth curve have the greatest evidence without any noise at all.
"""

NEGLIGIBLE = 0.01
"""Candidates with less than this share of the probability are left out of an average."""


@dataclass(frozen=True)
class Setting:
    """One candidate for what the evidence does not learn as a number.

    Attributes:
        name: For tables and records.
        mean: "network" or "zero".
        prior: The shape of the prior, which the evidence scales: a number, or a mapping of name prefixes.
        parameters: What is linearized, by name prefix; None for all.
    """

    name: str
    mean: str
    prior: float | Mapping[str, float] = 1.0
    parameters: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A setting with its numbers learned, and the log marginal likelihood that it reaches."""

    setting: Setting
    gp: jacana.TangentGP
    likelihood: jacana.Gaussian
    log_evidence: float


@dataclass(frozen=True)
class Average:
    """Candidates by evidence, the most probable first: Bayesian model averaging with equal prior probabilities.

    With fifty labels no candidate is much more probable than the next, and to bet on one costs more than to average.

    Attributes:
        candidates: The candidates.
        labels: How many labels decided.
    """

    candidates: tuple[Candidate, ...]
    labels: int

    @property
    def weights(self) -> np.ndarray:
        """The probability of each candidate given the labels."""
        evidences = np.array([candidate.log_evidence for candidate in self.candidates])
        weights = np.exp(evidences - evidences.max())
        return weights / weights.sum()

    def predict(
        self, x: Tensor, y: Tensor, at: Tensor, *, method: Any = None, best: bool = False, block: int = 2500
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of observations under the average of the exact posteriors.

        Args:
            x: Labelled inputs: those that decided, or more.
            y: Their labels, (n,).
            at: Inputs to predict, (m, ...).
            method: How to condition, `jacana.FunctionSpace` or `jacana.WeightSpace`; None for the cheaper.
            best: Whether to condition the most probable candidate alone.
            block: Inputs predicted at once, which bounds the memory.
        """
        count = 1 if best else int((self.weights >= NEGLIGIBLE).sum())
        weights = self.weights[:count] / self.weights[:count].sum()
        centre, first, second = np.zeros(len(at)), np.zeros(len(at)), np.zeros(len(at))
        for weight, candidate in zip(weights, self.candidates, strict=False):
            posterior = candidate.gp.condition(x, y, likelihood=candidate.likelihood, method=method)
            predictions = [posterior.predict(part, observed=True) for part in torch.split(at, block)]
            mean = torch.cat([prediction.mean for prediction in predictions]).numpy()
            variance = torch.cat([prediction.variance for prediction in predictions]).numpy()
            # Deviations from the first mean: the spread between candidates is not a difference of large numbers.
            if candidate is self.candidates[0]:
                centre = mean
            first += weight * (mean - centre)
            second += weight * (variance + (mean - centre) ** 2)
        return centre + first, np.sqrt(second - first**2)

    def summary(self) -> dict[str, Any]:
        """Weights and the most probable candidate's numbers, for a record."""
        best = self.candidates[0]
        return {
            "setting": best.setting.name,
            "weights": {c.setting.name: float(w) for c, w in zip(self.candidates, self.weights, strict=True)},
            "log_evidence": best.log_evidence,
            "labels_for_hyper_parameters": self.labels,
            "prior_std": best.gp.prior_std,
            "noise_std": float(best.likelihood.noise_std),
        }


def weigh(net: nn.Module, x: Tensor, y: Tensor, settings: Sequence[Setting]) -> Average:
    """Learn every candidate's prior scale and noise by evidence, and weigh the candidates by the evidence they reach.

    Args:
        net: The source network.
        x: Target inputs, examples first.
        y: Target labels, (n,).
        settings: The candidates.
    """
    floor = NOISE_FLOOR * float(y.std())
    linearizations = {
        part: jacana.linearize(net, parameters=part) for part in {setting.parameters for setting in settings}
    }
    candidates = []
    for setting in settings:
        linearization = linearizations[setting.parameters]
        prior = jacana.TangentGP(linearization, prior_std=setting.prior, mean=setting.mean, progress=False)
        gp, likelihood = jacana.maximize_evidence(prior, x, y)
        if float(likelihood.noise_std) < floor:
            gp, likelihood = jacana.maximize_evidence(prior, x, y, noise_std=floor)
        evidence = gp.condition(x, y, likelihood=likelihood).log_evidence
        candidates.append(Candidate(setting, gp, likelihood, evidence))
    return Average(tuple(sorted(candidates, key=lambda c: -c.log_evidence)), len(x))
