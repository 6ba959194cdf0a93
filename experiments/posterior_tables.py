"""Tables of the recorded timings of posteriors: sizes, widths, steps, methods, scales, more data, images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.markdown import markdown_table

__all__ = ["TABLES", "brief"]


def posterior_sizes(results: dict[str, Any]) -> str:
    """Seconds of a posterior over the number of examples, factorised and by products."""
    head = ["examples", "way", "mean, s", "50 variances too", "steps", "residual", "mean off", "variances / exact"]
    rows = []
    for row in results["size"]:
        cells = [f"{row['n']:,}", row["method"], brief(row["seconds_mean"]), brief(row["seconds"])]
        cells += [f"{row['steps']}", f"{row['residual']:.0e}"] if "steps" in row else ["", ""]
        cells += [f"{row['mean_error']:.0e}"] if "mean_error" in row else [""]
        spread = "smallest_variance" in row
        cells += [f"{row['smallest_variance']:.4f}-{row['largest_variance']:.4f}" if spread else ""]
        rows.append([*cells, f"{row['peak_mib']:,.0f}"])
    return markdown_table([*head, "peak MiB"], rows)


def posterior_widths(results: dict[str, Any]) -> str:
    """Seconds of a factorised posterior of 1,000 examples over the number of parameters."""
    rows = results["width"]
    seconds = ["seconds", *(brief(row["seconds"]) for row in rows)]
    memory = ["peak MiB", *(f"{row['peak_mib']:,.0f}" for row in rows)]
    return markdown_table(["parameters", *(f"{row['parameters']:,}" for row in rows)], [seconds, memory])


def posterior_steps(results: dict[str, Any]) -> str:
    """Steps of conjugate gradients with and without a preconditioner."""
    ways = ("pivoted Cholesky", "Nyström", "none")
    rows = []
    for row in results["steps"]:
        cells = [
            f"{row[way]['steps']}" if row[way]["converged"] else f"{row[way]['residual']:.0e} after {row[way]['steps']}"
            for way in ways
        ]
        rows.append([row["network"], f"{row['ratio']:g}", *cells])
    return markdown_table(["", "σ over root mean diagonal", *ways], rows)


def posterior_defaults(results: dict[str, Any]) -> str:
    """Ours and GPyTorch's default settings against the factorised posterior."""
    rows = []
    for row in results["defaults"]:
        for name in ("Jacana", "GPyTorch"):
            found = row[name]
            spread = f"{found['smallest_variance']:.3g} to {found['largest_variance']:.3g}"
            rows.append([f"{name}, {row['n']:,} examples", f"{found['mean_error']:.1e}", spread])
    return markdown_table(["", "mean off", "variances over exact"], rows)


def method_ways(results: dict[str, Any]) -> str:
    """Every way to a posterior against the factorised one."""
    head = ["method", "σ over root mean diagonal", "s", "mean off", "variances / exact", "five times as far out"]
    rows = []
    for row in results["ways"]:
        said = "" if row["converged"] else " (`NotConverged`)"
        near, far = ((row[f"smallest_{end}"], row[f"largest_{end}"]) for end in ("variance", "far"))
        cells = [f"`{row['way']}`{said}", f"{row['ratio']:g}", brief(row["seconds"]), f"{row['mean_error']:.0e}"]
        rows.append([*cells, *(f"{low:.4g} to {high:.4g}" for low, high in (near, far))])
    return markdown_table(head, rows)


def method_evidence(results: dict[str, Any]) -> str:
    """Scales by the fixed point, beside the exact optimum where that can be had."""
    rows = []
    for row in results["evidence"]:
        below = f"{row['nats_below']:.2f}" if "nats_below" in row else ""
        rows.append([f"{row['n']:,}", "fixed point", *_scales(row, ""), below])
        if below:
            rows.append([f"{row['n']:,}", "exact", *_scales(row, "_exact"), ""])
    return markdown_table(["examples", "way", "s", "prior_std", "noise_std", "nats below"], rows)


def _scales(row: dict[str, Any], way: str) -> list[str]:
    """Seconds, and what was found in them."""
    return [brief(row[f"seconds{way}"]), f"{row[f'prior_std{way}']:.4g}", f"{row[f'noise_std{way}']:.4g}"]


def method_online(results: dict[str, Any]) -> str:
    """What 500 more examples cost after 5,000, beside all of them from scratch."""
    rows = []
    shown: tuple[Callable[[dict[str, Any]], str], ...] = (
        lambda found: f"{found['products']:,}",
        lambda found: brief(found["seconds"]),
        lambda found: f"{found['residual']:.0e}",
        lambda found: f"{found['mean_error']:.0e}",
    )
    for row in results["online"]:
        cells = [f"{cell(row['more'])} / {cell(row['scratch'])}" for cell in shown]
        rows.append([row["method"], f"{row['rtol']:.0e}", *cells])
    return markdown_table(["method", "tolerance", "products, more / scratch", "seconds", "residual", "mean off"], rows)


def many_images(results: dict[str, Any]) -> str:
    """Mean and samples of a network with ten outputs, many images."""
    rows = []
    for row in results["classified"]:
        cells = [f"{row['n']:,}", f"{row['rows']:,}", f"{row['seconds'] / 60:.1f}", str(row["steps"])]
        rows.append([*cells, f"{row['residual']:.0e}", f"{row['peak_mib']:,.0f}"])
    return markdown_table(["images", "rows", "minutes", "steps", "residual", "peak MiB"], rows)


def brief(value: float) -> str:
    """Seconds to three digits."""
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "posterior-sizes": ("posterior", posterior_sizes),
    "posterior-widths": ("posterior", posterior_widths),
    "posterior-steps": ("posterior", posterior_steps),
    "posterior-defaults": ("posterior", posterior_defaults),
    "method-ways": ("methods", method_ways),
    "method-evidence": ("scales", method_evidence),
    "method-online": ("methods", method_online),
    "many-images": ("images", many_images),
}
"""Mark to record and table."""
