"""The demonstration: rotated digits and sinusoids, in under four minutes on two cores.

    make demo

Prints a table of each, writes ``demo.json`` with every number and ``demo.png`` with both, and ends with the path of
the picture. What is compared and how probabilities come out stands in `experiments.digits`; the sinusoids are those of
`experiments.sinusoids`, fewer of them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments import digits, digits_report, plots, sinusoids, sinusoids_report
from experiments.command import parse, record

__all__ = ["main"]

SINUSOIDS = {"tasks": 12, "ablr_sources": (1,), "ablr_starts": 1}
"""How the sinusoids of the demonstration differ from the experiment's, beside its fewer seeds."""

DIGITS_NOTE = """\
Jacana is jacana.NTKClassifier: mean, scales and temperatures are learned from the 100 labels. The last layer is a
logistic regression, its penalty cross-validated. The probabilities of the other methods are a softmax over one
temperature, fitted to predictions of those 100 labels that the method made without them. Seconds: CPU time of one
adaptation with all its choices, on one thread."""

SINUSOIDS_NOTE = """\
Both spaces give one posterior: means differ by at most {mean:.0e} predictive standard deviations. Each kernel's scales
and noise come from the evidence of the 10 labels."""


def main(argv: list[str] | None = None) -> None:
    """Run both parts, print, write, and end with the picture's path."""
    asked = parse("demo", "Adapt to rotated digits and to new sinusoids.", seeds=5, quick_seeds=1, argv=argv)
    start = time.perf_counter()
    settings = sinusoids.Settings(seeds=max(1, asked.seeds - 1), **SINUSOIDS)  # type: ignore[arg-type]
    print(
        f"\nDigits: a network trained on upright digits meets digits rotated by {digits.SETTINGS['angle']:.0f} "
        f"degrees, {digits.SETTINGS['labels_per_class']} labels a class.",
        flush=True,
    )
    runs = digits.run(asked.seeds, progress=asked.progress)
    found = digits_report.summary(runs)
    upright, tested = found["source_accuracy"]["mean"], found["test_examples"][0]
    print(
        f"\nMean ± standard error of {asked.seeds} seeds, {tested} test digits each; "
        f"on upright digits the network is right on {upright:.1%}.\n\n{digits_report.show(found)}\n\n{DIGITS_NOTE}\n"
    )
    print("Sinusoids: a network trained on 10 points of one curve meets new curves with 10 points each.", flush=True)
    curves = sinusoids.run(settings, progress=asked.progress)
    note = SINUSOIDS_NOTE.format(mean=curves["spaces_differ_by"]["mean_in_stds"])
    print(
        f"\nMean ± standard error of {settings.seeds} source curves, {settings.tasks} new curves each.\n\n"
        f"{sinusoids_report.show(curves['table'])}\n\n{note}\n"
    )
    with plots.style():
        picture = plots.save(draw(found, runs[0], curves["picture"]), asked.path(".png"))
    seconds = time.perf_counter() - start
    results = {"digits": found, "sinusoids": {key: value for key, value in curves.items() if key != "picture"}}
    stated = {"digits": digits.SETTINGS, "sinusoids": settings, "sinusoids_candidates": sinusoids.CANDIDATES}
    written = record(asked.path(".json"), asked, settings=stated, results=results, seconds=seconds)
    print(f"All of it took {seconds:.0f} seconds. Every number: {written}\n{picture.resolve()}")


def draw(found: dict[str, Any], run: digits_report.Run, curves: list[dict[str, Any]]) -> Any:
    """Both parts in one figure."""
    made: Any = plots.figure(13.0, 6.9)
    above, below = made.subfigures(2, 1, height_ratios=[1.0, 1.0], hspace=0.04)
    digits_report.draw(above, found, run)
    panels = list(np.atleast_1d(below.subplots(1, len(curves))))
    for at, (axes, curve) in enumerate(zip(panels, curves, strict=True)):
        grid, truth = np.asarray(curve["grid"]), np.asarray(curve["truth"])
        for name in ("RBF GP", "Jacana, function space"):
            answer = curve["methods"][name]
            plots.band(axes, grid, np.asarray(answer["mean"]), np.asarray(answer["std"]), name.partition(",")[0])
        axes.plot(grid, curve["network"], color=plots.QUIET, linewidth=1.2, label="source network", zorder=2)
        axes.plot(grid, truth, color=plots.INK, linewidth=1.0, linestyle=(0, (4, 2)), label="truth", zorder=4)
        axes.plot(*curve["points"], "o", color=plots.INK, markersize=4.5, label="10 labels", zorder=5)
        reach = 1.8 * float(np.abs(truth).max())
        axes.set(xlim=(-6.0, 6.0), ylim=(-reach, reach))
        title = "Sinusoids: the network knows the grey curve and meets new ones" if at == 0 else ""
        plots.panel_title(axes, title)
    handles, labels = panels[0].get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return made


if __name__ == "__main__":
    main()
