"""The methods that the malaria experiment compares, all on the same split and labels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from experiments import tangent_and_rbf
from experiments.adaptation import Average, weigh
from experiments.baselines import (
    FineTuned,
    RBFKernel,
    features_of,
    fine_tune,
    fine_tune_grid,
    fit_rbf,
    last_layer,
    rbf_gp,
)
from experiments.malaria_task import Settings, Split

__all__ = ["Answer", "Methods"]


class Answer(NamedTuple):
    """A method's prediction of the test pixels: mean and standard deviation of observations, in source units."""

    method: str
    mean: np.ndarray
    std: np.ndarray
    details: dict[str, Any]


class Methods:
    """Every method on one split; what was learned from ``max_hyper`` labels is kept for the larger, nested sets.

    Args:
        net: The source network.
        parts: The split.
        settings: All settings.
        seed: For the methods that draw.
    """

    def __init__(self, net: nn.Sequential, parts: Split, settings: Settings, seed: int) -> None:
        self._net, self._parts, self._settings, self._seed = net, parts, settings, seed
        self._test = parts.inputs[parts.test]
        self._learned: dict[str, tuple[Any, float]] = {}
        with torch.no_grad():
            self._before = net(self._test)[:, 0].double().numpy()
            residual = net(parts.inputs[parts.source])[:, 0].double() - parts.before[parts.source]
        self._source_std = float(residual.square().mean().sqrt())

    def answers(self, n: int) -> Iterator[Answer]:
        """What each method says after n labels.

        Seconds are CPU seconds of one thread, the learning of hyper-parameters that were kept included: other work on
        the machine does not change them.

        Without adaptation the standard deviation is that of the source network's residuals on its training pixels.
        """
        yield Answer("no adaptation", self._before, np.full(len(self._before), self._source_std), {"seconds": 0.0})
        labels = self._parts.pool[:n]
        x, y = self._parts.inputs[labels], self._parts.after[labels]
        for name, method in {
            "last layer": self._last_layer,
            "fine-tuning": self._fine_tuning,
            "RBF GP": self._rbf,
            "Jacana": self.jacana,
            "Jacana + RBF": self._tangent_and_rbf,
        }.items():
            kept = self._learned[name][1] if n > self._settings.max_hyper and name in self._learned else 0.0
            start = time.process_time()
            mean, std, details = method(x, y)
            yield Answer(name, mean, std, {"seconds": time.process_time() - start + kept, **details})

    def jacana(self, x: Tensor, y: Tensor, at: Tensor | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Jacana at the test pixels, or at others."""
        average: Average = self._learn("Jacana", x, y, lambda a, b: weigh(self._net, a, b, self._settings.candidates()))
        # Candidates that are still equally probable after max_hyper labels predict the same: one of them is enough.
        best = len(x) > self._settings.max_hyper
        mean, std = average.predict(x, y, self._test if at is None else at, best=best)
        return mean, std, average.summary()

    def _learn(self, name: str, x: Tensor, y: Tensor, learn: Callable[[Tensor, Tensor], Any]) -> Any:
        """What ``learn`` makes of at most ``max_hyper`` labels: from now, or from before where the labels are more."""
        most = self._settings.max_hyper
        if len(x) <= most or name not in self._learned:
            start = time.process_time()
            found = learn(x[:most], y[:most])
            self._learned[name] = (found, time.process_time() - start)
        return self._learned[name][0]

    def _last_layer(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        mean, std = last_layer(features_of(self._net, x), y.numpy(), features_of(self._net, self._test))
        return mean[:, 0], std[:, 0], {}

    def _fine_tuning(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """The standard deviation is the root of the cross-validated squared error at the choice."""
        own = self._settings

        def tune(x: Tensor, y: Tensor) -> FineTuned:
            return fine_tune(
                self._net,
                x,
                y.float()[:, None],
                loss=mse_loss,
                rates=own.tune_rates,
                steps=own.tune_steps if len(x) >= own.tune_long_from else own.tune_steps[:-1],
                batch_size=own.tune_batch,
                folds=own.tune_folds,
                seed=self._seed,
            )

        tuned: FineTuned = self._learn("fine-tuning", x, y, tune)
        net, choice = tuned.net, (tuned.rate, tuned.steps)
        if len(x) > own.max_hyper:
            grid = fine_tune_grid(
                self._net,
                x,
                y.float()[:, None],
                loss=mse_loss,
                rates=[tuned.rate],
                steps=[tuned.steps],
                batch_size=own.tune_batch,
                seed=self._seed,
            )
            net = grid[choice]
        with torch.no_grad():
            mean = net(self._test)[:, 0].double().numpy()
        return mean, np.full(len(mean), tuned.scores[choice] ** 0.5), {"rate": tuned.rate, "steps": tuned.steps}

    def _rbf(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        before: RBFKernel | None = self._learned.get("RBF GP", (None, 0.0))[0]

        def learn(x: Tensor, y: Tensor) -> RBFKernel:
            return fit_rbf(x.double().numpy(), y.numpy(), seed=self._seed, start=before)

        kernel: RBFKernel = self._learn("RBF GP", x, y, learn)
        mean, std = rbf_gp(x.double().numpy(), y.numpy(), self._test.double().numpy(), kernel=kernel)
        return mean, std, {"kernel": dataclasses.asdict(kernel)}

    def _tangent_and_rbf(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        both: tangent_and_rbf.TangentAndRBF = self._learn(
            "Jacana + RBF", x, y, lambda a, b: tangent_and_rbf.fit(self._net, a, b)
        )
        return *both.predict(x, y, self._test), both.summary()
