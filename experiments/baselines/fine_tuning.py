"""Full fine-tuning of a classifier: stochastic gradient descent with momentum, rate and length by cross-validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["Descent", "Score", "Snapshot", "best", "folds_of", "outputs_of", "score"]


@dataclass(frozen=True)
class Snapshot:
    """A tuned copy of the network in evaluation mode, and the CPU seconds of the run until then."""

    net: nn.Module
    seconds: float


@dataclass(frozen=True, order=True)
class Score:
    """How good logits are: the greater accuracy wins, among equal ones the greater mean log-probability."""

    accuracy: float
    log_probability: float


@dataclass(frozen=True)
class Descent:
    r"""Stochastic gradient descent on the mean cross-entropy of all parameters.

    The network stays in evaluation mode: batch normalisation keeps its statistics, and its scales and shifts are
    trained with everything else. A run repeats itself bit for bit, and leaves torch's generators alone.

    Args:
        rates: Learning rates to choose from; a rate is held for the whole run.
        epochs: Numbers of passes over the examples to choose from, all of one run.
        batch_size: Examples a step at most; the batches of an epoch differ by one example in size at most.
        momentum: Of the steps.
    """

    rates: tuple[float, ...]
    epochs: tuple[int, ...]
    batch_size: int = 32
    momentum: float = 0.9

    def run(self, net: nn.Module, x: Tensor, labels: Tensor, rate: float, seed: int) -> dict[int, Snapshot]:
        """Tune a copy at one rate; a copy of it at each of ``epochs``.

        Args:
            net: The source network; never touched.
            x: Images, examples first.
            labels: Their classes, (n,).
            rate: Learning rate.
            seed: Of the batches.
        """
        start = time.process_time()
        generator = torch.Generator().manual_seed(seed)
        tuned = copy.deepcopy(net).eval()
        optimizer = torch.optim.SGD(tuned.parameters(), lr=rate, momentum=self.momentum)
        batches, found = math.ceil(len(x) / self.batch_size), {}
        with torch.enable_grad():
            for epoch in range(1, max(self.epochs) + 1):
                for batch in torch.randperm(len(x), generator=generator).tensor_split(batches):
                    optimizer.zero_grad(set_to_none=True)
                    cross_entropy(tuned(x[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                if epoch in self.epochs:
                    optimizer.zero_grad(set_to_none=True)  # a copy keeps no gradients
                    found[epoch] = Snapshot(copy.deepcopy(tuned), time.process_time() - start)
        return found

    def cross_validate(
        self, net: nn.Module, x: Tensor, labels: Tensor, folds: int, seed: int
    ) -> dict[tuple[float, int], Score]:
        """The score of each (rate, epochs) on all examples, each predicted by a run that never saw it.

        Costs ``(folds - 1) * len(rates) * max(epochs)`` passes over the examples.

        Args:
            net: The source network; never touched.
            x: Images, examples first.
            labels: Their classes, (n,).
            folds: Stratified folds; fewer where a class has fewer examples.
            seed: Of the folds and the batches.

        Raises:
            ValueError: A class has one example.
        """
        logits: dict[tuple[float, int], list[Tensor]] = {(rate, n): [] for rate in self.rates for n in self.epochs}
        order: list[Tensor] = []
        splitter = StratifiedKFold(folds_of(labels, folds), shuffle=True, random_state=seed)
        for fitted, held in splitter.split(np.zeros(len(labels)), labels.numpy()):
            some, others = torch.from_numpy(fitted), torch.from_numpy(held)
            order.append(others)
            for rate in self.rates:
                for n, snapshot in self.run(net, x[some], labels[some], rate, seed).items():
                    logits[rate, n].append(outputs_of(snapshot.net, x[others]))
        truth = labels[torch.cat(order)]
        return {choice: score(torch.cat(parts), truth) for choice, parts in logits.items()}


def best(scores: Mapping[tuple[float, int], Score]) -> tuple[float, int]:
    """The rate and the epochs of the greatest score; of equal ones the first."""
    return max(scores, key=lambda choice: scores[choice])


def score(logits: Tensor, labels: Tensor) -> Score:
    """Accuracy and mean log-probability of the labels; the worst there is where a run diverged."""
    if not logits.isfinite().all():
        return Score(0.0, -math.inf)
    right = (logits.argmax(dim=1) == labels).double().mean()
    return Score(float(right), -float(cross_entropy(logits, labels)))


def folds_of(labels: Tensor, most: int) -> int:
    """As many folds as asked for, or as the rarest class has examples.

    Raises:
        ValueError: It has one.
    """
    fewest = int(np.unique(labels.numpy(), return_counts=True)[1].min())
    if fewest < 2:
        raise ValueError("labels: got a class with one example, expected 2 or more to cross-validate; label another.")
    return min(most, fewest)


def outputs_of(net: nn.Module, x: Tensor, block: int = 250) -> Tensor:
    """The network's outputs (n, c) in float64, some images at a time."""
    with torch.no_grad():
        return torch.cat([net(part).double() for part in torch.split(x, block)])
