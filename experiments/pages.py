"""Put the tables of recorded runs into README and docs, each between its two marks.

    python -m experiments.pages

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; what stands there is replaced. The tests hold that
nothing would change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import classification_report, digits_report, posterior_tables
from experiments.command import read
from experiments.markdown import markdown_table
from experiments.posterior_tables import brief

__all__ = ["filled", "main"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "performance.md")

MARKED = re.compile(r"(<!-- (?P<name>[a-z0-9-]+) -->\n).*?<!-- end -->", re.DOTALL)


def digits(results: dict[str, Any]) -> str:
    """The rotated digits of the demonstration."""
    return digits_report.markdown(results["digits"])


def digits_paired(results: dict[str, Any]) -> str:
    """Jacana's accuracy less that of each other method, paired over the seeds."""
    rows = [
        [
            name,
            f"{found['mean']:+.3f} ± {found['standard_error']:.3f}",
            f"{found['lower']:+.3f} to {found['upper']:+.3f}",
        ]
        for name, found in results["digits"]["accuracy_of_jacana_minus"].items()
    ]
    return markdown_table(["Jacana's accuracy less that of", "mean ± standard error", "95 % interval"], rows)


def curves(results: dict[str, Any]) -> str:
    """Sinusoids, of the demonstration or of the experiment."""
    figures = {"rmse": "RMSE", "relative_rmse": "RMSE / A", "nll": "NLL", "coverage": "95 % coverage"}
    rows = []
    for name, row in results["table"].items():
        mean = {key: f"{row[key]['mean']:.3f} ± {row[key]['standard_error']:.3f}" for key in figures}
        median = {key: f"{row[key]['median_of_tasks']:.3f}" for key in figures}
        cells = [name, mean["rmse"], mean["relative_rmse"], median["relative_rmse"], mean["nll"], median["nll"]]
        rows.append([*cells, mean["coverage"], f"{row['seconds']['mean']:.2f}"])
    return markdown_table(["", "RMSE", "RMSE / A", "median", "NLL", "median", "95 % coverage", "seconds"], rows)


def maps(results: dict[str, Any], country: str) -> str:
    """Mean squared errors on one malaria map, a row a method, a column a number of labels; in 1e-5."""
    rows = [row for row in results["table"] if row["country"] == country]
    sizes, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("n", "method"))
    cells = []
    for method in methods:
        own = {row["n"]: row["mse"] for row in rows if row["method"] == method}
        errors = [
            f"{1e5 * own[n]['mean']:.1f} ± {1e5 * own[n]['standard_error']:.1f}" if n in own else "" for n in sizes
        ]
        cells.append([method, *errors])
    return markdown_table(["labels", *(f"{n:,}" for n in sizes)], cells)


def gram(results: dict[str, Any]) -> str:
    """Seconds of the dense kernel, beside the obvious way to it and the least that arithmetic allows."""
    head = ["network", "examples × outputs", "`vmap(jacrev)`", "Jacana float32", "float64", "times faster"]
    rows = []
    for row in results["rows"]:
        rival, single, double = (row["seconds"].get(name) for name in ("vmap(jacrev)", *DTYPES))
        other = "" if rival is None else f"{'~' if row['vmap(jacrev)']['extrapolated'] else ''}{brief(rival)}"
        faster = "" if rival is None else f"{rival / single:,.3g} / {rival / double:,.3g}"
        over = " / ".join(f"{row['seconds'][name] / row['floor_seconds'][kind]:.1f}" for name, kind in DTYPES.items())
        size = f"{row['n']:,} × {row['outputs']}"
        rows.append([row["title"], size, other, brief(single), brief(double), faster, over])
    return markdown_table([*head, "over the floor"], rows)


def peer(results: dict[str, Any]) -> str:
    """Seconds of the dense kernel of the perceptron beside neural-tangents."""
    rows = []
    for row in results["rows"]:
        other, single, double = row["neural_tangents"], row["float32"], row["float64"]
        faster = f"{other / single:.1f} / {other / double:.1f}"
        rows.append([f"{row['n']:,} × 10", *map(brief, (other, single, double)), faster])
    return markdown_table(
        ["examples × outputs", "neural-tangents, float32", "Jacana float32", "float64", "times faster"], rows
    )


def gram_memory(results: dict[str, Any]) -> str:
    """Peak memory of the dense kernel of ResNet-20, in processes of their own."""
    rows = []
    for found in results["memory"]:
        if "error" in found:
            continue
        if "chunk" in found:
            examples, outputs = found["chunk"]
            how = f"{examples} examples at once, " + ("one output" if outputs == 1 else "all outputs")
        else:
            how = f"`memory_budget` {found['budget'] / 2**20:,.0f} MiB" if found["budget"] else "default"
        rows.append([found["method"], how, f"{found['bytes'] / 2**20:,.0f}", f"{found['seconds']:.1f}"])
    return markdown_table(["", "how", "peak MiB", "seconds"], rows)


def products(results: dict[str, Any]) -> str:
    """Milliseconds of a categorical Fisher product, beside a training step and the other ways to it."""
    rows = results["rows"]
    cells = [
        [name, *(f"{1e3 * row['median'][name]:,.3g} ms ({row['ratio'][name]:.2f})" for row in rows)]
        for name in rows[0]["median"]
    ]
    more = {
        "one of the first 20 products, by kept graphs": lambda row: (
            f"{1e3 * row['early']:,.3g} ms ({row['early'] / row['median']['forward + backward']:.2f})"
        ),
        "a column of 16 at once": lambda row: f"{1e3 * row['columns']:,.3g} ms",
        "first 20 products, all building included, over 20 later": lambda row: (
            f"{row['first_20'] / row['later_20']:.2f}"
        ),
        "relative error of Jacana in float32": lambda row: f"{row['error']['Jacana']:.1e}",
        "that of the finite difference at its best step": lambda row: f"{row['error']['best']:.1e}",
    }
    cells += [[name, *map(cell, rows)] for name, cell in more.items()]
    return markdown_table(["", *(f"{row['title']}, {row['n']} examples" for row in rows)], cells)


def products_streamed(results: dict[str, Any]) -> str:
    """What a product costs over a loader, and the memory of the process."""
    rows = []
    for found in results["stream"]:
        seconds = [f"{1e3 * found[name]:.2f}" for name in ("first_an_image", "seconds_an_image")]
        rows.append([f"{found['n']:,}", *seconds, f"{found['peak_mib']:,.0f}"])
    return markdown_table(["images", "ms an image, first product", "later ones", "peak MiB"], rows)


def finite_differences(results: dict[str, Any]) -> str:
    """The error of the finite difference over its step."""
    rows = results["rows"]
    steps = list(rows[0]["error"]["finite difference"])
    cells = [[row["title"], *(f"{row['error']['finite difference'][step]:.0e}" for step in steps)] for row in rows]
    return markdown_table(["ε ‖v‖", *(f"{float(step):.0e}" for step in steps)], cells)


def fisher_speed(results: dict[str, Any]) -> str:
    """Seconds a Fisher product of the paper's networks, beside the paper's own."""
    rows, ways = [], ("double backward", "finite difference", "Jacana, exact")
    for row in results["rows"]:
        median = row["median"]
        before = " / ".join(f"{value:g}" for value in results["paper"][row["network"]])
        over = f"{median['Jacana, exact'] / median['forward + backward']:.2f}"
        seconds = [brief(median[way]) for way in ways]
        rows.append([row["network"], f"{row['parameters']:,}", *seconds, over, before])
    return markdown_table(["", "parameters", *ways, "over a step", "the paper's GPU"], rows)


def similarity_of_networks(results: dict[str, Any]) -> str:
    """CKA and Bures similarity of tangent kernels, layer by layer."""
    return _similarity(results["pairs"], ("cka", "bures"))


def similarity_of_tasks(results: dict[str, Any]) -> str:
    """Cosine and Bures similarity of Fisher matrices, layer by layer."""
    return _similarity(results["tasks"], ("cosine", "bures"))


def _similarity(rows: dict[str, Any], measures: tuple[str, str]) -> str:
    layers = list(next(iter(rows.values())))
    one, other = measures

    def cell(found: dict[str, Any]) -> str:
        return f"{found[one]['mean']:.3f} ± {found[one]['standard_error']:.3f} ({found[other]['mean']:.3f})"

    return markdown_table(
        ["", *layers], ([name, *(cell(row[layer]) for layer in layers)] for name, row in rows.items())
    )


DTYPES = {"Jacana, float32": "float32", "Jacana, float64": "float64"}


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "digits": ("demo", digits),
    "digits-paired": ("demo", digits_paired),
    "demo-sinusoids": ("demo", lambda results: curves(results["sinusoids"])),
    "sinusoids": ("sinusoids", curves),
    "malaria-burkina-faso": ("malaria", lambda results: maps(results, "BFA")),
    "gram": ("gram", gram),
    "gram-memory": ("gram", gram_memory),
    "peer": ("peer", peer),
    "products": ("products", products),
    "products-streamed": ("products", products_streamed),
    "finite-differences": ("products", finite_differences),
    "fisher-speed": ("fisher_speed", fisher_speed),
    "similarity-networks": ("similarity", similarity_of_networks),
    "similarity-tasks": ("similarity", similarity_of_tasks),
    "malaria-cameroon": ("malaria", lambda results: maps(results, "CMR")),
    **posterior_tables.TABLES,
    **dict(classification_report.tables()),
}
"""Mark to record and table."""


def filled(page: str, results: Path = ROOT / "results") -> str:
    """The page with every marked table made anew from its record."""

    def made(match: re.Match[str]) -> str:
        record, make = TABLES[match["name"]]
        return f"{match[1]}{make(read(results / f'{record}.json')['results'])}\n<!-- end -->"

    return MARKED.sub(made, page)


def main() -> None:
    """Fill all pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
