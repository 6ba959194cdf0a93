"""What came out of the classification experiment: tables, paired comparisons, picture."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import metrics, plots
from experiments.classification_methods import METHODS
from experiments.markdown import markdown_table

__all__ = ["AGAINST", "draw", "markdown", "markdown_paired", "show", "summary", "tables"]

AGAINST = "fine-tuning"
"""Every method is compared with this one, seed by seed."""

FIGURES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "ece_excess": "its excess",
    "brier": "Brier",
    "auroc_others_by_entropy": "AUROC, other classes",
    "auroc_mnist_by_entropy": "AUROC, digits",
}
"""Of every table; those compared are the same."""

OTHER_SCORES = ("auroc_others", "auroc_mnist", "seconds", "seconds_predicting")

PICKED_ON_TEST = ("oracle", "oracle-temperature", "laplace-torch")

STYLES = {
    "none": (plots.COLOURS["no adaptation"], "", "--"),
    "last-layer": (plots.COLOURS["last layer"], "s", "-"),
    "fine-tuning": (plots.COLOURS["fine-tuning"], "^", "-"),
    "temperature": (plots.COLOURS["fine-tuning"], "v", "-"),
    "oracle": (plots.COLOURS["fine-tuning"], "", ":"),
    "oracle-temperature": (plots.COLOURS["fine-tuning"], "x", ":"),
    "laplace-torch": (plots.COLOURS["RBF GP"], "D", ":"),
    "jacana": (plots.COLOURS["Jacana"], "o", "-"),
    "jacana-flow": (plots.COLOURS["Jacana"], "*", "-"),
    "jacana-relinearized": (plots.COLOURS["Jacana"], "P", "--"),
    "jacana-one-hot": (plots.COLOURS["ABLR"], "o", "-"),
    "jacana-dirichlet": (plots.COLOURS["ABLR"], "P", "--"),
    "jacana-last-layer": (plots.COLOURS["Jacana + RBF"], "s", "-"),
    "jacana-no-norms": (plots.COLOURS["Jacana + RBF"], "o", "--"),
}
"""Colour, marker and line of each method; what is picked on the test set is dotted."""

Rows = list[dict[str, Any]]


def summary(rows: Rows) -> dict[str, Any]:
    """Means and standard errors over the seeds, and paired differences to fine-tuning with 95 % Student intervals.

    Args:
        rows: A row a number of labels, seed and method.
    """
    table, paired = [], []
    for labels, method in _cells(rows):
        own = _of(rows, labels, method)
        values = {name: [row[name] for row in own if name in row] for name in (*FIGURES, *OTHER_SCORES)}
        summaries = {name: metrics.mean_and_standard_error(some)._asdict() for name, some in values.items()}
        table.append({"labels": labels, "method": method, **summaries})
        other = {row["seed"]: row for row in _of(rows, labels, AGAINST)}
        if method == AGAINST or not any(row["seed"] in other for row in own):
            continue
        differences = {name: _difference(own, other, name)._asdict() for name in FIGURES}
        paired.append({"labels": labels, "method": method, **differences})
    return {"table": table, "less_fine_tuning": paired}


def _difference(own: Rows, other: dict[int, dict[str, Any]], name: str) -> metrics.PairedDifference:
    """Of one figure, over the seeds that both know it of."""
    pairs = [(row[name], other[row["seed"]][name]) for row in own if name in row and name in other.get(row["seed"], {})]
    return metrics.paired_difference([one for one, _ in pairs], [two for _, two in pairs])


def markdown(results: dict[str, Any], labels: int, figures: Sequence[str] = tuple(FIGURES)) -> str:
    """The table of one number of labels a class as Markdown; what is picked on the test set is in italics."""
    own = [row for row in results["table"] if row["labels"] == labels]
    rows = [
        [_title(row["method"]), *(_plus_minus(row[name]) for name in figures), f"{row['seconds']['mean']:,.0f}"]
        for row in own
    ]
    return markdown_table(["", *(FIGURES[name] for name in figures), "seconds"], rows)


def markdown_short(results: dict[str, Any], labels: int) -> str:
    """The table of what most people ask first: of Jacana the two that go farthest, and three figures."""
    kept = ("jacana", "jacana-flow")
    table = [row for row in results["table"] if row["method"] in kept or not row["method"].startswith("jacana")]
    return markdown({"table": table}, labels, ("accuracy", "nll", "ece"))


def markdown_paired(results: dict[str, Any], labels: int) -> str:
    """Differences to fine-tuning on the same labels, for one number of labels a class, as Markdown."""
    own = [row for row in results["less_fine_tuning"] if row["labels"] == labels]
    rows = ([_title(row["method"]), *(_plus_minus(row[name], "+") for name in FIGURES)] for row in own)
    return markdown_table(["less fine-tuning", *FIGURES.values()], rows)


def tables() -> Iterator[tuple[str, tuple[str, Callable[[dict[str, Any]], str]]]]:
    """Mark to record and table, for the pages."""
    for labels in (5, 20, 50, 200):
        for suffix, make in (("", markdown), ("-paired", markdown_paired)):
            record = f"classification-{labels}"
            yield f"{record}{suffix}", (record, functools.partial(make, labels=labels))
    for labels in (5, 50):
        record = f"classification-{labels}"
        yield f"{record}-short", (record, functools.partial(markdown_short, labels=labels))


def show(found: dict[str, Any]) -> str:
    """Tables and comparisons as text."""
    lines = []
    heads = "".join(f"{title.removeprefix('AUROC, '):>17}" for title in FIGURES.values())
    for labels in dict.fromkeys(row["labels"] for row in found["table"]):
        lines += [f"\n{labels} labels a class", f"  {'':36}{heads}{'seconds':>10}"]
        for row in found["table"]:
            if row["labels"] == labels:
                lines.append(_line(row) + f"{row['seconds']['mean']:10,.1f}")
        compared = [_line(row, "+") for row in found["less_fine_tuning"] if row["labels"] == labels]
        if compared:
            lines += [f"  {'less fine-tuning':36}{heads}", *compared]
    return "\n".join(lines)


def _line(row: dict[str, Any], sign: str = "") -> str:
    return f"  {METHODS[row['method']]:36}" + "".join(f"{_plus_minus(row[name], sign):>17}" for name in FIGURES)


def draw(table: Rows) -> Figure:
    """Accuracy, negative log-likelihood and calibration error over the number of labels."""
    made = plots.figure(14.0, 5.2)
    panels = made.subplots(1, 3)
    titles = ("Accuracy", "Negative log-likelihood", "Expected calibration error")
    for panel, name, title in zip(panels, ("accuracy", "nll", "ece"), titles, strict=True):
        _curves(panel, table, name)
        plots.panel_title(panel, title)
    panels[1].set_yscale("log")  # a temperature of seven labels may be far off
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4)
    return made


def _curves(panel: Axes, table: Rows, name: str) -> None:
    for method in dict.fromkeys(row["method"] for row in table):
        own = [row for row in table if row["method"] == method]
        colour, marker, line = STYLES[method]
        panel.errorbar(
            [row["labels"] for row in own],
            [row[name]["mean"] for row in own],
            yerr=np.nan_to_num(
                np.array([row[name]["standard_error"] for row in own], dtype=float)
            ),  # a single seed: None
            color=colour,
            marker=marker or None,
            markeredgewidth=0.6,
            linestyle=line,
            linewidth=2.4 if method == "jacana" else 1.6,
            elinewidth=1.2,
            zorder=4 if method.startswith("jacana") else 3,
            label=METHODS[method],
        )
    sizes = sorted({row["labels"] for row in table})
    panel.set_xscale("log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("labels a class")


def _cells(rows: Rows) -> list[tuple[int, str]]:
    """Labels and methods that there are rows of, in the order of tables."""
    there = {(row["labels"], row["method"]) for row in rows}
    return [
        (labels, method) for labels in sorted({n for n, _ in there}) for method in METHODS if (labels, method) in there
    ]


def _of(rows: Rows, labels: int, method: str) -> Rows:
    own = [row for row in rows if (row["labels"], row["method"]) == (labels, method)]
    return sorted(own, key=lambda row: row["seed"])


def _plus_minus(found: dict[str, Any], sign: str = "") -> str:
    """Mean ± standard error; a single seed has none, which a record says as null, as it does of what is not there."""
    if found["mean"] is None or found["mean"] != found["mean"]:
        return "–"
    error = found["standard_error"]
    known = error is not None and error == error
    return f"{found['mean']:{sign}.3f}" + (f" ± {error:.3f}" if known else "")


def _title(method: str) -> str:
    name = METHODS[method]
    return f"*{name}*" if method in PICKED_ON_TEST else f"**{name}**" if method == "jacana" else name
