"""Time the dense kernel beside neural-tangents, which lives in an environment of its own (old JAX, NumPy below 2).

    python3.11 -m venv OTHER
    OTHER/bin/pip install "jax==0.4.23" "jaxlib==0.4.23" "numpy<2" "scipy<1.13" neural-tangents
    python -m benchmarks.peer --python OTHER/bin/python --out DIR [--threads N] [--seeds N] [--quick]

The same perceptron, with all ten outputs, in float32 on both sides; in turns, each in a process that has compiled or
warmed up before, medians. Neural-tangents runs its structured derivatives (Novak, Sohl-Dickstein, Schoenholz 2022).
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

WIDTHS = (784, 512, 512, 10)
ROOT = Path(__file__).resolve().parents[1]


def theirs(sizes: list[int], repetitions: int) -> dict[str, list[float]]:
    """Seconds of neural-tangents; runs in its own environment."""
    jax, nt = importlib.import_module("jax"), importlib.import_module("neural_tangents")
    stax = nt.stax
    layers = [layer for width in WIDTHS[1:] for layer in (stax.Dense(width, parameterization="standard"), stax.Relu())]
    init, apply, _ = stax.serial(*layers[:-1])
    kernel = jax.jit(
        nt.empirical_ntk_fn(
            apply, trace_axes=(), vmap_axes=0, implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES
        )
    )
    found = {}
    for n in sizes:
        x = jax.random.normal(jax.random.PRNGKey(0), (n, WIDTHS[0]))
        _, weights = init(jax.random.PRNGKey(1), x.shape)
        seconds = []
        for _ in range(repetitions + 1):
            begin = time.perf_counter()
            kernel(x, None, weights).block_until_ready()
            seconds.append(time.perf_counter() - begin)
        found[str(n)] = seconds[1:]
    return found


def ours(sizes: list[int], repetitions: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of Jacana, by the dtype of the contraction."""
    torch, jacana = importlib.import_module("torch"), importlib.import_module("jacana")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    networks = importlib.import_module("benchmarks.networks")
    lin = jacana.linearize(networks.perceptron())
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("float32", "float64"):
        found[name] = {}
        for n in sizes:
            x = torch.randn(n, WIDTHS[0])
            seconds = []
            for _ in range(repetitions + 1):
                begin = time.perf_counter()
                jacana.gram(lin, x, dtype=getattr(torch, name))
                seconds.append(time.perf_counter() - begin)
            found[name][str(n)] = seconds[1:]
    return found


def main(argv: list[str] | None = None) -> None:
    """Take turns, print, write."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--python", default="")
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--theirs", type=json.loads)
    options, rest = own.parse_known_args(argv)
    if options.theirs is not None:
        print(json.dumps(theirs(**options.theirs)))
        return
    command = importlib.import_module("experiments.command")
    asked = command.parse(
        "peer",
        "The dense kernel beside neural-tangents: --python names the interpreter of its environment.",
        seeds=3,
        quick_seeds=1,
        argv=rest,
    )
    if not options.python:
        own.error("--python: name the interpreter of an environment that has neural-tangents")
    sizes, start = ([20] if asked.quick else [300, 1_000]), time.perf_counter()
    other: dict[str, list[float]] = {str(n): [] for n in sizes}
    mine: dict[str, dict[str, list[float]]] = {name: {str(n): [] for n in sizes} for name in ("float32", "float64")}
    for _ in range(asked.seeds):
        work = json.dumps({"sizes": sizes, "repetitions": 2})
        script = [options.python, str(Path(__file__)), "--theirs", work]
        done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        for n, seconds in json.loads(done.stdout.splitlines()[-1]).items():
            other[n] += seconds
        for name, found in ours(sizes, 2, options.threads).items():
            for n, seconds in found.items():
                mine[name][n] += seconds
    rows: list[dict[str, Any]] = []
    for n in map(str, sizes):
        row = {"n": int(n), "neural_tangents": statistics.median(other[n])}
        row |= {name: statistics.median(mine[name][n]) for name in mine}
        rows.append(row)
        print(row)
    results = {"rows": rows, "all_seconds": {"neural_tangents": other, **mine}, "threads": options.threads}
    print(
        command.record(
            asked.path(".json"),
            asked,
            settings={"widths": WIDTHS},
            results=results,
            seconds=time.perf_counter() - start,
        )
    )


if __name__ == "__main__":
    main()
