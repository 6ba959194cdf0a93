"""Every way to a posterior against the factorised one, scales by the fixed point, more data, and many images.

    python -m benchmarks.methods --out DIR [--quick] [--threads N] [--images N] [--scales]

The perceptron and the data are those of Maddox et al. 2021 (arXiv 2103.01439), appendix; the images are CIFAR-10's, in
JACANA_DATA. Each case is one run in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import jacana
from benchmarks.apart import ROOT, apart, data, noise, perceptron, seconds, show
from experiments import pictures
from experiments.command import parse, record
from experiments.resnet import trained

__all__ = ["main"]

NEW = 50
FACTORISED = 10_000
"""Up to as many examples the evidence is also maximised exactly."""

# WeightSpace(CG()) is for n·c far beyond p: with 803,601 parameters and 5,000 examples it takes minutes. Stochastic
# descent is slow here, and 50 variances of it slower: its line is of the mean.
WAYS: dict[str, Callable[[], Any]] = {
    "FunctionSpace(CG())": lambda: jacana.FunctionSpace(jacana.CG()),
    "Pathwise(64)": lambda: jacana.Pathwise(64),
    "NystromFeatures()": jacana.NystromFeatures,
    "Pathwise(1, SDD())": lambda: jacana.Pathwise(1, jacana.SDD(max_epochs=100)),
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


def classified(n: int) -> dict[str, Any]:
    """Mean and four samples of the trained ResNet-20, CIFAR-10's images, ten outputs as one-hot targets."""
    folder = Path(os.environ.get("JACANA_DATA", ROOT.parent / "shared" / "data"))
    x, labels = pictures.cifar10(folder, "train", n)
    y = torch.eye(10, dtype=torch.float64)[labels]
    gp = jacana.TangentGP(trained(folder), progress=True)
    std = noise(gp.linearization, x, 1e-1)
    few_passes = jacana.preconditioners.Nystrom(rank=4_500)
    way = jacana.Pathwise(4, jacana.CG(rtol=1e-2, preconditioner=few_passes))
    post, spent = seconds(lambda: gp.condition(x, y, std, method=way))
    return {
        "n": n, "rows": 10 * n, "seconds": spent, "steps": post.solution.steps,
        "residual": float(post.solution.relative_residuals.max()),
    }  # fmt: skip


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "ways": ways,
    "evidence": evidence,
    "online": online,
    "classified": classified,
}


def main(argv: list[str] | None = None) -> None:
    """Time, print, write."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--threads", type=int, default=1)
    own.add_argument("--case", nargs="+")
    own.add_argument("--scales", action="store_true", help="scales without a factorisation, and nothing else: an hour")
    own.add_argument("--images", type=int, default=0, help="ResNet-20 on so many images, and nothing else: an hour")
    options, rest = own.parse_known_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.case:
        show(CASES, options.case)
        return
    name = "images" if options.images else "scales" if options.scales else "methods"
    asked = parse(name, "Ways to a posterior against the factorised one.", seeds=1, argv=rest)
    start = time.perf_counter()
    n, most = (600, 600) if asked.quick else (5_000, 50_000)
    wanted: list[tuple[str, tuple[Any, ...]]] = [("ways", (n, way, ratio)) for ratio in (1e-1, 1e-2) for way in WAYS]
    wanted += [("online", (method, rtol)) for method in ("FunctionSpace", "Pathwise") for rtol in (1e-3, 1e-4)]
    apart_from_these = {
        "images": [("classified", (options.images,))],
        "scales": [("evidence", (each,)) for each in sorted({n, most})],
    }
    wanted = apart_from_these.get(name, wanted)
    results: dict[str, list[dict[str, Any]]] = {}
    settings, path = {"threads": options.threads, "new": NEW}, asked.path(".json")
    for case, words in tqdm(wanted, desc=name, disable=not asked.progress):
        results.setdefault(case, []).append(apart("benchmarks.methods", options.threads, case, *words))
        print(case, json.dumps(results[case][-1]), flush=True)
        passed = time.perf_counter() - start
        path = record(asked.path(".json"), asked, settings=settings, results=results, seconds=passed)  # as far as it is
    print(path)


if __name__ == "__main__":
    main()
