"""Sinusoids: a network learns one curve, then meets new curves with ten points each.

The task of section 5 of Maddox et al. 2021 (arXiv 2103.01439), which has pictures of it and no figures. A curve is
``y = A sin(w x + b) + 0.01 A e`` with A from U(0.1, 5), b from U(0, 2 pi), w from U(0.5, 2) and x from U(-5, 5). Run:

    python -m experiments.sinusoids [--out DIR] [--quick] [--seeds N] [--workers N]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

import jacana
from experiments import command, metrics, plots
from experiments.adaptation import NOISE_FLOOR, Setting, weigh
from experiments.baselines import ABLR, rbf_gp
from experiments.parallel import each
from experiments.sinusoids_report import plot, show, table

__all__ = ["Curve", "Settings", "draw", "main", "run", "run_seed", "train"]


@dataclass(frozen=True)
class Settings:
    """Every number that decides the results; those of the paper where it states them.

    Attributes:
        seeds: Source curves, each with its own network.
        tasks: New curves a source.
        points: Labels a curve, the source's included.
        test_points: Points a new curve that the figures are of.
        epochs: Of the source training, stochastic gradient descent with the three numbers below.
        ablr_sources: Source curves that ABLR learns its features from: the one that the network had, and many.
        ablr_starts: Initialisations of its features, of which the greatest evidence is kept.
        ablr_steps: L-BFGS iterations of each.
    """

    seeds: int = 5
    tasks: int = 20
    points: int = 10
    test_points: int = 200
    epochs: int = 2500
    batch_size: int = 3
    rate: float = 1e-3
    momentum: float = 0.9
    ablr_sources: tuple[int, ...] = (1, 20)
    ablr_starts: int = 3
    ablr_steps: int = 200


DRAWN = 3
"""Tasks of the first seed that the picture shows."""

CANDIDATES = (Setting("network mean", "network"), Setting("zero mean", "zero"))
"""One prior scale and the noise are learned; both means are weighed by their evidence."""


@dataclass(frozen=True)
class Curve:
    """One task: amplitude, frequency, phase, labelled points, and points to be tested on (noise included)."""

    amplitude: float
    frequency: float
    phase: float
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The curve itself, without noise, at x (n, 1)."""
        return self.amplitude * np.sin(self.frequency * x[:, 0] + self.phase)


def draw(rng: np.random.Generator, points: int, test_points: int) -> Curve:
    """Draw a task as the paper does."""
    amplitude, phase, frequency = rng.uniform(0.1, 5.0), rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.5, 2.0)
    x = rng.uniform(-5.0, 5.0, (points + test_points, 1))
    noise = 0.01 * amplitude * rng.normal(size=len(x))
    y = amplitude * np.sin(frequency * x[:, 0] + phase) + noise
    return Curve(amplitude, frequency, phase, x[:points], y[:points], x[points:], y[points:])


def train(curve: Curve, settings: Settings, seed: int) -> nn.Sequential:
    """Train the source network, 1-40-40-1 with tanh, on one curve."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    generator = torch.Generator().manual_seed(seed)
    x, y = _tensor(curve.x), _tensor(curve.y)[:, None]
    optimizer = torch.optim.SGD(net.parameters(), lr=settings.rate, momentum=settings.momentum)
    for _ in range(settings.epochs):
        for batch in torch.split(torch.randperm(len(x), generator=generator), settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


def run(settings: Settings, *, progress: bool = True, workers: int | None = None) -> dict[str, Any]:
    """Every source, every task, every method.

    Returns:
        ``tasks``, a row a task and method; ``table``, the means over seeds; ``spaces_differ_by``, the largest
        difference between function and weight space; ``picture``, what the plot shows.
    """
    parts = each(
        run_seed,
        [(settings, seed) for seed in range(settings.seeds)],
        ticks=settings.seeds * (1 + settings.tasks),
        description="sinusoids",
        progress=progress,
        workers=workers,
    )
    rows = [row for part in parts for row in part["tasks"]]
    return {
        "tasks": rows,
        "table": table(rows),
        "spaces_differ_by": {key: max(part["differ"][key] for part in parts) for key in parts[0]["differ"]},
        "picture": parts[0]["picture"],
    }


def run_seed(job: tuple[Settings, int], tick: Callable[[], None]) -> dict[str, Any]:
    """One source curve and all its tasks.

    Args:
        job: The settings and the seed.
        tick: Called after the training and after each task.
    """
    with threadpool_limits(1):  # torch has one thread here already; this is numpy's and scipy's
        return _seed(*job, tick)


def _seed(settings: Settings, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    source = draw(rng, settings.points, settings.test_points)
    others = [draw(rng, settings.points, 0) for _ in range(max(settings.ablr_sources) - 1)]
    net = train(source, settings, seed)
    ablr = {
        count: ABLR(
            [(curve.x, curve.y) for curve in [source, *others][:count]],
            starts=settings.ablr_starts,
            steps=settings.ablr_steps,
            seed=seed,
        )
        for count in settings.ablr_sources
    }
    tick()
    rows: list[dict[str, Any]] = []
    drawings, differences = [], []
    for task in range(settings.tasks):
        curve = draw(rng, settings.points, settings.test_points)
        methods = _methods(net, curve, ablr, seed)
        answers = {name: _timed(method, curve.test_x) for name, method in methods.items()}
        for name, (mean, std, seconds) in answers.items():
            rows.append({"seed": seed, "task": task, "method": name, **_figures(curve, mean, std, seconds)})
        differences.append(_difference(answers))
        if seed == 0 and task < DRAWN:
            drawings.append(_drawing(net, curve, methods))
        tick()
    differ = {key: max(found[key] for found in differences) for key in differences[0]}
    return {"tasks": rows, "differ": differ, "picture": drawings}


Method = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _methods(net: nn.Module, curve: Curve, ablr: dict[int, ABLR], seed: int) -> dict[str, Method]:
    """Each method as a function from new inputs to means and standard deviations of observations."""
    x, y = _tensor(curve.x), torch.as_tensor(curve.y)

    def adapted(method: Any) -> Method:
        return lambda new_x: weigh(net, x, y, CANDIDATES).predict(x, y, _tensor(new_x), method=method)

    methods: dict[str, Method] = {
        "Jacana, function space": adapted(jacana.FunctionSpace()),
        "Jacana, weight space": adapted(jacana.WeightSpace()),
        "RBF GP": lambda new_x: rbf_gp(curve.x, curve.y, new_x, seed=seed),
    }
    for count, model in ablr.items():
        name = f"ABLR, {count} source curve{'s' if count > 1 else ''}"
        methods[name] = lambda new_x, model=model: model.predict(curve.x, curve.y, new_x)  # type: ignore[misc]
    return methods


def _timed(method: Method, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, standard deviation, and CPU seconds of one thread."""
    start = time.process_time()
    mean, std = method(x)
    return mean, std, time.process_time() - start


def _figures(curve: Curve, mean: np.ndarray, std: np.ndarray, seconds: float) -> dict[str, float]:
    rmse = metrics.rmse(mean, curve.test_y)
    return {
        "rmse": rmse,
        "relative_rmse": rmse / curve.amplitude,
        "nll": metrics.gaussian_nll(mean, std, curve.test_y),
        "coverage": metrics.coverage(mean, std, curve.test_y),
        "seconds": seconds,
    }


def _difference(answers: dict[str, tuple[np.ndarray, np.ndarray, float]]) -> dict[str, float]:
    """Largest difference of the two spaces on a task, in units of the standard deviation of the observations."""
    (mean1, std1, _), (mean2, std2, _) = answers["Jacana, function space"], answers["Jacana, weight space"]
    return {
        "mean_in_stds": float(np.max(np.abs(mean1 - mean2) / std1)),
        "std_relative": float(np.max(np.abs(std1 - std2) / std1)),
    }


def _drawing(net: nn.Module, curve: Curve, methods: dict[str, Method]) -> dict[str, Any]:
    grid = np.linspace(-6.0, 6.0, 241)[:, None]
    with torch.no_grad():
        before = net(_tensor(grid))[:, 0].numpy()
    shown = {name: method(grid) for name, method in methods.items() if "weight" not in name}
    return {
        "grid": grid[:, 0],
        "truth": curve(grid),
        "points": [curve.x[:, 0], curve.y],
        "network": before,
        "methods": {name: {"mean": mean, "std": std} for name, (mean, std) in shown.items()},
    }


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    asked = command.parse("sinusoids", "One source curve, then new curves with ten points each.", seeds=5, argv=argv)
    settings = Settings(seeds=asked.seeds)
    if asked.quick:
        settings = Settings(asked.seeds, tasks=3, epochs=300, ablr_sources=(1, 3), ablr_starts=1, ablr_steps=50)
    start = time.perf_counter()
    results = run(settings, progress=asked.progress, workers=asked.workers)
    with plots.style():
        picture = plots.save(plot(results), asked.path(".png"))
    del results["picture"]
    stated = {
        "settings": settings,
        "noise_floor": NOISE_FLOOR,
        "candidates": CANDIDATES,
        "seconds": "CPU seconds of one thread",
    }
    record = command.record(
        asked.path(".json"), asked, settings=stated, results=results, seconds=time.perf_counter() - start
    )
    print(show(results["table"]), record, picture, sep="\n")


if __name__ == "__main__":
    main()
