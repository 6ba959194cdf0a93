"""What came out of the sinusoids: table and picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import metrics, plots

__all__ = ["plot", "show", "table"]

FIGURES = ("rmse", "relative_rmse", "nll", "coverage", "seconds")


def table(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A method's figures: mean of the means of each seed with its standard error, and the median over all tasks.

    The seeds are what is independent: tasks of one seed share their source network.
    """
    table: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        seeds = sorted({row["seed"] for row in own})
        table[name] = {}
        for figure in FIGURES:
            means = [float(np.mean([row[figure] for row in own if row["seed"] == seed])) for seed in seeds]
            summary = metrics.mean_and_standard_error(means)._asdict()
            table[name][figure] = summary | {"median_of_tasks": float(np.median([row[figure] for row in own]))}
    return table


def plot(results: dict[str, Any], made: Any = None) -> Any:
    """New curves by row, methods by column, each as its mean in its 95 % interval.

    Args:
        results: What `run` gave.
        made: A figure or subfigure to draw in, or None for a new one.
    """
    drawings = results["picture"]
    methods = list(drawings[0]["methods"])
    made = made or plots.figure(3.4 * len(methods), 2.5 * len(drawings))
    axes = made.subplots(len(drawings), len(methods), sharex=True, sharey="row", squeeze=False)
    for at, (row, drawing) in enumerate(zip(axes, drawings, strict=True)):
        grid, truth = np.asarray(drawing["grid"]), np.asarray(drawing["truth"])
        reach = 1.7 * float(np.abs(truth).max())
        for panel, name in zip(row, methods, strict=True):
            answer, family = drawing["methods"][name], name.split(",")[0]
            plots.band(panel, grid, np.asarray(answer["mean"]), np.asarray(answer["std"]), family)
            panel.plot(grid, truth, color=plots.INK, linewidth=1.0, linestyle=(0, (4, 2)), zorder=4, label="truth")
            panel.plot(*drawing["points"], "o", color=plots.INK, markersize=4.5, zorder=5, label="10 labels")
            if family == "Jacana":
                panel.plot(grid, drawing["network"], color=plots.QUIET, linewidth=1.0, label="source network")
            panel.set_ylim(-reach, reach)
            panel.set_xlim(-6.0, 6.0)
            if at == 0:
                plots.panel_title(panel, name.replace(", function space", ""))
        row[0].set_ylabel(f"new curve {at + 1}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    named = {
        ("mean and 95 %" if label == "Jacana" else label): handle for handle, label in zip(handles, labels, strict=True)
    }
    made.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    return made


def show(table: dict[str, dict[str, Any]]) -> str:
    """The table as text."""
    lines = [
        f"{'':26}{'RMSE':>16}{'RMSE / A':>16}{'median':>8}{'NLL':>16}{'median':>8}{'95 % cover':>16}{'seconds':>9}"
    ]
    for name, row in table.items():
        cells = [f"{row[f]['mean']:8.3f} ± {row[f]['standard_error']:<5.3f}" for f in FIGURES[:4]]
        medians = [f"{row[f]['median_of_tasks']:8.3f}" for f in ("relative_rmse", "nll")]
        order = [cells[0], cells[1], medians[0], cells[2], medians[1], cells[3]]
        lines.append(f"{name:26}{''.join(order)}{row['seconds']['mean']:9.2f}")
    return "\n".join(lines)
