"""The kernel on data: K = Σ_θ s_θ² J_θ J'_θᵀ in float64, tile by tile, from the features of blocks of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm import tqdm

from jacana.linearization.features import Features
from jacana.linearization.linearization import Linearization
from jacana.linearization.memory import budget, require
from jacana.linearization.prior import Prior
from jacana.linearization.shares.share import strips
from jacana.networks import Examples, layer_of

__all__ = ["WHOLE", "View", "contract", "dense_kernel", "diagonal_blocks", "layer_kernels", "pull", "push"]

Block = tuple[int, list[Features]]
"""Where a block of examples starts, and its features."""


@dataclass(frozen=True)
class View:
    """What of the features the kernels are made of: ``count(c)`` parts with ``rows(c)`` rows an example each."""

    parts: Callable[[Features], list[Features]]
    rows: Callable[[int], int]
    count: Callable[[int], int]


WHOLE = View(lambda features: [features], rows=lambda c: c, count=lambda _: 1)
"""All outputs, a row each."""


def dense_kernel(
    lin: Linearization,
    x1: Examples,
    x2: Examples | None,
    prior: Prior,
    *,
    dtype: torch.dtype = torch.float64,
    progress: bool = False,
) -> Float[Tensor, "nc mc"]:
    """K = J₁ S J₂ᵀ, symmetric in one half where ``x2`` is None."""
    return contract(lin, x1, x2, [prior.variances], WHOLE, dtype=dtype, progress=progress)[0][0]


def layer_kernels(
    lin: Linearization, x: Examples, prior: Prior, *, progress: bool = False
) -> dict[str, Float64[Tensor, "nc nc"]]:
    """The shares K_l by layer, each with its prior, so that K = Σ_l K_l, from one pass over the network."""
    variances = [
        [v if layer_of(name) == layer else 0.0 for name, v in zip(lin.names, prior.variances, strict=True)]
        for layer in lin.layers
    ]
    kernels = contract(lin, x, None, variances, WHOLE, dtype=torch.float64, progress=progress)
    return {layer: kernel for layer, (kernel,) in zip(lin.layers, kernels, strict=True)}


def diagonal_blocks(lin: Linearization, x: Examples, prior: Prior) -> Float64[Tensor, "n c c"]:
    """The c by c blocks of K on its diagonal, each computed directly."""
    return torch.cat([block.blocks(prior.variances) for block in lin.blocks(x)])


def pull(lin: Linearization, x: Examples, cotangents: Float64[Tensor, "nc k"]) -> Float64[Tensor, "p k"]:
    """Jᵀ U contracted in float64 from the very numbers that the Gram is made of.

    Weights (K + Σ)⁻¹r are large and alternate in sign, so their pull-back must not be rounded to the network's dtype.
    """
    total = torch.zeros(lin.n_parameters, cotangents.shape[1], dtype=torch.float64, device=lin.device)
    start = 0
    for block in lin.blocks(x):
        total += block.pull(cotangents[start : start + block.n_rows])
        start += block.n_rows
    return total


def push(lin: Linearization, x: Examples, tangents: Float64[Tensor, "p k"]) -> Float64[Tensor, "nc k"]:
    """J V contracted in float64, the counterpart of :func:`pull`: many columns for one pass over the network."""
    return torch.cat([block.push(tangents, lin.network.sizes) for block in lin.blocks(x)])


def contract(
    lin: Linearization,
    x1: Examples,
    x2: Examples | None,
    variances: Sequence[Sequence[float]],
    view: View,
    *,
    dtype: torch.dtype,
    memory_budget: int | None = None,
    progress: bool = False,
) -> list[list[Tensor]]:
    """One kernel for each row of variances (a group of parameters) and each view of the features.

    Raises:
        InsufficientMemory: the kernels alone do not fit.
    """
    findings = lin.findings(x1)
    other = x1 if x2 is None else x2
    c, parts = view.rows(findings.n_outputs), view.count(findings.n_outputs)
    count = len(variances) * parts
    shape = (len(x1) * c, len(other) * c)
    size = count * shape[0] * shape[1] * dtype.itemsize
    require(
        size,
        lin.device,
        f"a kernel of {shape[0]:,} by {shape[1]:,}" + (f", {count} times" if count > 1 else ""),
        "use fewer examples; one prior scale for all layers; fewer outputs at once (output=, or outputs='trace'); or "
        "do without the matrix: jacana.NTK(lin, x) @ v, WeightSpace() where the parameters are fewer.",
        memory_budget,
    )
    held = budget(lin.device) if memory_budget is None else memory_budget - size
    require(
        2 * dtype.itemsize * findings.bytes_per_example // 8,
        lin.device,
        f"the gradients of two examples, {findings.n_outputs} outputs each, beside a kernel of {size / 2**30:.2f} GiB,",
        "use fewer outputs at once, or fewer parameters (parameters=).",
        None if memory_budget is None else held,
    )
    kernels = [[torch.zeros(shape, dtype=dtype, device=lin.device) for _ in range(parts)] for _ in variances]
    left, right = lin.bounds(x1, held=held), lin.bounds(other, held=held)
    total = len(left) * (len(left) + 1) // 2 if x2 is None else len(left) * len(right)

    def compute(examples: Examples, start: int, stop: int) -> Block:
        return start, view.parts(lin.features(examples[start:stop], dtype))

    tiles = _tiles(compute, x1, x2, left, right, held)
    with tqdm(total=total, desc="kernel", unit="tile", delay=1.0, leave=False, disable=not progress) as bar:
        for (i, first), (j, second) in tiles:
            rows, columns = slice(c * i, c * i + first[0].n_rows), slice(c * j, c * j + second[0].n_rows)
            alike = x2 is None and i == j
            for group, of_group in zip(kernels, variances, strict=True):
                for kernel, ours, theirs in zip(group, first, second, strict=True):
                    tile = kernel[rows, columns]
                    ours.accumulate(tile, theirs, of_group, symmetric=alike)
                    if alike:
                        _mirror(tile)
                    elif x2 is None:
                        kernel[columns, rows] = tile.T
            bar.update()
    return kernels


def _mirror(square: Float[Tensor, "nc nc"]) -> None:
    """Copy the lower half to the upper: only that was computed, and a product is symmetric only to rounding."""
    for start, stop in strips(len(square)):
        square[:start, start:stop] = square[start:stop, :start].T
        corner = square[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)


def _tiles(
    compute: Callable[[Examples, int, int], Block],
    x1: Examples,
    x2: Examples | None,
    left: list[tuple[int, int]],
    right: list[tuple[int, int]],
    allowed: int,
) -> Iterator[tuple[Block, Block]]:
    """Pairs of blocks with where they start; as many as ``allowed`` bytes hold are kept, the others computed again.

    With x2 None, each unordered pair comes once.
    """
    place = 0
    while place < len(left):
        held: list[Block] = []
        while place < len(left) and (not held or sum(map(_nbytes, held)) + 2 * _nbytes(held[0]) <= allowed):
            held.append(compute(x1, *left[place]))
            place += 1
        if x2 is None:
            for a, block in enumerate(held):
                for other in held[a:]:
                    yield block, other
            rest = (compute(x1, start, stop) for start, stop in left[place:])
        else:
            rest = (compute(x2, start, stop) for start, stop in right)
        for other in rest:
            for block in held:
                yield block, other


def _nbytes(block: Block) -> int:
    return sum(features.nbytes for features in block[1])
