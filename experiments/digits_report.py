"""What came out of the digits: table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments import plots
from experiments.markdown import markdown_table
from experiments.metrics import mean_and_standard_error, paired_difference

__all__ = ["BEST_OF_GRID", "METHODS", "Outcome", "Run", "draw", "markdown", "reliability", "show", "summary"]

BEST_OF_GRID = "best of its grid on the test set"
METHODS = ("no adaptation", "last layer", "fine-tuning", "Jacana")
ROWS = ("no adaptation", "last layer", "fine-tuning", BEST_OF_GRID, "Jacana")

WRONG = "#C2185B"


@dataclass(frozen=True)
class Outcome:
    """What one method reached on the test digits.

    Attributes:
        accuracy: Share of the test digits that are right.
        nll: Mean negative log-probability of their labels.
        ece: Expected calibration error.
        seconds: CPU time of the adaptation, choices and test predictions included.
        choices: What was chosen or learned, and by name.
        probabilities: Of the test digits, (m, 10); not recorded.
    """

    accuracy: float
    nll: float
    ece: float
    seconds: float
    choices: dict[str, Any]
    probabilities: np.ndarray = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """All that goes on record."""
        return {name: value for name, value in vars(self).items() if name != "probabilities"}


@dataclass(frozen=True)
class Run:
    """What came out for one seed.

    Attributes:
        seed: The seed.
        source_accuracy: Of the source network on the upright held-out digits.
        outcomes: By method.
        upright: The test digits before they were rotated, (m, 8, 8).
        rotated: The test digits, (m, 8, 8).
        labels: Their labels, (m,).
    """

    seed: int
    source_accuracy: float
    outcomes: dict[str, Outcome]
    upright: np.ndarray = field(repr=False)
    rotated: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Means, standard errors and paired differences over the seeds, and every figure of every seed."""
    quantities = ("accuracy", "nll", "ece", "seconds")
    return {
        "source_accuracy": mean_and_standard_error([run.source_accuracy for run in runs])._asdict(),
        "test_examples": [len(run.outcomes["Jacana"].probabilities) for run in runs],
        "methods": {
            name: {
                what: mean_and_standard_error([getattr(run.outcomes[name], what) for run in runs])._asdict()
                for what in quantities
            }
            for name in ROWS
        },
        "accuracy_of_jacana_minus": {
            name: paired_difference(
                [run.outcomes["Jacana"].accuracy for run in runs], [run.outcomes[name].accuracy for run in runs]
            )._asdict()
            for name in ROWS
            if name != "Jacana"
        },
        "reliability": {name: reliability(runs, name) for name in METHODS},
        "seeds": {str(run.seed): {name: run.outcomes[name].figures() for name in ROWS} for run in runs},
    }


def reliability(runs: Sequence[Run], method: str, bins: int = 10) -> dict[str, list[float]]:
    """Confidence and accuracy of the test digits of all seeds, in groups of equal size by confidence."""
    p = np.concatenate([run.outcomes[method].probabilities for run in runs])
    labels = np.concatenate([run.labels for run in runs])
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    groups = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return {
        "confidence": [float(confidence[group].mean()) for group in groups],
        "accuracy": [float(right[group].mean()) for group in groups],
    }


def markdown(found: dict[str, Any]) -> str:
    """The table of a `summary` as Markdown."""
    rows = []
    for name, row in found["methods"].items():
        cells = [f"{row[what]['mean']:.3f} ± {row[what]['standard_error']:.3f}" for what in ("accuracy", "nll", "ece")]
        title = f"*{name}*" if name == BEST_OF_GRID else f"**{name}**" if name == "Jacana" else name
        rows.append([title, *cells, f"{row['seconds']['mean']:.1f}"])
    return markdown_table(["", "accuracy", "NLL", "ECE", "seconds"], rows)


def show(found: dict[str, Any]) -> str:
    """The table of a `summary` as text."""
    lines = [f"{'':32}{'accuracy':>15}{'NLL':>16}{'ECE':>16}{'seconds':>9}"]
    for name, row in found["methods"].items():
        cells = [f"{row[what]['mean']:8.3f} ± {row[what]['standard_error']:.3f}" for what in ("accuracy", "nll", "ece")]
        title = f"  {name}" if name == BEST_OF_GRID else name
        lines.append(f"{title:32}{''.join(cells)}{row['seconds']['mean']:9.1f}")
    return "\n".join(lines)


def draw(made: Any, found: dict[str, Any], run: Run) -> None:
    """Digits with what each method says of them, accuracies, and reliability.

    Args:
        made: A figure or subfigure.
        found: A `summary`.
        run: The seed whose digits are shown: the first test digit of each class, whatever it is.
    """
    left, right = made.subfigures(1, 2, width_ratios=[1.2, 1.0])
    _digits(left.subplots(), run)
    accuracies, calibration = right.subplots(1, 2)
    _accuracies(accuracies, found)
    _reliability(calibration, found)


def _digits(axes: Axes, run: Run) -> None:
    shown = [int(np.flatnonzero(run.labels == k)[0]) for k in range(10)]
    axes.axis("off")
    plots.panel_title(axes, "Digits: the network knows the upper row, and meets the lower with 10 labels a class")
    for column, index in enumerate(shown):
        for top, images in ((0, run.upright), (9, run.rotated)):
            box = (10 * column, 10 * column + 8, top + 8, top)
            axes.imshow(images[index], cmap="gray_r", vmin=0.0, vmax=1.0, extent=box)
    for y, text in ((4.0, "source"), (13.0, "target")):
        axes.text(-3, y, text, ha="right", va="center")
    for row, name in enumerate(METHODS):
        y, p = 22.5 + 7.0 * row, run.outcomes[name].probabilities[shown]
        axes.text(-3, y, name, ha="right", va="center", fontweight="bold", color=plots.COLOURS[name])
        for column, index in enumerate(shown):
            says = int(p[column].argmax())
            colour, weight = (plots.INK, "normal") if says == run.labels[index] else (WRONG, "bold")
            axes.text(
                10 * column + 2.6, y, str(says), ha="center", va="center", fontsize=12, color=colour, weight=weight
            )
            axes.text(
                10 * column + 4.3, y + 0.4, f"{p[column, says]:.0%}", va="center", fontsize=6.5, color=plots.QUIET
            )
    axes.set(xlim=(-25, 99), ylim=(47.0, -1.0), aspect="equal", anchor="NW")


def _accuracies(axes: Axes, found: dict[str, Any]) -> None:
    for row, name in enumerate(METHODS):
        figures = found["methods"][name]["accuracy"]
        axes.barh(row, figures["mean"], color=plots.COLOURS[name], height=0.6)
        axes.errorbar(figures["mean"], row, xerr=figures["standard_error"], color=plots.INK, linewidth=1.2, capsize=2.5)
        axes.text(figures["mean"] + 0.035, row, f"{figures['mean']:.1%}", va="center", fontweight="bold")
    axes.set_yticks(range(len(METHODS)), METHODS)
    axes.set(xlim=(0.0, 1.18), xlabel="accuracy", xticks=np.linspace(0.0, 1.0, 6), ylim=(len(METHODS) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    plots.panel_title(axes, "How often right")


def _reliability(axes: Axes, found: dict[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=plots.QUIET, linewidth=1.0, linestyle="--")
    for name in METHODS[1:]:
        figures = found["reliability"][name]
        error = found["methods"][name]["ece"]["mean"]
        axes.plot(
            figures["confidence"],
            figures["accuracy"],
            color=plots.COLOURS[name],
            marker=plots.MARKERS[name],
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=f"{name} (ECE {error:.3f})",
        )
    axes.set(
        xlim=(0.2, 1.02),
        ylim=(0.2, 1.02),
        xticks=np.linspace(0.2, 1.0, 5),
        xlabel="probability given",
        ylabel="share right",
    )
    axes.legend(loc="lower right", fontsize=8)
    plots.panel_title(axes, "How well calibrated")
