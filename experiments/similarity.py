"""Similarity: do networks that were trained on different halves of MNIST have alike Jacobians?

The first observation behind the method: the Jacobian features of a trained network carry over to related tasks. A small
convolutional network is trained on half of the training images, split in two ways:

* *by image*: two random halves with all ten digits;
* *by class*: the digits 0 to 4, and the digits 5 to 9.

Compared, on test images of all ten digits that no network has seen, layer by layer, are the tangent kernels summed over
the outputs (n, n), which do not care what an output means, by their centred alignment (CKA) and normalised Bures
similarity: of two halves (from the same initial weights, and from others), of the same half twice (only the initial
weights and the order of the images differ), and of a trained network with an untrained one.

The second part looks at one network trained on half of the images of all digits, and at tasks: the Fisher matrices
JᵀJ of the digits 0 to 4 and of 5 to 9, of two sets of all digits, and of digits and noise with their pixels' mean and
standard deviation.

    python -m experiments.similarity --data DIR [--quick] [--seeds N]
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import jacana
from experiments import plots
from experiments.command import parse, record
from experiments.data import mnist
from experiments.metrics import mean_and_standard_error
from experiments.parallel import each

__all__ = ["Settings", "main", "network", "run_seed", "summary"]

LAYERS = ("conv1", "conv2", "hidden", "head")
PAIRS = (
    "same half, trained twice",
    "halves by image, same start",
    "halves by image",
    "halves by class, same start",
    "halves by class",
    "trained and its start",
    "trained and untrained",
    "two untrained",
)
TASKS = ("all digits, twice", "0-4 and 5-9", "digits and noise")

Tick = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """Every number that decides the results."""

    per_half: int = 10_000
    epochs: int = 4
    batch_size: int = 50
    learning_rate: float = 3e-3
    compared: int = 400


def network(seed: int) -> nn.Sequential:
    """Two convolutions and two linear layers, without normalisation: 18,346 parameters."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 8, 5, stride=2)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(8, 16, 5, stride=2)),
        ("relu2", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("hidden", nn.Linear(256, 54)),
        ("relu3", nn.ReLU()),
        ("head", nn.Linear(54, 10)),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(OrderedDict((name, _fresh(layer)) for name, layer in layers))


def _fresh(layer: nn.Module) -> nn.Module:
    """Initial weights drawn here and now, whatever was drawn when the layer was made."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        layer.reset_parameters()
    return layer


def trained(x: Tensor, y: Tensor, start: int, order: int, settings: Settings) -> nn.Sequential:
    """A network trained by Adam on the cross-entropy, with the learning rate going to zero.

    Args:
        x: images.
        y: labels.
        start: seed of the initial weights.
        order: seed of the order of the images.
        settings: of the experiment.
    """
    net = network(start)
    steps = settings.epochs * (len(x) // settings.batch_size)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(order)
    for _ in range(settings.epochs):
        for batch in torch.split(torch.randperm(len(x), generator=generator), settings.batch_size):
            if len(batch) < settings.batch_size:
                continue
            loss = cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def halves(images: np.ndarray, labels: np.ndarray, seed: int, settings: Settings) -> dict[str, tuple[Tensor, Tensor]]:
    """As many images in each half, drawn at random: two with all digits, one with the lower, one with the upper."""
    rng = np.random.default_rng(seed)
    n = settings.per_half
    mixed = rng.permutation(len(labels))[: 2 * n]
    lower, upper = (rng.permutation(np.flatnonzero(some))[:n] for some in (labels < 5, labels >= 5))

    def pair(index: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(images[index])[:, None], torch.from_numpy(labels[index])

    return {"first": pair(mixed[:n]), "second": pair(mixed[n:]), "lower": pair(lower), "upper": pair(upper)}


def run_seed(seed: int, tick: Tick, *, folder: Path | None, settings: Settings) -> dict[str, Any]:
    """All networks and all comparisons of one seed."""
    parts = halves(*mnist(folder, "train"), seed, settings)
    images, labels = mnist(folder, "test")
    rng = np.random.default_rng(1_000 + seed)
    shown = rng.permutation(len(labels))
    x = torch.from_numpy(images[shown[: settings.compared]])[:, None]
    one, other = 2 * seed, 2 * seed + 1
    made: dict[tuple[str, int], nn.Sequential] = {}
    for part, start in (("first", one), ("first", other), ("second", one), ("second", other), ("lower", one),
                        ("upper", one), ("upper", other)):  # fmt: skip
        made[part, start] = trained(*parts[part], start, 10 * start + len(made), settings)
        tick()
    starts = {start: network(start).eval() for start in (one, other)}
    pairs = {
        "same half, trained twice": (made["first", one], made["first", other]),
        "halves by image, same start": (made["first", one], made["second", one]),
        "halves by image": (made["first", one], made["second", other]),
        "halves by class, same start": (made["lower", one], made["upper", one]),
        "halves by class": (made["lower", one], made["upper", other]),
        "trained and its start": (made["first", one], starts[one]),
        "trained and untrained": (made["first", one], starts[other]),
        "two untrained": (starts[one], starts[other]),
    }
    found: dict[str, Any] = {"pairs": {}, "tasks": {}}
    for name, (first, second) in pairs.items():
        whole = jacana.compare_networks(first, second, x, outputs="trace")
        apart = jacana.compare_networks(first, second, x, outputs="trace", layers=True)
        found["pairs"][name] = _plain(whole, apart)
        tick()
    few = settings.compared // 4  # with all ten outputs: as many rows as there are images in the first part, and more
    digits = [torch.from_numpy(images[shown[some]])[:, None] for some in (
        np.arange(few), few + np.arange(few), np.flatnonzero(labels[shown] < 5)[:few],
        np.flatnonzero(labels[shown] >= 5)[:few],
    )]  # fmt: skip
    noise = torch.from_numpy(rng.normal(images.mean(), images.std(), (few, 1, 28, 28)).astype(np.float32))
    sets = {
        "all digits, twice": (digits[0], digits[1]),
        "0-4 and 5-9": (digits[2], digits[3]),
        "digits and noise": (digits[0], noise),
    }
    for name, (some, others) in sets.items():
        whole = jacana.compare_tasks(made["first", one], some, others)
        apart = jacana.compare_tasks(made["first", one], some, others, layers=True)
        found["tasks"][name] = _plain(whole, apart)
        tick()
    with torch.no_grad():
        net, test = made["first", one], torch.from_numpy(images)[:, None]
        found["accuracy"] = float((net(test).argmax(1).numpy() == labels).mean())
    return found


def _plain(whole: Any, apart: Any) -> dict[str, dict[str, float | None]]:
    return {"all": asdict(whole)} | {layer: asdict(value) for layer, value in apart.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard errors over the seeds."""
    found: dict[str, Any] = {"accuracy": _over_seeds([run["accuracy"] for run in runs])}
    for kind, names, measures in (("pairs", PAIRS, ("cka", "bures")), ("tasks", TASKS, ("cosine", "bures"))):
        found[kind] = {
            name: {
                layer: {m: _over_seeds([run[kind][name][layer][m] for run in runs]) for m in measures}
                for layer in ("all", *LAYERS)
            }
            for name in names
        }
    return found


def _over_seeds(values: list[float]) -> dict[str, float]:
    return mean_and_standard_error(values)._asdict()


def draw(results: dict[str, Any], path: Path) -> Path:
    """Similarity layer by layer, a line a pair."""
    with plots.style():
        made = plots.figure(11.0, 4.4)
        left, right = made.subplots(1, 2)
        x = np.arange(len(LAYERS))
        for axes, kind, measure, title in (
            (left, "pairs", "cka", "Networks: CKA of tangent kernels"),
            (right, "tasks", "cosine", "Tasks: cosine of Fisher matrices"),
        ):
            for number, (name, layers) in enumerate(results[kind].items()):
                mean = np.array([layers[layer][measure]["mean"] for layer in LAYERS])
                error = np.array([layers[layer][measure]["standard_error"] for layer in LAYERS])
                style = "--" if "untrained" in name or ("start" in name and "trained and" in name) else "-"
                axes.errorbar(x, mean, yerr=error, marker="o", linestyle=style, label=name, color=f"C{number}")
            axes.set_xticks(x, LAYERS)
            axes.set_ylim(0.0, 1.02)
            plots.panel_title(axes, title)
            axes.legend(fontsize=8, loc="lower left")
        return plots.save(made, path)


def main(argv: list[str] | None = None) -> None:
    """Run, print, draw, write."""
    asked = parse("similarity", "Jacobian features across halves of MNIST.", seeds=5, quick_seeds=1, argv=argv)
    settings = Settings(per_half=500, epochs=1, compared=40) if asked.quick else Settings()
    start = time.perf_counter()
    runs = each(
        functools.partial(run_seed, folder=asked.data, settings=settings),
        range(asked.seeds),
        ticks=asked.seeds * (7 + len(PAIRS) + len(TASKS)),
        description="similarity",
        progress=asked.progress,
        workers=asked.workers,
    )
    results = summary(runs)
    for kind, measure in (("pairs", "cka"), ("tasks", "cosine")):
        for name, layers in results[kind].items():
            cells = "  ".join(f"{layer} {value[measure]['mean']:.3f}" for layer, value in layers.items())
            print(f"{name:30s}{measure:8s}{cells}")
    print(draw(results, asked.path(".png")))
    print(
        record(
            asked.path(".json"), asked, settings=asdict(settings), results=results | {"runs": runs},
            seconds=time.perf_counter() - start,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
