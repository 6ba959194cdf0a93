"""Time repeated Fisher products beside one training step, finite differences, double backward and curvlinops.

    python -m benchmarks.products --out DIR [--quick] [--seeds N] [--threads N]

Medians of several repetitions, interleaved, so that a busy moment hits all alike. One thread unless ``--threads`` says
otherwise. A step is one forward and one backward pass: 3 units of arithmetic; a Fisher product needs 4. The finite
difference is here for comparison alone. curvlinops is timed where it is installed (pip install curvlinops-for-pytorch).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import jacana
from benchmarks.networks import perceptron, resnet
from experiments.command import Command, parse, record

__all__ = ["Competitors", "main"]

ROOT = Path(__file__).resolve().parents[1]
STEPS = tuple(10.0**exponent for exponent in (-5, -4.5, -4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0))
COLUMNS = 16
FIRST = 20


class Competitors:
    """The ways to multiply the categorical Fisher matrix of a network at some data with a vector.

    Args:
        net: in evaluation mode.
        x: its inputs.
        v: the vector, one tensor a parameter.
    """

    def __init__(self, net: nn.Module, x: Tensor, v: dict[str, Tensor]) -> None:
        self.net, self.x, self.v = net, x, v
        self.weights = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}
        self.buffers = dict(net.named_buffers())
        with torch.no_grad():
            self.probabilities = net(x).softmax(1)
        self.length = float(torch.cat([piece.flatten() for piece in v.values()]).norm())

    def __call__(self, weights: dict[str, Tensor]) -> Tensor:
        """The logits at some weights."""
        out: Tensor = functional_call(self.net, (weights, self.buffers), (self.x,))
        return out

    def step(self) -> None:
        """One forward and one backward pass."""
        torch.autograd.grad(self(self.weights).logsumexp(1).sum(), list(self.weights.values()))

    def finite_difference(self, step: float, *, kept: bool = True) -> list[Tensor]:
        """[J(θ0 + ε v)ᵀ (π(θ0 + ε v) − π(θ0))] / ε, with ε ‖v‖ = ``step``; the gradient at θ0 itself is zero.

        Args:
            step: the length of the step in the weights.
            kept: whether the probabilities at θ0 are there already (3 units), or are computed each time (4).
        """
        epsilon = step / self.length
        probabilities = self.probabilities
        if not kept:
            with torch.no_grad():
                probabilities = self(self.weights).softmax(1)
        moved = {
            name: (value.detach() + epsilon * self.v[name]).requires_grad_() for name, value in self.weights.items()
        }
        loss = F.cross_entropy(self(moved), probabilities, reduction="sum")
        return [gradient / epsilon for gradient in torch.autograd.grad(loss, list(moved.values()))]

    def double_backward(self) -> tuple[Tensor, ...]:
        """The Hessian of the Kullback-Leibler divergence to the present probabilities, by differentiating twice."""
        loss = F.cross_entropy(self(self.weights), self.probabilities, reduction="sum")
        leaves = list(self.weights.values())
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        inner = torch.stack([(g * piece).sum() for g, piece in zip(gradients, self.v.values(), strict=True)]).sum()
        return torch.autograd.grad(inner, leaves)


class Images(Dataset[Tensor]):
    """Images without files, the same ones every time."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Tensor:
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i))


def curvlinops(net: nn.Module, x: Tensor) -> Callable[[Tensor], Any] | None:
    """The product of curvlinops' operator; None where it is not installed."""
    if importlib.util.find_spec("curvlinops") is None:
        return None
    library = importlib.import_module("curvlinops")
    data = [(x, torch.zeros(len(x), dtype=torch.int64))]
    loss = nn.CrossEntropyLoss(reduction="sum")
    for parameter in net.parameters():
        parameter.requires_grad_()
    operator = library.GGNLinearOperator(net, loss, list(net.parameters()), data, check_deterministic=False)
    return lambda v: operator @ v


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(title: str, net: nn.Module, x: Tensor, asked: Command) -> dict[str, Any]:
    """Seconds and errors of every way, in turns."""
    generator = torch.Generator().manual_seed(0)
    v = {name: torch.randn(value.shape, generator=generator) for name, value in net.named_parameters()}
    flat = torch.cat([piece.flatten() for piece in v.values()])
    columns = torch.randn(len(flat), COLUMNS, generator=generator)
    rivals = Competitors(net, x, v)
    fisher = jacana.Fisher(net, x, jacana.Categorical())
    beginning = [timed(lambda: fisher @ flat) for _ in range(FIRST)]
    for _ in range(3 * FIRST):  # by then what is kept is what will be
        fisher @ flat
    again = jacana.Fisher(net, x, jacana.Categorical(), memory_budget=0)
    exact = fisher @ flat
    ways: dict[str, Callable[[], Any]] = {
        "forward + backward": rivals.step,
        "Jacana, kept": lambda: fisher @ flat,
        "Jacana, computed again": lambda: again @ flat,
        "finite difference, probabilities kept": lambda: rivals.finite_difference(1e-2),
        "finite difference": lambda: rivals.finite_difference(1e-2, kept=False),
        "double backward": rivals.double_backward,
    }
    peer = curvlinops(net, x)
    if peer is not None:
        ways["curvlinops"] = lambda: peer(flat)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        if name != "double backward":
            way()
    for turn in tqdm(range(asked.seeds), desc=title, disable=not asked.progress):
        for name, way in ways.items():
            if name != "double backward" or turn < 3:
                seconds[name].append(timed(way))
    fisher @ columns
    many = [timed(lambda: fisher @ columns) / COLUMNS for _ in range(3)]
    later = [sum(timed(lambda: fisher @ flat) for _ in range(FIRST)) for _ in range(3)]

    def error(product: list[Tensor] | tuple[Tensor, ...]) -> float:
        got = torch.cat([piece.flatten() for piece in product]).double()
        return float((got - truth).norm() / truth.norm())

    double = net.double()
    truth = jacana.Fisher(double, x.double(), jacana.Categorical()) @ flat.double()
    net.float()
    errors = {step: error(rivals.finite_difference(step)) for step in STEPS}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    unit = medians["forward + backward"]
    return {
        "title": title,
        "n": len(x),
        "seconds": seconds,
        "median": medians,
        "ratio": {name: value / unit for name, value in medians.items()},
        "columns": statistics.median(many),
        "first": beginning[0],
        "early": statistics.median(beginning[1:]),
        "first_20": sum(beginning),
        "later_20": statistics.median(later),
        "error": {"Jacana": error([exact]), "finite difference": errors, "best": min(errors.values())},
    }


def stream(n: int, batch: int) -> dict[str, float]:
    """Seconds an image of a product over a loader that computes everything again, and the peak memory in MiB.

    The first product also proves the way to J v batch by batch.
    """
    fisher = jacana.Fisher(resnet(), DataLoader(Images(n), batch_size=batch), jacana.Categorical(), memory_budget=0)
    v = torch.randn(fisher.shape[0], generator=torch.Generator().manual_seed(0))
    first, seconds = timed(lambda: fisher @ v), timed(lambda: fisher @ v)
    reading = timed(lambda: sum(len(part) for part in DataLoader(Images(n), batch_size=batch)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "n": n,
        "first_an_image": (first - reading) / n,
        "seconds_an_image": (seconds - reading) / n,
        "reading": reading,
        "peak_mib": peak,
    }


def streamed(sizes: list[int], threads: int) -> list[dict[str, float]]:
    """The same in processes of their own."""
    found = []
    for n in sizes:
        words = [sys.executable, "-m", "benchmarks.products", "--threads", str(threads), "--stream", str(n)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def main(argv: list[str] | None = None) -> None:
    """Time, print, write."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--stream", type=int)
    options, rest = own.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.stream is not None:
        print(json.dumps(stream(options.stream, 128)))
        return
    asked = parse("products", "Timings of Fisher products. --threads N works with more than one.", seeds=7,
                  quick_seeds=2, argv=rest)  # fmt: skip
    start = time.perf_counter()
    images, digits = (8, 16) if asked.quick else (128, 256)
    rows = []
    for title, net, x in (
        ("ResNet-20", resnet(), torch.randn(images, 3, 32, 32)),
        ("MLP 784-512-512-10", perceptron(), torch.randn(digits, 784)),
    ):
        rows.append(measure(title, net, x, asked))
        gc.collect()
    flow = streamed([64, 128] if asked.quick else [1_000, 10_000], options.threads)
    for row in rows:
        print(f"{row['title']}, {row['n']}: milliseconds, over a forward and backward pass")
        for name, value in row["median"].items():
            print(f"  {name:40s}{1e3 * value:10.1f}{row['ratio'][name]:8.2f}")
        print(f"  one of the first {FIRST}{1e3 * row['early']:10.1f}, when graphs are kept")
        print(f"  a column of {COLUMNS}{1e3 * row['columns']:10.1f}; first {FIRST} products over {FIRST} later ones: "
              f"{row['first_20'] / row['later_20']:.2f}; error {row['error']['Jacana']:.1e}, of the finite difference "
              f"at its best step {row['error']['best']:.1e}")  # fmt: skip
    for part in flow:
        print(f"streamed, {part['n']} images: {1e3 * part['seconds_an_image']:.2f} ms an image "
            f"({1e3 * part['first_an_image']:.2f} the first time), "
              f"peak {part['peak_mib']:.0f} MiB")  # fmt: skip
    results = {"rows": rows, "stream": flow}
    settings = {"columns": COLUMNS, "first": FIRST, "steps": STEPS, "threads": options.threads}
    print(record(asked.path(".json"), asked, settings=settings, results=results, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
