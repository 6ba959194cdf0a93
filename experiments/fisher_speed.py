"""Fisher-vector products: the paper's figures, with an exact product at the floor as the third bar.

The paper multiplies the Fisher matrix with a vector by finite differences, because double backward was 2 to 50 times
slower, and shows how the error depends on the step. Here both are drawn again beside ``jacana.Fisher``, which is exact:
seconds a product at the same 128 images for each network, and the relative error of the finite difference over its
step, against a product in float64.

    python -m experiments.fisher_speed [--quick] [--seeds N]

Without a GPU the networks from PreResNet-164 on are left out. ``--seeds`` is the number of repetitions, in turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import jacana
from benchmarks.products import STEPS, Competitors
from experiments import plots
from experiments.cifar_networks import NETWORKS
from experiments.command import parse, record

__all__ = ["main", "measure"]

ON_CPU = ("AlexNet", "PreResNet-56", "PreResNet-110")
WAYS = ("double backward", "finite difference", "Jacana, exact")
PAPER = {
    "AlexNet": (0.043, 0.023),
    "PreResNet-56": (2.53, 0.066),
    "PreResNet-110": (4.83, 0.116),
    "PreResNet-164": (7.14, 0.180),
    "WideResNet-28x10": (12.5, 0.472),
}
"""Seconds on the paper's GPU: double backward, finite difference."""


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run; a device is waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(name: str, images: int, repetitions: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each way, and the error of the finite difference at each step."""
    net = NETWORKS[name](device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, 32, 32, generator=generator).to(device)
    v = {key: torch.randn(value.shape, generator=generator).to(device) for key, value in net.named_parameters()}
    flat = torch.cat([piece.flatten() for piece in v.values()])
    rivals, fisher = Competitors(net, x, v), jacana.Fisher(net, x, jacana.Categorical())
    ways: dict[str, Callable[[], Any]] = {
        "forward + backward": rivals.step,
        "double backward": rivals.double_backward,
        "finite difference": lambda: rivals.finite_difference(1e-2, kept=False),
        "Jacana, exact": lambda: fisher @ flat,
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {key: [] for key in ways}
    for _ in range(repetitions):
        for key, way in ways.items():
            seconds[key].append(timed(way, device))
    few = x[: min(images, 32)]
    small = Competitors(net, few, v)
    truth = jacana.Fisher(copy.deepcopy(net).double(), few.double(), jacana.Categorical()) @ flat.double()

    def error(product: Tensor) -> float:
        return float((product.double() - truth).norm() / truth.norm())

    errors = {step: error(torch.cat([piece.flatten() for piece in small.finite_difference(step)])) for step in STEPS}
    exact = error(jacana.Fisher(net, few, jacana.Categorical()) @ flat)
    return {
        "network": name,
        "parameters": len(flat),
        "images": images,
        "seconds": seconds,
        "median": {key: statistics.median(values) for key, values in seconds.items()},
        "error": {"finite difference": errors, "Jacana, exact": exact},
    }


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Bars of seconds, and errors over the step."""
    colours = dict(zip(WAYS, (plots.COLOURS["no adaptation"], plots.COLOURS["last layer"], plots.COLOURS["Jacana"]),
                       strict=True))  # fmt: skip
    with plots.style():
        made = plots.figure(11.0, 4.2)
        left, right = made.subplots(1, 2)
        x = np.arange(len(rows))
        for k, way in enumerate(WAYS):
            left.bar(x + 0.27 * (k - 1), [row["median"][way] for row in rows], 0.25, color=colours[way], label=way)
        left.set_yscale("log")
        left.set_xticks(x, [row["network"] for row in rows])
        left.set_ylabel("seconds a product")
        left.legend()
        plots.panel_title(left, "Time", f"{rows[0]['images']} images")
        for k, row in enumerate(rows):
            steps = np.array([float(step) for step in row["error"]["finite difference"]])
            right.plot(
                steps, list(row["error"]["finite difference"].values()), marker="o", color=f"C{k}", label=row["network"]
            )
            right.axhline(row["error"]["Jacana, exact"], color=f"C{k}", linestyle="--")
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel("length of the step, ε ‖v‖")
        right.set_ylabel("relative error")
        right.legend(fontsize=8)
        plots.panel_title(right, "Error of the finite difference", "dashed: exact product, float32")
        return plots.save(made, path)


def main(argv: list[str] | None = None) -> None:
    """Time, print, draw, write."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--threads", type=int, default=2)
    options, rest = own.parse_known_args(argv)
    asked = parse("fisher_speed", "Fisher-vector products, the paper's figures.", seeds=5, quick_seeds=1, argv=rest)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = list(NETWORKS) if device.type == "cuda" else list(ON_CPU)
    images = 4 if asked.quick else 128
    start = time.perf_counter()
    rows = [
        measure(name, images, asked.seeds, device)
        for name in tqdm(names[:1] if asked.quick else names, desc="networks", disable=not asked.progress)
    ]
    for row in rows:
        print(f"{row['network']:20s}" + "  ".join(f"{way} {value:.4f} s" for way, value in row["median"].items()))
    print(draw(rows, asked.path(".png")))
    results = {"rows": rows, "device": str(device), "paper": PAPER}
    settings = {"images": images, "steps": STEPS, "threads": options.threads}
    print(record(asked.path(".json"), asked, settings=settings, results=results, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
