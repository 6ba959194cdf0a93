"""What came out of the malaria experiment: table, paired comparisons, picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from experiments import metrics, plots
from experiments.data import MalariaMap

__all__ = ["comparisons", "plot", "show", "table"]

NAMES = {"BFA": "Burkina Faso", "CMR": "Cameroon"}
FIGURES = ("mse", "nll", "coverage", "seconds")

Rows = list[dict[str, Any]]


def table(rows: Rows) -> Rows:
    """A row a country, number of labels and method: mean and standard error over seeds of each figure."""
    found = []
    for country, n, method in dict.fromkeys((row["country"], row["n"], row["method"]) for row in rows):
        values = {figure: _by_seed(rows, country, n, method, figure) for figure in FIGURES}
        summaries = {figure: metrics.mean_and_standard_error(v)._asdict() for figure, v in values.items()}
        found.append({"country": country, "n": n, "method": method, **summaries})
    return found


def comparisons(rows: Rows) -> Rows:
    """Jacana's squared error less that of another method, paired by seed, with a 95 % Student interval."""
    found = []
    for country, n in dict.fromkeys((row["country"], row["n"]) for row in rows):
        own = _by_seed(rows, country, n, "Jacana", "mse")
        for method in dict.fromkeys(row["method"] for row in rows):
            if method != "Jacana":
                difference = metrics.paired_difference(own, _by_seed(rows, country, n, method, "mse"))
                verdict = "better" if difference.better else "worse" if difference.worse else "within seed noise"
                found.append(
                    {"country": country, "n": n, "against": method, **difference._asdict(), "jacana_is": verdict}
                )
    return found


def show(rows: Rows) -> str:
    """Table and comparisons as text; squared errors in 1e-5 of a squared parasite rate."""
    lines = []
    summary, compared = table(rows), comparisons(rows)
    for country, n in dict.fromkeys((row["country"], row["n"]) for row in summary):
        lines.append(f"\n{NAMES[country]}, {n:,} labels")
        lines.append(f"  {'':14}{'MSE / 1e-5':>18}{'NLL':>17}{'95 % cover':>12}{'seconds':>9}   Jacana against it")
        for row in summary:
            if (row["country"], row["n"]) != (country, n):
                continue
            mse, nll = row["mse"], row["nll"]
            verdicts = [
                f"{1e5 * c['mean']:+.1f} ± {1e5 * c['standard_error']:.1f} {c['jacana_is']}"
                for c in compared
                if (c["country"], c["n"], c["against"]) == (country, n, row["method"])
            ]
            lines.append(
                f"  {row['method']:14}{1e5 * mse['mean']:10.1f} ± {1e5 * mse['standard_error']:<5.1f}"
                f"{nll['mean']:10.3f} ± {nll['standard_error']:<5.3f}{row['coverage']['mean']:11.3f}"
                f"{row['seconds']['mean']:9.1f}   {''.join(verdicts)}"
            )
    return "\n".join(lines)


def plot(rows: Rows, drawings: dict[str, dict[str, Any]], maps: dict[str, MalariaMap]) -> Any:
    """The maps of each country above, error and log-likelihood over the number of labels below.

    Args:
        rows: A row a seed, country, number of labels and method.
        drawings: Of each country: number of labels ``n``, the network's map ``network``, the adapted ``mean`` and
            ``std`` at every pixel, ``labels`` (the labelled pixels).
        maps: The data.
    """
    made = plots.figure(14.0, 3.1 * len(drawings) + 4.2)
    above, below = np.ravel(made.subfigures(2, 1, squeeze=False, height_ratios=[3.1 * len(drawings), 4.2]))
    grid = above.subplots(len(drawings), 5, squeeze=False)
    for line, (country, drawing) in zip(grid, drawings.items(), strict=True):
        _maps(list(line), country, drawing, maps[country])
    axes = below.subplots(1, 2 * len(drawings), squeeze=False)[0]
    for at, country in enumerate(drawings):
        for figure, panel in zip(("mse", "nll"), axes[2 * at : 2 * at + 2], strict=True):
            _curves(panel, [row for row in table(rows) if row["country"] == country], figure)
            what = "mean squared error" if figure == "mse" else "negative log-likelihood"
            plots.panel_title(panel, f"{NAMES[country]}: {what}")
    handles, labels = axes[0].get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return made


def _maps(panels: list[Axes], country: str, drawing: dict[str, Any], pixels: MalariaMap) -> None:
    rates = {
        f"{NAMES[country]} 2012": pixels.source,
        "2016": pixels.target,
        "network of 2012": np.asarray(drawing["network"]),
        f"adapted, {drawing['n']:,} labels": np.asarray(drawing["mean"]),
    }
    top = float(np.quantile(np.concatenate([pixels.source, pixels.target]), 0.998))
    for panel, (title, values) in zip(panels[:4], rates.items(), strict=True):
        _picture(panel, pixels, values, title, "YlOrRd", (0.0, top), bar=panel is panels[3])
    x, y = pixels.position[np.asarray(drawing["labels"])].T
    panels[3].plot(x, y, ".", color=plots.INK, markersize=1.2, alpha=0.6)
    std = np.asarray(drawing["std"])
    _picture(panels[4], pixels, std, "its standard deviation", "BuPu", (0.0, float(np.quantile(std, 0.998))), bar=True)


def _picture(
    panel: Axes,
    pixels: MalariaMap,
    values: np.ndarray,
    title: str,
    colours: str,
    limits: tuple[float, float],
    *,
    bar: bool,
) -> None:
    image = panel.imshow(
        pixels.raster(values),
        extent=pixels.extent,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    plots.panel_title(panel, title)
    panel.set_axis_off()
    if bar:
        scale = panel.figure.colorbar(image, cax=panel.inset_axes((1.03, 0.08, 0.035, 0.84)))
        scale.outline.set_visible(False)
        scale.set_label("parasite rate")


def _curves(panel: Axes, summary: Rows, figure: str) -> None:
    for method in dict.fromkeys(row["method"] for row in summary):
        own = [row for row in summary if row["method"] == method]
        x, mean, error = (
            np.array([row["n"] for row in own]),
            np.array([row[figure]["mean"] for row in own]),
            np.array([row[figure]["standard_error"] for row in own]),
        )
        if method != "no adaptation" or figure == "mse":
            plots.curve(panel, x, mean, np.nan_to_num(error), method)
    sizes = sorted({row["n"] for row in summary})
    panel.set_xscale("log")
    named = [n for n, larger in zip(sizes, [*sizes[1:], np.inf], strict=True) if larger > 1.4 * n]
    panel.set_xticks(named, [f"{n}" if n < 1000 else f"{n / 1000:.3g}k" for n in named], fontsize=8)
    panel.set_xticks([], minor=True)
    panel.set_xlabel("labels of 2016")
    if figure == "mse":
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4f}".rstrip("0")))
        panel.set_yticks([], minor=True)
        adapted = [row["mse"]["mean"] for row in summary if row["method"] != "no adaptation"]
        without = max(row["mse"]["mean"] for row in summary)
        if without > 4.0 * max(adapted):  # a line so far above leaves no room to tell the others apart
            panel.set_ylim(0.8 * min(adapted), 1.6 * max(adapted))
            panel.text(
                0.98, 0.97, f"no adaptation: {without:.3f}, above", transform=panel.transAxes, ha="right", va="top"
            )


def _by_seed(rows: Rows, country: str, n: int, method: str, figure: str) -> list[float]:
    own = [row for row in rows if (row["country"], row["n"], row["method"]) == (country, n, method)]
    return [row[figure] for row in sorted(own, key=lambda row: row["seed"])]
