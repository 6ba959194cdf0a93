"""Time exact adaptation against the obvious ways to write it, in one run on one machine.

    make bench

Each figure is the least of several repetitions, interleaved, so that a busy moment hits all alike. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from tqdm import tqdm

import jacana
from experiments.command import parse, record
from experiments.digits import network

__all__ = ["main"]

EXAMPLES = 50

Work = Callable[[], Any]


def perceptron() -> tuple[nn.Module, Tensor]:
    """784-512-512-10, relu: 669,706 parameters."""
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return net.eval(), torch.randn(EXAMPLES, 784)


def convolutional() -> tuple[nn.Module, Tensor]:
    """The network of the rotated digits: 38,570 parameters."""
    return network().eval(), torch.randn(EXAMPLES, 1, 8, 8)


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """The whole Jacobian (n * c, p), as torch.func's tutorials have it."""
    weights = {name: value.detach() for name, value in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def one(values: dict[str, Tensor], example: Tensor) -> Tensor:
        out: Tensor = functional_call(net, (values, buffers), (example[None],))[0]
        return out

    rows = vmap(jacrev(one), (None, 0))(weights, x)
    return torch.cat([value.flatten(2).flatten(0, 1) for value in rows.values()], dim=1)


def works(net: nn.Module, x: Tensor) -> dict[str, Work]:
    """What is timed."""
    lin = jacana.linearize(net)
    y = torch.randn(len(x), 10, dtype=torch.float64)
    v, u = torch.randn(lin.n_parameters), torch.randn(len(x), 10)
    post = jacana.TangentGP(lin, progress=False).condition(x, y, noise_std=0.1)
    parameters = list(net.parameters())

    def by_hand() -> Tensor:
        rows = jacobian(net, x).double()
        return rows @ rows.T

    return {
        "forward + backward": lambda: torch.autograd.grad(net(x).sum(), parameters),
        "J v": lambda: lin.jvp(x, v),
        "Jᵀ u": lambda: lin.vjp(x, u),
        "kernel, vmap(jacrev) and contract": by_hand,
        "kernel, Jacana": lambda: jacana.NTK(lin, x).to_dense(),
        "condition on all": lambda: jacana.TangentGP(lin, progress=False).condition(x, y, noise_std=0.1).log_evidence,
        "predict the means": lambda: post.predict(x).mean,
        "predict the variances": lambda: post.predict(x).variance,
    }


def main(argv: list[str] | None = None) -> None:
    """Time, print, write."""
    asked = parse("bench", "Timings.", seeds=3, quick_seeds=1, argv=argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    found: dict[str, dict[str, float]] = {}
    problems = {"perceptron, 669,706 parameters": perceptron, "convolutional, 38,570 parameters": convolutional}
    for title, problem in problems.items():
        todo = works(*problem())
        best = dict.fromkeys(todo, float("inf"))
        for _ in tqdm(range(asked.seeds), desc=title, disable=not asked.progress, leave=False):
            for name, work in todo.items():
                begin = time.perf_counter()
                work()
                best[name] = min(best[name], time.perf_counter() - begin)
        found[title] = best
        print(f"{title}, {EXAMPLES} examples, ten outputs, seconds (least of {asked.seeds}):")
        print("\n".join(f"  {name:36}{seconds:10.4f}" for name, seconds in best.items()))
    seconds = time.perf_counter() - start
    print(record(asked.path(".json"), asked, settings={"examples": EXAMPLES}, results=found, seconds=seconds))


if __name__ == "__main__":
    main()
