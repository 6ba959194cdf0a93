"""Full fine-tuning with Adam, its rate and length chosen by cross-validation on the target labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["FineTuned", "Loss", "fine_tune", "fine_tune_grid"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of outputs against targets."""


@dataclass(frozen=True)
class FineTuned:
    """A tuned network and how it was chosen.

    Attributes:
        net: A tuned copy, in evaluation mode.
        rate: The learning rate that cross-validation chose.
        steps: The number of Adam steps that it chose.
        scores: Mean held-out loss an example of each (rate, steps). With a squared loss its root at the choice is an
            honest standard deviation of observations, in the loss's units.
    """

    net: nn.Module
    rate: float
    steps: int
    scores: dict[tuple[float, int], float]


def fine_tune(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss,
    rates: Sequence[float],
    steps: Sequence[int],
    batch_size: int,
    folds: int,
    seed: int,
) -> FineTuned:
    """Fine-tune a copy of ``net`` on all its parameters; nothing but the target labels is looked at.

    Costs ``folds * len(rates) * max(steps)`` steps for the choice and at most ``max(steps)`` for the result.

    Args:
        net: The source network; never touched.
        x: Inputs, examples first.
        y: Targets for ``loss``.
        loss: Mean loss, for example `torch.nn.functional.mse_loss`.
        rates: Learning rates to choose from.
        steps: Numbers of steps to choose from; 0 stands for the source network itself.
        batch_size: Examples a step (all, where there are fewer).
        folds: Folds of the cross-validation.
        seed: For folds and batches.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(x), generator=generator).tensor_split(min(folds, len(x)))
    scores = dict.fromkeys(((rate, count) for rate in rates for count in steps), 0.0)
    for at, held in enumerate(parts):
        rest = torch.cat([part for other, part in enumerate(parts) if other != at])
        for rate in rates:
            for count, tuned in _snapshots(net, x[rest], y[rest], loss, rate, steps, batch_size, seed):
                with torch.no_grad():
                    scores[rate, count] += float(loss(tuned(x[held]), y[held])) * len(held) / len(x)
    rate, count = min(scores, key=lambda key: scores[key] if scores[key] == scores[key] else float("inf"))
    ((_, tuned),) = _snapshots(net, x, y, loss, rate, [count], batch_size, seed)
    return FineTuned(tuned, rate, count, scores)


def fine_tune_grid(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss,
    rates: Sequence[float],
    steps: Sequence[int],
    batch_size: int,
    seed: int,
) -> dict[tuple[float, int], nn.Module]:
    """Every (rate, steps) of the grid trained on all labels: one run a rate, with snapshots.

    With the same seed the network at `fine_tune`'s choice is `fine_tune`'s network. Use it to show what the best of
    the grid *on the test set* would have reached, which no honest user can choose.
    """
    return {
        (rate, count): tuned
        for rate in rates
        for count, tuned in _snapshots(net, x, y, loss, rate, steps, batch_size, seed)
    }


def _snapshots(
    net: nn.Module, x: Tensor, y: Tensor, loss: Loss, rate: float, steps: Sequence[int], batch_size: int, seed: int
) -> list[tuple[int, nn.Module]]:
    """One Adam run on a copy; copies in evaluation mode at each number of steps."""
    wanted, found = set(steps), []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)  # dropout and its like draw from here; the caller's generator is put back
        tuned = copy.deepcopy(net).train()
        optimizer = torch.optim.Adam(tuned.parameters(), lr=rate, fused=True)  # a third faster on a CPU, too
        batches = _batches(len(x), batch_size, torch.Generator().manual_seed(seed))
        for step in range(max(wanted) + 1):
            if step in wanted:
                found.append((step, copy.deepcopy(tuned).eval()))
            if step < max(wanted):
                batch = next(batches)
                optimizer.zero_grad(set_to_none=True)
                loss(tuned(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return found


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end: a fresh permutation each epoch, the short batch at its end left out."""
    size = min(size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]
