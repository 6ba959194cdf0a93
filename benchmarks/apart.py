"""What the timings of posteriors share: the paper's perceptrons and data, and cases in processes of their own."""

from __future__ import annotations

import itertools
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import jacana

__all__ = ["ROOT", "apart", "data", "noise", "perceptron", "seconds", "show"]

ROOT = Path(__file__).resolve().parents[1]

Case = Callable[..., dict[str, Any]]


def perceptron(*widths: int) -> nn.Module:
    """5-...-1, tanh."""
    sizes = [5, *widths, 1]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def data(n: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets."""
    x = torch.randn(n, 5)
    return x, torch.sin(x.sum(1)).double() + 0.1 * torch.randn(n, dtype=torch.float64)


def noise(lin: jacana.Linearization, x: Tensor, ratio: float) -> float:
    """That many times the root of the kernel's mean diagonal."""
    return ratio * math.sqrt(float(jacana.gram(lin, x[:200], outputs="diagonal").mean()))


def seconds(work: Any) -> tuple[Any, float]:
    """What it gives, and how long it takes."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def apart(module: str, threads: int, name: str, *words: Any) -> dict[str, Any]:
    """A case in a process of its own, with its peak of memory."""
    command = [
        sys.executable,
        "-m",
        module,
        "--threads",
        str(threads),
        "--case",
        name,
        *map(str, words),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(cases: Mapping[str, Case], words: Sequence[str]) -> None:
    """Print what one case gives, and its peak of memory."""
    name, *rest = words
    found = cases[name](*[_number(word) for word in rest])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {"peak_mib": peak}))


def _number(word: str) -> Any:
    try:
        return int(word)
    except ValueError:
        try:
            return float(word)
        except ValueError:
            return word
