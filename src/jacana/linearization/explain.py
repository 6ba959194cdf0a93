"""Explain: by which rule, in which way and at what cost each parameter enters the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from jacana.linearization.linearization import Linearization, linearize
from jacana.networks import Data, layer_of

__all__ = ["Explanation", "Line", "explain"]


@dataclass(frozen=True)
class Line:
    """One share of the kernel.

    Attributes:
        parameters: names of the parameters that enter by it.
        rule: the operations that they are used by, ``"autodiff"`` where a rule is missing, ``""`` where the output
            does not depend on them.
        evaluation: ``"factored"``: inner products of inputs times inner products of cotangents; ``"formed"``: inner
            products of per-example gradients; ``"formed in chunks"``: the same, made from the factors when contracted;
            ``"in parts"``: views of one parameter, each its own way; ``"none"``.
        operations: floating-point operations to contract all examples with as many others.
        held: bytes that all examples hold for it.
    """

    parameters: tuple[str, ...]
    rule: str
    evaluation: str
    operations: float
    held: int


@dataclass(frozen=True, repr=False)
class Explanation:
    """What :func:`explain` found; printed, it is a table.

    Attributes:
        n: examples.
        n_outputs: outputs c.
        route: the way to J v, as :meth:`Linearization.route` names it.
        block: examples in one pass over the network.
        passing: bytes that one example takes while it passes, beside what is then held.
        lines: one a share, in the order of the parameters.
    """

    n: int
    n_outputs: int
    route: str
    block: int
    passing: int
    lines: tuple[Line, ...]

    @property
    def operations(self) -> float:
        """Of all shares."""
        return sum(line.operations for line in self.lines)

    @property
    def held(self) -> int:
        """Bytes of all shares."""
        return sum(line.held for line in self.lines)

    def __str__(self) -> str:
        rows = self.n * self.n_outputs
        heads = ("parameters", "rule", "evaluation", "Gflop", "MiB held")
        cells = [
            (_shortened(line.parameters), line.rule or "-", line.evaluation, *_sizes(line.operations, line.held))
            for line in self.lines
        ]
        cells.append(("all", "", "", *_sizes(self.operations, self.held)))
        widths = [max(len(row[i]) for row in (heads, *cells)) for i in range(len(heads))]
        table = [
            "  ".join(f"{cell:{'<' if i < 3 else '>'}{widths[i]}}" for i, cell in enumerate(row))
            for row in (heads, *cells)
        ]
        passes = f"{self.block:,} of {self.n:,} examples at once, {self.passing / 2**20:.2f} MiB each in passing"
        return "\n".join(
            [
                f"{rows:,} by {rows:,} kernel ({8 * rows**2 / 2**20:,.1f} MiB in float64), {self.n_outputs} outputs",
                f"J v by {self.route}; 1 forward and {1 + self.n_outputs} backward passes, {passes}",
                *(line.rstrip() for line in table),
            ]
        )

    __repr__ = __str__


def explain(lin: Linearization | nn.Module, x: Data) -> Explanation:
    """Tell how :func:`~jacana.gram` computes the kernel of ``x``, operation by operation, without computing it.

    Parameters that show ``autodiff`` are covered by no rule: they are exact, slow, and cost a gradient an example. What
    is told of two examples holds for all, unless the network goes other ways with others or puts them in another order
    by their values: the kernel looks at every block, and what a rule would misread there goes through autodiff too.

    Args:
        lin: a linearization, or a network to linearize in all its trainable parameters.
        x: n examples, of which two are passed through the network.

    Returns:
        A table that prints itself; its ``lines`` can be read by programs.

    Raises:
        InvalidData: examples that cannot be used.

    Example:
        >>> import jacana, torch
        >>> layers = torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(24, 2)
        >>> jacana.explain(torch.nn.Sequential(*layers), torch.randn(100, 1, 8))
        200 by 200 kernel (0.3 MiB in float64), 2 outputs
        J v by forward; 1 forward and 3 backward passes, 100 of 100 examples at once, 0.00 MiB each in passing
        parameters      rule         evaluation  Gflop  MiB held
        0.weight        convolution  formed      0.001     0.009
        0.bias          convolution  formed      0.000     0.003
        3.weight, bias  linear       factored    0.002     0.011
        all                                      0.003     0.023
    """
    lin = lin if isinstance(lin, Linearization) else linearize(lin)
    examples = lin.examples(x)
    findings, n = lin.findings(examples), len(examples)
    few = lin.features(examples[:2])
    lines = []
    for share in sorted(few.shares, key=lambda share: share.places):
        counts = share.arithmetic(n, n)
        way = min(counts, key=counts.__getitem__)
        names = tuple(lin.names[place] for place in share.places)
        evaluation = "formed in chunks" if way == "formed" and len(share.ways) > 1 else way
        lines.append(Line(names, share.origin, evaluation, counts[way], n * share.nbytes // few.n))
    (_, block), *_ = lin.bounds(examples)
    return Explanation(n, findings.n_outputs, findings.route.name, block, findings.passing, tuple(lines))


def _shortened(names: tuple[str, ...]) -> str:
    if len(names) > 2:
        return f"{names[0]}, ... {len(names)} in all"
    layers = {layer_of(name) for name in names}
    short = (names[0], *(name.rpartition(".")[2] for name in names[1:])) if len(layers) == 1 else names
    return ", ".join(short)


def _sizes(operations: float, held: int) -> tuple[str, str]:
    return f"{operations / 1e9:,.3f}", f"{held / 2**20:,.3f}"
