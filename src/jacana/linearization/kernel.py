"""The kernel on data: K = Σ_θ s_θ² J_θ J'_θᵀ in float64, tile by tile, from the features of blocks of examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from jacana.linearization.features import Features
from jacana.linearization.linearization import Linearization
from jacana.linearization.memory import fits, require
from jacana.linearization.pairs import Pairs
from jacana.linearization.prior import Prior
from jacana.linearization.shares.share import strips
from jacana.linearization.tiles import Placed
from jacana.networks import Examples, layer_of

__all__ = [
    "WHOLE",
    "Recomputed",
    "View",
    "contract",
    "dense_kernel",
    "diagonal_blocks",
    "group_diagonals",
    "group_kernels",
    "kernel_and_blocks",
    "layer_kernels",
    "pull",
    "push",
]


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
) -> Sequence[Float64[Tensor, "nc nc"]]:
    """The shares K_l by layer, each with its prior, so that K = Σ_l K_l, from one pass over the network.

    Where they do not fit beside each other, each is computed again whenever it is asked for.
    """
    variances = [
        [v if layer_of(name) == layer else 0.0 for name, v in zip(lin.names, prior.variances, strict=True)]
        for layer in lin.layers
    ]
    rows = len(x) * lin.findings(x).n_outputs
    if fits(8 * len(variances) * rows**2, lin.device):
        kernels = contract(lin, x, None, variances, WHOLE, dtype=torch.float64, progress=progress)
        return [kernel for (kernel,) in kernels]

    def layer_kernel(of_layer: list[float]) -> Tensor:
        return contract(lin, x, None, [of_layer], WHOLE, dtype=torch.float64, progress=progress)[0][0]

    return Recomputed(tuple(functools.partial(layer_kernel, of_layer) for of_layer in variances))


@dataclass(frozen=True)
class Recomputed(Sequence[Tensor]):
    """Matrices that are not kept: each is computed whenever it is asked for."""

    make: tuple[Callable[[], Tensor], ...]

    def __len__(self) -> int:
        return len(self.make)

    def __getitem__(self, index: Any) -> Any:
        return [make() for make in self.make[index]] if isinstance(index, slice) else self.make[index]()


def group_kernels(
    lin: Linearization, x1: Examples, x2: Examples | None, groups: Sequence[Sequence[float]]
) -> list[Float64[Tensor, "nc mc"]]:
    """One kernel for each row of prior variances in ``groups``, from the same pass over the network."""
    return [kernel for (kernel,) in contract(lin, x1, x2, groups, WHOLE, dtype=torch.float64)]


def group_diagonals(lin: Linearization, x: Examples, groups: Sequence[Sequence[float]]) -> list[Float64[Tensor, " nc"]]:
    """The diagonals of these, each computed directly."""
    parts = [[block.blocks(variances) for variances in groups] for block in lin.blocks(x)]
    whole = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
    return [blocks.diagonal(dim1=1, dim2=2).flatten() for blocks in whole]


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
) -> list[list[Float[Tensor, "nc mc"]]]:
    """One kernel for each row of ``variances`` and each part of the view, all from the same pass over the network.

    Args:
        lin: the network.
        x1: n examples.
        x2: m examples; None for ``x1`` itself, of which only one half is computed.
        variances: a prior variance a parameter tensor, for each kernel.
        view: which parts of the features make a kernel each.
        dtype: of the contraction.
        memory_budget: bytes for the kernels and everything that is held or computed on the way to them.
        progress: show a bar if it takes more than a second.

    Raises:
        InsufficientMemory: the kernels do not fit, or the gradients of two examples do not fit beside them.
    """
    outputs = lin.findings(x1).n_outputs
    c, parts = view.rows(outputs), view.count(outputs)
    shape = (len(x1) * c, len(x1 if x2 is None else x2) * c)
    count = len(variances) * parts
    size = count * shape[0] * shape[1] * dtype.itemsize
    require(
        size,
        lin.device,
        f"a kernel of {shape[0]:,} by {shape[1]:,}" + (f", {count} times" if count > 1 else ""),
        "use fewer examples; one prior scale for all layers; fewer outputs at once (output=, or outputs='trace'); or "
        "do without the matrix: jacana.NTK(lin, x) @ v, WeightSpace() where the parameters are fewer.",
        memory_budget,
    )

    def zeros() -> list[list[Tensor]]:
        return [[torch.zeros(shape, dtype=dtype, device=lin.device) for _ in range(parts)] for _ in variances]

    def add(kernels: list[list[Tensor]], one: Placed, other: Placed) -> None:
        (i, first), (j, second) = one, other
        rows, columns = slice(c * i, c * (i + first.n)), slice(c * j, c * (j + second.n))
        left = view.parts(first)
        pairs = list(zip(left, left if second is first else view.parts(second), strict=True))
        for of_group, of_kernel in zip(kernels, variances, strict=True):
            for kernel, (ours, theirs) in zip(of_group, pairs, strict=True):
                ours.accumulate(kernel[rows, columns], theirs, of_kernel, symmetric=x2 is None and i == j)

    kernels = Pairs(lin, x1, x2, variances, dtype, size, memory_budget, progress).sums(zeros, add)
    if x2 is None:
        for of_group in kernels:
            for kernel in of_group:
                _mirror(kernel)
    return kernels


def kernel_and_blocks(
    lin: Linearization, x: Examples, new: Examples, prior: Prior
) -> tuple[Float64[Tensor, "nc mc"], Float64[Tensor, "m c c"]]:
    """K between data and new examples, and the c by c blocks on the diagonal of K among the new, of the same features.

    Raises:
        InsufficientMemory: they do not fit.
    """
    c = lin.findings(x).n_outputs
    shape = (len(x) * c, len(new) * c)
    size = 8 * shape[1] * (shape[0] + c)
    require(
        size, lin.device, f"a kernel of {shape[0]:,} by {shape[1]:,}", "use fewer examples, or fewer new ones at once."
    )

    def zeros() -> tuple[Tensor, Tensor]:
        kernel = torch.zeros(shape, dtype=torch.float64, device=lin.device)
        return kernel, kernel.new_zeros(len(new), c, c)

    def add(found: tuple[Tensor, Tensor], one: Placed, other: Placed) -> None:
        (i, first), (j, second) = one, other
        kernel, blocks = found
        first.accumulate(kernel[c * i : c * (i + first.n), c * j : c * (j + second.n)], second, prior.variances)
        if i == 0:  # once for each block of the new
            blocks[j : j + second.n] += second.blocks(prior.variances)

    return Pairs(lin, x, new, [prior.variances], torch.float64, size).sums(zeros, add)


def _mirror(square: Float[Tensor, "nc nc"]) -> None:
    """Copy the lower half to the upper: only that was computed, and a product is symmetric only to rounding."""
    for start, stop in strips(len(square)):
        square[:start, start:stop] = square[start:stop, :start].T
        corner = square[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
