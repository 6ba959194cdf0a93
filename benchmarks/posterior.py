"""Time posteriors from 300 to 100,000 examples and up to 75 million parameters: factorised, and by products alone.

    python -m benchmarks.posterior --out DIR [--quick] [--threads N]

The perceptrons and the data are those of Maddox et al. 2021 (arXiv 2103.01439), appendix: x ~ N(0, I) in five
dimensions, y = sin Σx + .1 ε. Each case is one run in a process of its own, which also says its peak of memory.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch
from torch import Tensor
from tqdm import tqdm

import jacana
from benchmarks.apart import apart, data, noise, perceptron, seconds, show
from benchmarks.networks import images, resnet
from experiments import plots
from experiments.command import parse, record

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]
NEW = 50
FACTORISED = 10_000
"""Above as many examples a posterior is solved by products alone."""

SIZES = (300, 1_000, 3_000, 10_000, 30_000, 100_000)
WIDTHS = (10, 30, 100, 300, 1_000, 3_000, 5_000)
RATIOS = (1e-1, 1e-2, 1e-3)
RTOL = 1e-3


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


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "size": size,
    "width": width,
    "steps": steps,
    "defaults": defaults,
}


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
    options, rest = own.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.case:
        show(CASES, options.case)
        return
    asked = parse("posterior", "Timings of posteriors, factorised and by products.", seeds=1, argv=rest)
    start = time.perf_counter()
    sizes, widths = ((300, 600), (10, 30)) if asked.quick else (SIZES, WIDTHS)
    wanted: list[tuple[str, tuple[Any, ...]]] = [("width", (each,)) for each in widths]
    if not asked.quick:
        wanted += [("steps", (name, ratio)) for name in ("MLP", "ResNet-20") for ratio in RATIOS]
    wanted += [("defaults", (900 if asked.quick else 1_500,))]
    wanted += [
        ("size", (n, method)) for n in sizes for method in ("factorised", "products")
        if method == "products" or n <= FACTORISED
    ]  # fmt: skip
    settings = {"threads": options.threads, "rtol": RTOL, "new": NEW, "sizes": sizes, "widths": widths}
    results: dict[str, list[dict[str, Any]]] = {}
    for name, words in tqdm(wanted, desc="posterior", disable=not asked.progress):
        results.setdefault(name, []).append(apart("benchmarks.posterior", options.threads, name, *words))
        print(name, json.dumps(results[name][-1]), flush=True)
        passed = time.perf_counter() - start
        path = record(asked.path(".json"), asked, settings=settings, results=results, seconds=passed)  # as far as it is
    print(path, draw(results, asked.path(".png")))


if __name__ == "__main__":
    main()
