"""Time the exact finite-width NTK Gram against vmap(jacrev) and contract, in one run on one machine.

    python -m benchmarks.gram --out DIR [--quick] [--seeds N] [--long] [--threads N] [--only TITLE]

Each figure is the median of several repetitions, interleaved, so that a busy moment hits all alike. One thread unless
``--threads`` says otherwise. The floor is counted arithmetic over the rate at which the machine multiplies matrices.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
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
from torch.func import functional_call, jacrev, vmap
from tqdm import tqdm

import jacana
from benchmarks.networks import Case, cases, operations, plain_attention, resnet
from experiments.command import Command, parse, record

__all__ = ["main"]

HELD = 8 * 2**30  # bytes of the Jacobian that vmap(jacrev) may hold at a time
BUDGETS = (256 * 2**20, 512 * 2**20, 2**30, 2 * 2**30)
DTYPES = {"Jacana, float32": torch.float32, "Jacana, float64": torch.float64}
RIVAL = "vmap(jacrev)"
ROOT = Path(__file__).resolve().parents[1]

Chunk = tuple[int, int | None]


@dataclasses.dataclass
class Spent:
    """Seconds that vmap(jacrev) took for the Jacobian and for its contraction."""

    jacobian: float = 0.0
    contraction: float = 0.0


def jacobian(net: nn.Module, x: Tensor, outputs: int | None = None) -> list[Tensor]:
    """The Jacobian of one chunk of examples, parameter by parameter: each (n * c, size)."""
    weights = {name: value.detach() for name, value in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def one(values: dict[str, Tensor], example: Tensor) -> Tensor:
        out: Tensor = functional_call(net, (values, buffers), (example[None],))[0]
        return out

    with plain_attention():
        rows = vmap(jacrev(one, chunk_size=outputs), (None, 0))(weights, x)
    return [value.flatten(2).flatten(0, 1) for value in rows.values()]


def block_size(net: nn.Module, c: int) -> int:
    """Examples whose rows of the Jacobian fit in ``HELD``."""
    return max(1, HELD // (4 * c * sum(value.numel() for value in net.parameters())))


def by_hand(
    net: nn.Module, x: Tensor, c: int, chunk: Chunk, *, dtype: torch.dtype = torch.float32, spent: Spent | None = None
) -> Tensor:
    """The Gram from the rows of the Jacobian, as many as fit held at a time, the ones after them formed again."""
    spent, n, held = spent or Spent(), len(x), block_size(net, c)
    K = torch.zeros(n * c, n * c, dtype=dtype)
    for start in range(0, n, held):
        stop = min(start + held, n)
        block = [torch.empty((stop - start) * c, value.numel()) for value in net.parameters()]
        for low, high in _spans(start, stop, chunk[0]):
            begin = time.perf_counter()
            for whole, part in zip(block, jacobian(net, x[low:high], chunk[1]), strict=True):
                whole[(low - start) * c : (high - start) * c] = part
            spent.jacobian += time.perf_counter() - begin
        begin = time.perf_counter()
        corner = K[start * c : stop * c, start * c : stop * c]
        for whole in block:
            corner += whole.to(dtype) @ whole.to(dtype).T
        spent.contraction += time.perf_counter() - begin
        for low, high in _spans(stop, n, chunk[0]):
            begin = time.perf_counter()
            parts = jacobian(net, x[low:high], chunk[1])
            spent.jacobian += time.perf_counter() - begin
            begin = time.perf_counter()
            cross = K[start * c : stop * c, low * c : high * c]
            for whole, part in zip(block, parts, strict=True):
                cross += whole.to(dtype) @ part.to(dtype).T
            K[low * c : high * c, start * c : stop * c] = cross.T
            spent.contraction += time.perf_counter() - begin
    return K


def _spans(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(low, min(low + size, stop)) for low in range(start, stop, size)]


def scaled(spent: Spent, timed: int, n: int, held: int) -> float:
    """Seconds for n examples, from those for ``timed`` that were held at once: what `by_hand` would do, counted."""
    rows = pairs = 0
    for start, stop in _spans(0, n, held):
        rows += n - start
        pairs += (stop - start) * (n - start)
    return spent.jacobian * rows / timed + spent.contraction * pairs / timed**2


def best_chunk(net: nn.Module, case: Case, x: Tensor) -> tuple[Chunk, dict[str, float]]:
    """The pair of ``case.chunks`` with the fewest seconds an example, and those of all."""
    found: dict[Chunk, float] = {}
    for chunk in case.chunks:
        size = min(chunk[0], len(x))
        seconds = []
        for _ in range(2):  # the first one also warms up
            begin = time.perf_counter()
            jacobian(net, x[:size], chunk[1])
            seconds.append(time.perf_counter() - begin)
        found[chunk] = min(seconds) / size
    return min(found, key=lambda chunk: found[chunk]), {str(chunk): seconds for chunk, seconds in found.items()}


def rate(dtype: torch.dtype, size: int, repetitions: int = 5) -> float:
    """Floating-point operations a second of the product of two square matrices; the median."""
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    seconds = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds[1:])


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    gc.collect()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def disagreement(found: Tensor, truth: Tensor) -> float:
    """Greatest difference over greatest entry."""
    return float((found.double() - truth).abs().max() / truth.abs().max())


def measure(case: Case, asked: Command) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    net, x, c = case.network(), case.data(case.n), case.outputs
    rates = {"float32": rate(torch.float32, 200 if asked.quick else 2_000)}
    rates["float64"] = rate(torch.float64, 200 if asked.quick else 2_000)
    counted = operations(net, x, c)
    floors = {name: counted["network"] / rates["float32"] + counted["contraction"] / rates[name] for name in rates}

    lin = jacana.linearize(net)
    probe = timed(lambda: lin.findings(lin.examples(x)))
    few = x[: min(8, case.n)]
    first = min(case.chunks, key=lambda pair: pair[0])
    truth = by_hand(net, few, c, first, dtype=torch.float64)
    errors = {name: disagreement(jacana.gram(lin, few, dtype=dtype), truth) for name, dtype in DTYPES.items()}
    if case.rival:
        errors[RIVAL] = disagreement(by_hand(net, few, c, first), truth)
    del truth

    n = min(case.timed or case.n, case.n)
    held = block_size(net, c)
    chunk, tried = best_chunk(net, case, x) if case.rival else (first, {})
    seconds: dict[str, list[float]] = {name: [] for name in ((RIVAL,) if case.rival else ()) + tuple(DTYPES)}
    parts: list[Spent] = []
    for _ in tqdm(range(asked.seeds), desc=f"{case.title}, {case.n}", disable=not asked.progress, leave=False):
        if case.rival:
            parts.append(Spent())
            whole = timed(lambda: by_hand(net, x[:n], c, chunk, spent=parts[-1]))
            seconds[RIVAL].append(whole if n == case.n else scaled(parts[-1], n, case.n, held))
        for name, dtype in DTYPES.items():
            seconds[name].append(timed(functools.partial(jacana.gram, lin, x, dtype=dtype)))
    row: dict[str, Any] = {
        "title": case.title,
        "n": case.n,
        "outputs": c,
        "parameters": lin.n_parameters,
        "probe_seconds": probe,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "all_seconds": seconds,
        "floor_seconds": floors,
        "operations": counted,
        "rates": rates,
        "disagreement": {"examples": len(few), **errors},
    }
    if case.rival:
        row[RIVAL] = {
            "extrapolated": n < case.n,
            "timed_examples": n,
            "held_examples": held,
            "chunk": {"examples": chunk[0], "outputs": chunk[1] or c},
            "tried_seconds_per_example": tried,
            "parts": [dataclasses.asdict(part) for part in parts],
        }
    return row


def high_water() -> int:
    """The most bytes that this process has held.

    From /proc where there is one: the ru_maxrss of a process begins with that of the process that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(work: dict[str, Any]) -> None:
    """Do one work in this process, of its own, and print what it took on top of the network and its data."""
    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    net, x = resnet(), torch.randn(work["n"], 3, 32, 32)
    begin = high_water()
    ready = begin
    if work["method"] == RIVAL:
        seconds = timed(lambda: by_hand(net, x, 10, work["chunk"]))
    else:
        lin = jacana.linearize(net)
        lin.findings(lin.examples(x))
        ready = high_water()
        dtype = DTYPES[work["method"]]
        seconds = timed(lambda: jacana.gram(lin, x, dtype=dtype, memory_budget=work["budget"]))
    print(json.dumps({"bytes": high_water() - begin, "probe_bytes": ready - begin, "seconds": seconds}))


def peaks(n: int, chunk: Chunk, asked: Command) -> list[dict[str, Any]]:
    """Peak memory of everyone with ResNet-20, and of Jacana with several budgets."""
    chunks = dict.fromkeys([chunk, (10, None), (10, 1)] if not asked.quick else [chunk])
    todo: list[dict[str, Any]] = [{"method": RIVAL, "chunk": pair} for pair in chunks]
    budgets = (None, *BUDGETS[: 1 if asked.quick else None])
    todo += [{"method": name, "budget": budget} for name in DTYPES for budget in budgets]
    found = []
    for work in tqdm(todo, desc="memory", disable=not asked.progress, leave=False):
        work |= {"n": n, "threads": torch.get_num_threads()}
        command = [sys.executable, "-m", "benchmarks.gram", "--peak", json.dumps(work)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            found.append({**work, "error": (done.stderr.strip().splitlines() or ["killed"])[-1]})
        else:
            found.append({**work, **json.loads(done.stdout.splitlines()[-1])})
    return found


def show(rows: list[dict[str, Any]], memory: list[dict[str, Any]], repetitions: int) -> None:
    """Print the tables."""
    print(f"Gram matrices, seconds (median of {repetitions}); ~ extrapolated; floor: arithmetic at the machine's rate")
    heads = [RIVAL, *DTYPES, "floor 32", "floor 64", "probe"]
    print(f"{'':36}" + "".join(f"{head:>17}" for head in heads))
    for row in rows:
        title = f"{row['title']}, {row['n']:,} x {row['outputs']}"
        cells = [f"{row['seconds'][name]:.3f}" if name in row["seconds"] else "-" for name in heads[:3]]
        cells[0] = "~" * row.get(RIVAL, {}).get("extrapolated", False) + cells[0]
        cells += [f"{row['floor_seconds'][name]:.3f}" for name in ("float32", "float64")]
        print(f"{title:36}" + "".join(f"{cell:>17}" for cell in [*cells, f"{row['probe_seconds']:.3f}"]))
    worst = {name: max(row["disagreement"].get(name, 0.0) for row in rows) for name in (RIVAL, *DTYPES)}
    print("worst disagreement:", ", ".join(f"{name} {error:.1e}" for name, error in worst.items()))
    if memory:
        print(f"ResNet-20, {memory[0]['n']} examples, peak memory in MiB on top of the network and its data:")
    for found in memory:
        budget = found.get("budget")
        how = f"chunk {found['chunk']}" if "chunk" in found else f"budget {budget // 2**20 if budget else 'default'}"
        cell = found["error"] if "error" in found else f"{found['bytes'] / 2**20:10.0f}{found['seconds']:10.3f} s"
        print(f"  {found['method']:18}{how:18}{cell}")


def main(argv: list[str] | None = None) -> None:
    """Time, print, write."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--long", action="store_true")
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--only", default="")
    own.add_argument("--peak", type=json.loads)
    options, rest = own.parse_known_args(argv)
    if options.peak is not None:
        peak(options.peak)
        return
    more = "--long adds 1,000 texts, --threads N works with more than one, --only TITLE keeps what contains it."
    asked = parse("gram", f"Timings of the Gram. {more}", seeds=3, quick_seeds=1, argv=rest)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    chosen = [case for case in cases(quick=asked.quick, long=options.long) if options.only in case.title]
    if not chosen:
        own.error(f"--only: no title contains {options.only!r}")
    rows: list[dict[str, Any]] = []
    for case in chosen:
        rows.append(measure(case, asked))
        gc.collect()
    largest = max((row for row in rows if row["title"] == "ResNet-20"), key=lambda row: row["n"], default=None)
    memory: list[dict[str, Any]] = []
    if largest is not None:
        pair = largest[RIVAL]["chunk"]
        memory = peaks(largest["n"], (pair["examples"], pair["outputs"]), asked)
    show(rows, memory, asked.seeds)
    settings = {"held_bytes": HELD, "budgets": BUDGETS, "only": options.only, "long": options.long}
    results = {"rows": rows, "memory": memory}
    print(record(asked.path(".json"), asked, settings=settings, results=results, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
