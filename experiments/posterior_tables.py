"""Tables of the recorded timings of posteriors: sizes, widths, steps, methods, scales, more data, images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["TABLES", "brief"]


def posterior_sizes(results: dict[str, Any]) -> str:
    """Seconds of a posterior over the number of examples, factorised and by products."""
    lines = [
        "| examples | way | mean, s | 50 variances too | steps | residual | mean off | variances / exact | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["size"]:
        cells = [f"{row['n']:,}", row["method"], brief(row["seconds_mean"]), brief(row["seconds"])]
        cells += [f"{row['steps']}", f"{row['residual']:.0e}"] if "steps" in row else ["", ""]
        cells += [f"{row['mean_error']:.0e}"] if "mean_error" in row else [""]
        spread = "smallest_variance" in row
        cells += [f"{row['smallest_variance']:.4f}-{row['largest_variance']:.4f}" if spread else ""]
        lines.append(f"| {' | '.join(cells)} | {row['peak_mib']:,.0f} |")
    return "\n".join(lines)


def posterior_widths(results: dict[str, Any]) -> str:
    """Seconds of a factorised posterior of 1,000 examples over the number of parameters."""
    rows = results["width"]
    table = {
        "parameters": [f"{row['parameters']:,}" for row in rows],
        "---": ["---"] * len(rows),
        "seconds": [brief(row["seconds"]) for row in rows],
        "peak MiB": [f"{row['peak_mib']:,.0f}" for row in rows],
    }
    return "\n".join(f"| {' | '.join([name, *cells])} |" for name, cells in table.items())


def posterior_steps(results: dict[str, Any]) -> str:
    """Steps of conjugate gradients with and without a preconditioner."""
    ways = ("pivoted Cholesky", "Nyström", "none")
    lines = [f"| | σ over root mean diagonal | {' | '.join(ways)} |", "|---|---|---|---|---|"]
    for row in results["steps"]:
        cells = [
            f"{row[way]['steps']}" if row[way]["converged"] else f"{row[way]['residual']:.0e} after {row[way]['steps']}"
            for way in ways
        ]
        lines.append(f"| {row['network']} | {row['ratio']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def posterior_defaults(results: dict[str, Any]) -> str:
    """Ours and GPyTorch's default settings against the factorised posterior."""
    lines = ["| | mean off | variances over exact |", "|---|---|---|"]
    for row in results["defaults"]:
        for name in ("Jacana", "GPyTorch"):
            found = row[name]
            spread = f"{found['smallest_variance']:.3g} to {found['largest_variance']:.3g}"
            lines.append(f"| {name}, {row['n']:,} examples | {found['mean_error']:.1e} | {spread} |")
    return "\n".join(lines)


def method_ways(results: dict[str, Any]) -> str:
    """Every way to a posterior against the factorised one."""
    lines = [
        "| method | σ over root mean diagonal | s | mean off | variances / exact | five times as far out |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["ways"]:
        said = "" if row["converged"] else " (`NotConverged`)"
        near, far = ((row[f"smallest_{end}"], row[f"largest_{end}"]) for end in ("variance", "far"))
        cells = [
            f"`{row['way']}`{said}", f"{row['ratio']:g}", brief(row["seconds"]), f"{row['mean_error']:.0e}",
            *(f"{low:.4g} to {high:.4g}" for low, high in (near, far)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def method_evidence(results: dict[str, Any]) -> str:
    """Scales by the fixed point, beside the exact optimum where that can be had."""
    lines = ["| examples | way | s | prior_std | noise_std | nats below |", "|---|---|---|---|---|---|"]
    for row in results["evidence"]:
        below = f"{row['nats_below']:.2f}" if "nats_below" in row else ""
        lines.append(
            f"| {row['n']:,} | fixed point | {brief(row['seconds'])} | {row['prior_std']:.4g} | "
            f"{row['noise_std']:.4g} | {below} |"
        )
        if below:
            lines.append(
                f"| {row['n']:,} | exact | {brief(row['seconds_exact'])} | {row['prior_std_exact']:.4g} | "
                f"{row['noise_std_exact']:.4g} | |"
            )
    return "\n".join(lines)


def method_online(results: dict[str, Any]) -> str:
    """What 500 more examples cost after 5,000, beside all of them from scratch."""
    lines = [
        "| method | tolerance | products, more / scratch | seconds | residual | mean off |",
        "|---|---|---|---|---|---|",
    ]
    shown: tuple[Callable[[dict[str, Any]], str], ...] = (
        lambda found: f"{found['products']:,}",
        lambda found: brief(found["seconds"]),
        lambda found: f"{found['residual']:.0e}",
        lambda found: f"{found['mean_error']:.0e}",
    )
    for row in results["online"]:
        cells = [f"{cell(row['more'])} / {cell(row['scratch'])}" for cell in shown]
        lines.append(f"| {row['method']} | {row['rtol']:.0e} | {' | '.join(cells)} |")
    return "\n".join(lines)


def many_images(results: dict[str, Any]) -> str:
    """Mean and samples of a network with ten outputs, many images."""
    lines = ["| images | rows | minutes | steps | residual | peak MiB |", "|---|---|---|---|---|---|"]
    for row in results["classified"]:
        cells = [f"{row['n']:,}", f"{row['rows']:,}", f"{row['seconds'] / 60:.1f}", str(row["steps"])]
        lines.append(f"| {' | '.join(cells)} | {row['residual']:.0e} | {row['peak_mib']:,.0f} |")
    return "\n".join(lines)


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
