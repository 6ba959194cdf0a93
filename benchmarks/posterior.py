"""Time posteriors from 300 to 100,000 examples and up to 75 million parameters: factorised, and by products alone.

    python -m benchmarks.posterior --out DIR [--quick] [--threads N]

The perceptrons and the data are those of Maddox et al. 2021 (arXiv 2103.01439), appendix: x ~ N(0, I) in five
dimensions, y = sin Σx + .1 ε. Each case is one run in a process of its own, which also says its peak of memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn
from tqdm import tqdm

import jacana
from benchmarks.networks import images, resnet
from experiments import pictures, plots
from experiments.command import parse, record
from experiments.resnet import trained

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
NEW = 50
FACTORISED = 10_000
"""Above as many examples a posterior is solved by products alone."""

SIZES = (300, 1_000, 3_000, 10_000, 30_000, 100_000)
WIDTHS = (10, 30, 100, 300, 1_000, 3_000, 5_000)
RATIOS = (1e-1, 1e-2, 1e-3)
RTOL = 1e-3
ONLINE = tuple(itertools.product(("FunctionSpace", "Pathwise"), (1e-3, 1e-4)))


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


def size(n: int, method: str) -> dict[str, Any]:
    """Mean and variance at new points after n examples; the paper's perceptron, 803,601 parameters."""
    net, (x, y), (new, _) = perceptron(200, 2000, 200), data(n), data(NEW)
    gp = jacana.TangentGP(net, progress=False)
    std = noise(gp.linearization, x, 1e-2)
    way = jacana.FunctionSpace() if method == "factorised" else jacana.FunctionSpace(jacana.CG(rtol=RTOL))
    start = time.perf_counter()
    post = gp.condition(x, y, std, method=way)
    prediction = post.predict(new)
    _ = prediction.mean
    mean = time.perf_counter() - start
    _ = prediction.variance
    total = time.perf_counter() - start
    found: dict[str, Any] = {"n": n, "method": method, "seconds_mean": mean, "seconds": total}
    if post.solution is not None:
        found |= {
            "steps": post.solution.steps,
            "products": post.solution.products,
            "residual": float(post.solution.relative_residuals.max()),
        }
        if n <= FACTORISED:
            exact = gp.condition(x, y, std, method=jacana.FunctionSpace()).predict(new)
            found["mean_error"] = float((prediction.mean - exact.mean).norm() / exact.mean.norm())
            found["largest_variance"] = float((prediction.variance / exact.variance).max())
            found["smallest_variance"] = float((prediction.variance / exact.variance).min())
    return found


def width(each: int) -> dict[str, Any]:
    """Mean and variance after 1,000 examples, four hidden layers of some width."""
    net, (x, y), (new, _) = perceptron(*[each] * 4), data(1_000), data(NEW)
    gp = jacana.TangentGP(net, progress=False)
    std = noise(gp.linearization, x, 1e-2)
    prediction, first = seconds(lambda: gp.condition(x, y, std, method=jacana.FunctionSpace()).predict(new))
    _, second = seconds(lambda: (prediction.mean, prediction.variance))
    return {"width": each, "parameters": gp.linearization.n_parameters, "seconds": first + second}


def steps(name: str, ratio: float) -> dict[str, Any]:
    """Steps of conjugate gradients with and without a preconditioner."""
    if name == "ResNet-20":
        net, x = resnet(), images(200)
        y = torch.randn(200, 10, dtype=torch.float64)
    else:
        net, (x, y) = perceptron(200, 2000, 200), data(5_000)
    gp = jacana.TangentGP(net, progress=False)
    std = noise(gp.linearization, x, ratio)
    found: dict[str, Any] = {"network": name, "ratio": ratio}
    for label, preconditioner in (
        ("pivoted Cholesky", jacana.preconditioners.PivotedCholesky()),
        ("Nyström", jacana.preconditioners.Nystrom()),
        ("none", None),
    ):
        most = 100 if preconditioner is None else 500
        way = jacana.FunctionSpace(jacana.CG(rtol=RTOL, max_steps=most, preconditioner=preconditioner))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jacana.errors.NotConverged)
            post, spent = seconds(lambda way=way: gp.condition(x, y, std, method=way))
        solution = post.solution
        found[label] = {
            "steps": solution.steps, "residual": float(solution.relative_residuals.max()), "seconds": spent,
            "converged": solution.converged,
        }  # fmt: skip
    return found


def online(name: str, rtol: float) -> dict[str, Any]:
    """500 more examples after 5,000: going on from the solution there was, against from scratch; to one tolerance."""
    net, (x, y), (new, _) = perceptron(200, 2000, 200), data(5_500), data(NEW)
    gp = jacana.TangentGP(net, progress=False)
    std = noise(gp.linearization, x, 1e-2)
    solver = jacana.CG(rtol=rtol)
    method = jacana.Pathwise(8, solver) if name == "Pathwise" else jacana.FunctionSpace(solver)
    old = gp.condition(x[:5_000], y[:5_000], std, method=method)
    exact = gp.condition(x, y, std, method=jacana.FunctionSpace()).predict(new).mean
    found: dict[str, Any] = {"method": name, "rtol": rtol}
    for way, work in (
        ("more", lambda: old.condition(x[5_000:], y[5_000:])),
        ("scratch", lambda: gp.condition(x, y, std, method=method)),
    ):
        post, spent = seconds(work)
        found[way] = {
            "products": post.solution.products, "steps": post.solution.steps, "seconds": spent,
            "solving": post.solution.seconds, "residual": float(post.solution.relative_residuals.max()),
            "mean_error": float((post.predict(new).mean - exact).norm() / exact.norm()),
        }  # fmt: skip
    return found


class _Model(gpytorch.models.ExactGP):  # type: ignore[misc]
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any, kernel: Any) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def defaults(n: int) -> dict[str, Any]:
    """GPyTorch's default settings on the same kernel and data, beside ours; errors against the factorised posterior."""
    net, (x, y), (new, _) = perceptron(200, 2000, 200), data(n), data(NEW)
    gp = jacana.TangentGP(net, mean="zero", progress=False)
    std = noise(gp.linearization, x, 1e-2)
    exact = gp.condition(x, y, std, method=jacana.FunctionSpace()).predict(new)
    ours = gp.condition(x, y, std, method=jacana.FunctionSpace(jacana.CG())).predict(new)
    bound = gpytorch.constraints.GreaterThan(1e-12)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=bound).double()
    likelihood.noise = torch.tensor(std**2, dtype=torch.float64)
    model = _Model(x.double(), y, likelihood, jacana.NeuralTangentKernel(net)).double().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model(new.double())
        answers = {"Jacana": (ours.mean, ours.variance), "GPyTorch": (theirs.mean, theirs.variance)}
    return {"n": n} | {
        name: {
            "mean_error": float((mean - exact.mean).norm() / exact.mean.norm()),
            "smallest_variance": float((variance / exact.variance).min()),
            "largest_variance": float((variance / exact.variance).max()),
        }
        for name, (mean, variance) in answers.items()
    }


WAYS: dict[str, Callable[[], Any]] = {
    "FunctionSpace(CG())": lambda: jacana.FunctionSpace(jacana.CG()),
    "WeightSpace(CG())": lambda: jacana.WeightSpace(jacana.CG()),
    "Pathwise(64)": lambda: jacana.Pathwise(64),
    "NystromFeatures()": jacana.NystromFeatures,
    "FunctionSpace(SDD())": lambda: jacana.FunctionSpace(jacana.SDD(max_epochs=100)),
    "LastLayer()": jacana.LastLayer,
}


def ways(n: int, way: str, ratio: float) -> dict[str, Any]:
    """A method against the factorised posterior, at new points of the same kind and at points five times as far out."""
    net, (x, y), (new, _) = perceptron(200, 2000, 200), data(n), data(NEW)
    gp = jacana.TangentGP(net, progress=False)
    std = noise(gp.linearization, x, ratio)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", jacana.errors.NotConverged)
        start = time.perf_counter()
        post = gp.condition(x, y, std, method=WAYS[way]())
        near = post.predict(new)
        _ = near.mean, near.variance
        spent = time.perf_counter() - start
        far = post.predict(5.0 * new).variance
    exact = gp.condition(x, y, std, method=jacana.FunctionSpace())
    at, there = exact.predict(new), exact.predict(5.0 * new)
    return {
        "n": n, "way": way, "ratio": ratio, "seconds": spent,
        "converged": not any(issubclass(warning.category, jacana.errors.NotConverged) for warning in said),
        "mean_error": float((near.mean - at.mean).norm() / at.mean.norm()),
        "smallest_variance": float((near.variance / at.variance).min()),
        "largest_variance": float((near.variance / at.variance).max()),
        "smallest_far": float((far / there.variance).min()),
        "largest_far": float((far / there.variance).max()),
    }  # fmt: skip


def evidence(n: int) -> dict[str, Any]:
    """Prior scale and noise by the fixed point on all examples; up to FACTORISED beside the exact optimum."""
    net, (x, y) = perceptron(200, 2000, 200), data(n)
    gp = jacana.TangentGP(net, progress=False)
    (found, likelihood), spent = seconds(lambda: jacana.maximize_evidence(gp, x, y, method=jacana.Pathwise(16)))
    result: dict[str, Any] = {
        "n": n, "seconds": spent, "prior_std": found.prior_std, "noise_std": float(likelihood.noise_std),
    }  # fmt: skip
    if n <= FACTORISED:
        (best, exact), spent = seconds(lambda: jacana.maximize_evidence(gp, x, y))
        value, most = (
            one.condition(x, y, likelihood=other, method=jacana.FunctionSpace()).log_evidence
            for one, other in ((found, likelihood), (best, exact))
        )
        result |= {
            "seconds_exact": spent, "prior_std_exact": best.prior_std, "noise_std_exact": float(exact.noise_std),
            "nats_below": most - value,
        }  # fmt: skip
    return result


def classified(n: int) -> dict[str, Any]:
    """Mean and four samples of the trained ResNet-20, CIFAR-10's images, ten outputs as one-hot targets."""
    folder = Path(os.environ.get("JACANA_DATA", ROOT.parent / "shared" / "data"))
    x, labels = pictures.cifar10(folder, "train", n)
    y = torch.eye(10, dtype=torch.float64)[labels]
    gp = jacana.TangentGP(trained(folder), progress=True)
    std = noise(gp.linearization, x, 1e-1)
    way = jacana.Pathwise(4, jacana.CG(rtol=1e-2))
    post, spent = seconds(lambda: gp.condition(x, y, std, method=way))
    return {
        "n": n, "rows": 10 * n, "seconds": spent, "steps": post.solution.steps,
        "residual": float(post.solution.relative_residuals.max()),
    }  # fmt: skip


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "size": size,
    "width": width,
    "steps": steps,
    "defaults": defaults,
    "online": online,
    "classified": classified,
    "ways": ways,
    "evidence": evidence,
}


def apart(threads: int, name: str, *words: Any) -> dict[str, Any]:
    """A case in a process of its own, with its peak of memory."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.posterior",
        "--threads",
        str(threads),
        "--case",
        name,
        *map(str, words),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """Seconds over the number of examples, and over the number of parameters."""
    with plots.style():
        made = plots.figure(11.0, 4.2)
        left, right = made.subplots(1, 2)
        for method, colour in (("factorised", "Jacana"), ("products", "last layer")):
            rows = [row for row in results.get("size", []) if row["method"] == method]
            for key, line in (("seconds_mean", "-"), ("seconds", "--")):
                what = "mean" if key == "seconds_mean" else f"and {NEW} variances"
                label = f"{'factorised' if method == 'factorised' else 'by products'}, {what}"
                x, y = [row["n"] for row in rows], [row[key] for row in rows]
                left.plot(x, y, line, marker="o", color=plots.COLOURS[colour], label=label)
        rows = results.get("width", [])
        x, y = [row["parameters"] for row in rows], [row["seconds"] for row in rows]
        right.plot(x, y, marker="o", color=plots.COLOURS["Jacana"])
        for panel, title, axis in (
            (left, "Posterior of 803,601 parameters", "examples"),
            (right, "Factorised posterior of 1,000 examples", "parameters"),
        ):
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xlabel(axis)
            panel.set_ylabel("seconds")
            plots.panel_title(panel, title)
        left.legend(fontsize=8)
        return plots.save(made, path)


def main(argv: list[str] | None = None) -> None:
    """Time, print, write."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--case", nargs="+")
    own.add_argument("--images", type=int, default=0, help="also ResNet-20 on so many images, from JACANA_DATA")
    options, rest = own.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.case:
        name, *words = options.case
        found = CASES[name](*[_number(word) for word in words])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found | {"peak_mib": peak}))
        return
    asked = parse("posterior", "Timings of posteriors, factorised and by products.", seeds=1, argv=rest)
    start = time.perf_counter()
    sizes, widths = ((300, 600), (10, 30)) if asked.quick else (SIZES, WIDTHS)
    wanted: list[tuple[str, tuple[Any, ...]]] = [("width", (each,)) for each in widths]
    if not asked.quick:
        wanted += [("steps", (name, ratio)) for name in ("MLP", "ResNet-20") for ratio in RATIOS]
        wanted += [("online", words) for words in ONLINE]
    wanted += [("defaults", (900 if asked.quick else 1_500,))]
    wanted += [
        ("size", (n, method)) for n in sizes for method in ("factorised", "products")
        if method == "products" or n <= FACTORISED
    ]  # fmt: skip
    wanted += [("ways", (600 if asked.quick else 5_000, way, ratio)) for ratio in RATIOS[:2] for way in WAYS]
    wanted += [("evidence", (n,)) for n in ((600,) if asked.quick else (5_000, 50_000))]
    wanted += [("classified", (options.images,))] if options.images else []
    settings = {"threads": options.threads, "rtol": RTOL, "new": NEW, "sizes": sizes, "widths": widths}
    results: dict[str, list[dict[str, Any]]] = {}
    for name, words in tqdm(wanted, desc="posterior", disable=not asked.progress):
        results.setdefault(name, []).append(apart(options.threads, name, *words))
        print(name, json.dumps(results[name][-1]), flush=True)
        passed = time.perf_counter() - start
        path = record(asked.path(".json"), asked, settings=settings, results=results, seconds=passed)  # as far as it is
    print(path, draw(results, asked.path(".png")))


def _number(word: str) -> Any:
    try:
        return int(word)
    except ValueError:
        try:
            return float(word)
        except ValueError:
            return word


if __name__ == "__main__":
    main()
