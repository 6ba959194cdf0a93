"""Malaria: a network learns the map of 2012, then meets the map of 2016 with a growing number of its pixels.

Burkina Faso changed much between the two years, Cameroon little. After section 5 of Maddox et al. 2021 (arXiv
2103.01439), with the noise and the prior learned instead of left at a default. Run:

    python -m experiments.malaria --data DIR [--out DIR] [--quick] [--seeds N] [--workers N]

What is finished lies in ``<out>/malaria-parts``, one file a country and seed; a later run with the same settings
continues there. A process takes up to 6 GB for Cameroon: name fewer ``--workers`` where that does not fit.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from experiments import command, metrics, plots
from experiments.data import MalariaMap, malaria_map
from experiments.malaria_methods import Methods
from experiments.malaria_report import comparisons, plot, show, table
from experiments.malaria_task import QUICK, Settings, split, train
from experiments.parallel import each

__all__ = ["main", "run", "run_part"]

DRAWN = 500
"""Labels of the adaptation that the maps show."""


def run_part(pixels: MalariaMap, settings: Settings, seed: int, tick: Callable[[], None]) -> dict[str, Any]:
    """One country and seed: train, then adapt with every method at every number of labels.

    Args:
        pixels: The country.
        settings: All settings.
        seed: For the split, the training and the methods.
        tick: Called after the training and after each number of labels.

    Returns:
        ``rows``, a row a method and number of labels, in units of the parasite rate; ``source``, the fit of the
        source network; ``drawing``, of the first seed, the maps of one adaptation.
    """
    start = time.process_time()
    parts = split(pixels, settings, seed)
    net = train(parts, settings, seed)
    trained = time.process_time() - start
    tick()
    methods = Methods(net, parts, settings, seed)
    sizes = list(dict.fromkeys(min(size, len(parts.pool)) for size in settings.sizes))
    truth, rows = parts.after[parts.test].numpy(), []
    for n in sizes:
        for name, mean, std, details in methods.answers(n):
            figures = {
                "mse": metrics.mse(mean, truth) * parts.scale**2,
                "nll": metrics.gaussian_nll(mean, std, truth) + float(np.log(parts.scale)),
                "coverage": metrics.coverage(mean, std, truth),
            }
            rows.append({"country": pixels.country, "seed": seed, "n": n, "method": name, **figures, **details})
        tick()
    with torch.no_grad():
        everywhere = net(parts.inputs)[:, 0].double()
    residual = (everywhere - parts.before) * parts.scale
    part: dict[str, Any] = {
        "rows": rows,
        "source": {
            "country": pixels.country,
            "seed": seed,
            "train_mse": float(residual[parts.source].square().mean()),
            "test_mse": float(residual[parts.test].square().mean()),
            "seconds": trained,
        },
    }
    if seed == 0:
        labels = parts.pool[: min(DRAWN, max(sizes))]
        mean, std, _ = methods.jacana(parts.inputs[labels], parts.after[labels], parts.inputs)
        drawn = {"network": everywhere.numpy(), "mean": mean}
        part["drawing"] = {
            "n": len(labels),
            "labels": labels,
            "std": np.round(std * parts.scale, 4),
            **{key: np.round(values * parts.scale + parts.centre, 4) for key, values in drawn.items()},
        }
    return part


def run(asked: command.Command, settings: Settings) -> list[dict[str, Any]]:
    """All countries and seeds; what is on disk from an earlier run with these settings is not done again."""
    fingerprint = json.loads(json.dumps(dataclasses.asdict(settings)))
    wanted = [(country, seed) for seed in range(asked.seeds) for country in settings.countries]
    paths = {part: asked.path("-parts") / f"{part[0]}-{part[1]}.json" for part in wanted}
    maps = {country: malaria_map(asked.data, country) for country in settings.countries}
    missing = [
        (paths[country, seed], maps[country], settings, seed)
        for country, seed in wanted
        if not _finished(paths[country, seed], fingerprint)
    ]
    each(
        _write_part,
        missing,
        ticks=len(missing) * (1 + len(settings.sizes)),
        description="malaria",
        progress=asked.progress,
        workers=asked.workers,
    )
    return [command.read(paths[part])["part"] for part in wanted]


def _finished(path: Path, fingerprint: dict[str, Any]) -> bool:
    return path.is_file() and command.read(path)["settings"] == fingerprint


def _write_part(job: tuple[Path, MalariaMap, Settings, int], tick: Callable[[], None]) -> None:
    path, pixels, settings, seed = job
    with threadpool_limits(1):  # torch has one thread here already; this is numpy's and scipy's
        part = run_part(pixels, settings, seed, tick)
    command.write(path, {"settings": settings, "environment": command.environment(), "part": part})


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    asked = command.parse("malaria", "A map of 2012 adapted to 2016, with every method.", seeds=5, argv=argv)
    settings = QUICK if asked.quick else Settings()
    start = time.perf_counter()
    parts = run(asked, settings)
    rows = [row for part in parts for row in part["rows"]]
    drawings = {part["source"]["country"]: part["drawing"] for part in parts if "drawing" in part}
    maps = {country: malaria_map(asked.data, country) for country in drawings}
    with plots.style():
        picture = plots.save(plot(rows, drawings, maps), asked.path(".png"))
    results = {
        "table": table(rows),
        "comparisons": comparisons(rows),
        "source": [part["source"] for part in parts],
        "rows": rows,
    }
    stated = {
        **dataclasses.asdict(settings),
        "candidates": settings.candidates(),
        "units": "parasite rate; CPU seconds of one thread",
    }
    record = command.record(
        asked.path(".json"), asked, settings=stated, results=results, seconds=time.perf_counter() - start
    )
    print(show(rows), record, picture, sep="\n")


if __name__ == "__main__":
    main()
