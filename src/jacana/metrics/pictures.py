"""Pictures: calibration and selective prediction at a glance, one call each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jacana.metrics.calibration import Bins
from jacana.metrics.classified import Values, classified
from jacana.metrics.selection import risk_coverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:  # matplotlib is an extra
    Axes = Any

__all__ = ["reliability_diagram", "risk_coverage_plot"]

_INK, _QUIET, _GRID = "#22303C", "#8A949C", "#E6E9EB"
_COLOURS = ("#B3401F", "#2F6DA8", "#2E8B6F", "#7A5AA6", "#D69A1E", "#D1759B")
"""Told apart also by the colour-blind."""
_N_DRAWS = 1000


def reliability_diagram(
    probabilities: Values,
    labels: Values,
    n_bins: int = 15,
    binning: str = "mass",
    ax: Axes | None = None,
    *,
    classes: Values | None = None,
) -> Axes:
    """Draw accuracy against confidence, a point for each bin, with what chance alone does to a calibrated model.

    The grey band holds 95 % of the accuracies in each bin when labels are drawn from the probabilities (a thousand
    times, with a fixed seed): points outside it, and no others, speak against the calibration. A line joins each point
    to the diagonal; the expected calibration error is the title.

    Args:
        probabilities: (n, k), of sum one.
        labels: (n,), columns by number.
        n_bins: the number of bins.
        binning: as for :func:`expected_calibration_error`.
        ax: where to draw; None for a new figure of ``matplotlib.pyplot``.
        classes: the label of each column, if not 0, …, k − 1.

    Returns:
        The axes.

    Raises:
        ImportError: without matplotlib, which is in the extra ``plot``.
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: other ``n_bins`` or ``binning``, ``classes`` that do not name each column once.

    References:
        DeGroot and Fienberg 1983, The comparison and evaluation of forecasters. Bröcker and Smith 2007, Increasing the
        reliability of reliability diagrams, for the band.

    Example:
        >>> from jacana import metrics
        >>> from matplotlib.figure import Figure
        >>> ax = metrics.reliability_diagram(
        ...     [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], [0, 0, 0], n_bins=2, ax=Figure().subplots()
        ... )
        >>> ax.get_title(loc="left")
        'ECE 0.133'
    """
    given = classified(probabilities, labels, classes)
    bins = Bins.of(given, n_bins, binning)
    confidence, accuracy = bins.confidences, bins.accuracies(given.correct)
    low, high = np.quantile(bins.simulated(given, _N_DRAWS, 0), [0.025, 0.975], axis=0)
    ax = _axes(ax, (4.4, 4.4))
    # The outline is seen where there is but one bin.
    ax.fill_between(confidence, low, high, color=_QUIET, alpha=0.3, linewidth=3.0, label="95 % if calibrated", zorder=1)
    ax.plot([0.0, 1.0], [0.0, 1.0], color=_QUIET, linestyle="--", linewidth=1.2, zorder=2)
    ax.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=_COLOURS[0])
    ax.plot(
        confidence,
        accuracy,
        "o",
        color=_COLOURS[0],
        markersize=6,
        markeredgecolor="white",
        label=f"{len(confidence)} bins of equal {binning}",
        zorder=4,
    )
    ax.set(xlim=(0.0, 1.0), ylim=(-0.02, 1.02), aspect="equal", xlabel="confidence", ylabel="accuracy")
    ax.set_title(f"ECE {bins.error(given.correct):.3f}", loc="left", color=_INK)
    ax.legend(loc="lower right", frameon=False)
    return ax


def risk_coverage_plot(
    probabilities: Values | Mapping[str, Values],
    labels: Values,
    ax: Axes | None = None,
    *,
    classes: Values | None = None,
) -> Axes:
    """Draw the error rate among the answered examples against the share that is answered, surest first.

    Args:
        probabilities: (n, k), of sum one; or a mapping from names of models to theirs.
        labels: (n,), columns by number.
        ax: where to draw; None for a new figure of ``matplotlib.pyplot``.
        classes: the label of each column, if not 0, …, k − 1.

    Returns:
        The axes, the area under each curve in its legend (of one model in the title).

    Raises:
        ImportError: without matplotlib, which is in the extra ``plot``.
        InvalidData: shapes, NaN, no probabilities, labels that are no class.
        InvalidOption: ``classes`` that do not name each column once.

    References:
        Geifman and El-Yaniv 2017 (arXiv 1705.08500).

    Example:
        >>> from jacana import metrics
        >>> from matplotlib.figure import Figure
        >>> models = {"one": [[0.9, 0.1], [0.4, 0.6]], "other": [[0.9, 0.1], [0.7, 0.3]]}
        >>> ax = metrics.risk_coverage_plot(models, [0, 0], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['one, area 0.250', 'other, area 0.000']
    """
    named = isinstance(probabilities, Mapping)
    models: Mapping[str, Values] = probabilities if isinstance(probabilities, Mapping) else {"": probabilities}
    curves = {name: risk_coverage(p, labels, classes=classes) for name, p in models.items()}
    ax = _axes(ax, (5.4, 4.0))
    for number, (name, curve) in enumerate(curves.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], ("-", "--", ":")[number // len(_COLOURS) % 3]
        label = f"{name}, area {curve.area:.3f}"
        # In steps, so that what is drawn has the area that is said.
        coverage, risk = np.append(0.0, curve.coverage), np.append(curve.risk[0], curve.risk)
        ax.step(coverage, risk, where="pre", color=colour, linestyle=dash, linewidth=1.8, label=label)
        if not named:
            ax.set_title(f"area {curve.area:.3f}", loc="left", color=_INK)
    ax.set(xlim=(0.0, 1.0), xlabel="coverage: share of examples answered", ylabel="risk: share of these wrong")
    ax.set_ylim(bottom=0.0)
    if named and curves:
        ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Quiet axes, of a new figure if none are given."""
    if ax is None:
        try:
            pyplot = importlib.import_module("matplotlib.pyplot")
        except ImportError as error:
            raise ImportError(
                f"jacana.metrics draws with matplotlib, which is in an extra: pip install 'jacana[plot]' ({error})"
            ) from error
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=_GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax
