"""The task of the malaria experiment: its settings, how pixels are divided, and the source network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from experiments.adaptation import Setting
from experiments.data import MalariaMap

__all__ = ["QUICK", "Settings", "Split", "split", "train"]


@dataclass(frozen=True)
class Settings:
    """Every number that decides the results.

    Attributes:
        sizes: Labels of 2016; more than there are stand for all that are left.
        max_hyper: Hyper-parameters of every method come from at most so many labels (nested in the larger sets); a
            method that is exact is then exact on all labels.
        source_steps: Adam steps of the source training, with a rate that falls along a cosine.
        tune_steps: Numbers of steps that fine-tuning chooses from; the last one only from ``tune_long_from`` labels.
        bias_prior: One candidate prior lets the output bias, the level of the map, change so many times more than
            the other weights.
    """

    countries: tuple[str, ...] = ("BFA", "CMR")
    width: int = 500
    source_points: int = 2000
    test_points: int = 5000
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000, 5000, 10**6)
    max_hyper: int = 2000
    source_steps: int = 5000
    source_rate: float = 3e-3
    source_batch: int = 200
    tune_rates: tuple[float, ...] = (3e-4, 1e-3)
    tune_steps: tuple[int, ...] = (100, 300, 1000, 3000)
    tune_long_from: int = 1000
    tune_batch: int = 64
    tune_folds: int = 3
    bias_prior: float = 10.0

    def candidates(self) -> list[Setting]:
        """What the evidence weighs: the network's output or zero as mean, a wide bias or not, all or the head."""
        priors: dict[str, float | dict[str, float]] = {"": 1.0, ", wide bias": {"": 1.0, "4.bias": self.bias_prior}}
        return [
            Setting(f"{mean} mean{note}{which}", mean, prior, parameters)
            for mean in ("network", "zero")
            for note, prior in priors.items()
            for which, parameters in (("", None), (", head alone", "4"))
        ]


QUICK = Settings(
    width=60, source_points=500, test_points=1000, sizes=(50, 200), source_steps=1000, tune_steps=(30, 100, 300)
)


@dataclass(frozen=True)
class Split:
    """One seed's pixels of a country, standardised by the source: no pixel is in two of the three parts.

    Attributes:
        inputs: All pixels' positions, (n, 2), source mean 0 and standard deviation 1.
        before: Parasite rate of the source year in source units, (n,).
        after: The same of the target year.
        source: Pixels of the source training.
        test: Pixels that every figure is of.
        pool: The others in random order: the first n are the labels of every method.
        scale: Standard deviation of the source targets, a source unit.
        centre: Their mean.
    """

    inputs: Tensor
    before: Tensor
    after: Tensor
    source: np.ndarray
    test: np.ndarray
    pool: np.ndarray
    scale: float
    centre: float


def split(pixels: MalariaMap, settings: Settings, seed: int) -> Split:
    """Divide the pixels at random and standardise them with the source's statistics."""
    order = np.random.default_rng(seed).permutation(len(pixels.position))
    source, test, pool = np.split(order, np.cumsum([settings.source_points, settings.test_points]))
    place, rate = pixels.position[source], pixels.source[source]
    inputs = (pixels.position - place.mean(axis=0)) / place.std(axis=0)
    centre, scale = float(rate.mean()), float(rate.std())
    before, after = (torch.as_tensor((year - centre) / scale) for year in (pixels.source, pixels.target))
    return Split(torch.as_tensor(inputs, dtype=torch.float32), before, after, source, test, pool, scale, centre)


def train(parts: Split, settings: Settings, seed: int) -> nn.Sequential:
    """Train the source network, 2-500-500-1 with tanh, on pixels of the source year."""
    width = settings.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    generator = torch.Generator().manual_seed(seed)
    x, y = parts.inputs[parts.source], parts.before[parts.source, None].float()
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.source_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.source_steps)
    for _ in range(settings.source_steps):
        batch = torch.randint(len(x), (settings.source_batch,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        mse_loss(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval()
