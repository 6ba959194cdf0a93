"""The style that the pictures share: one colour a method, quiet axes, nothing that does not carry data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "band", "curve", "figure", "panel_title", "save", "style"]

INK = "#22303C"
QUIET = "#8A949C"

COLOURS = {
    "Jacana": "#B3401F",
    "last layer": "#2F6DA8",
    "fine-tuning": "#2E8B6F",
    "RBF GP": "#7A5AA6",
    "ABLR": "#D69A1E",
    "Jacana + RBF": "#D1759B",
    "no adaptation": "#8A949C",
}
"""One colour a method, the same in every picture, told apart also by the colour-blind."""

MARKERS = {
    "Jacana": "o",
    "last layer": "s",
    "fine-tuning": "^",
    "RBF GP": "D",
    "ABLR": "v",
    "Jacana + RBF": "P",
    "no adaptation": "",
}

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E9EB",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this; matplotlib's settings are put back afterwards."""
    with mpl.rc_context(STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display and leaves pyplot's state alone."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: Path) -> Path:
    """Write the picture and give back its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    return path


def panel_title(axes: Axes, title: str, note: str = "") -> None:
    """A bold title, and a quiet note on its right."""
    axes.set_title(title)
    if note:
        axes.set_title(note, loc="right", fontsize=9, fontweight="normal", color=QUIET)


def curve(
    axes: Axes, x: np.ndarray, mean: np.ndarray, error: np.ndarray, method: str, *, label: str | None = None
) -> None:
    """A method's figure of merit over the number of labels, with its standard error."""
    level = method == "no adaptation"
    axes.errorbar(
        x,
        mean,
        yerr=None if level else error,
        color=COLOURS[method],
        marker=MARKERS[method],
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1.2,
        linestyle="--" if level else "-",
        linewidth=2.4 if method == "Jacana" else 1.6,
        zorder=4 if method == "Jacana" else 3,
        label=label or method,
    )


def band(
    axes: Axes, x: np.ndarray, mean: np.ndarray, std: np.ndarray, method: str, *, label: str | None = None
) -> None:
    """A prediction as a line in its central 95 % interval."""
    colour = COLOURS[method]
    axes.fill_between(x, mean - 1.96 * std, mean + 1.96 * std, color=colour, alpha=0.16, linewidth=0, zorder=1)
    axes.plot(x, mean, color=colour, label=label or method, zorder=3)
