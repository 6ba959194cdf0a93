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
from jacana.linearization.memory import budget, fits, require
from jacana.linearization.prior import Prior
from jacana.linearization.shares.share import strips
from jacana.linearization.tiles import Placed, Room, partition, tiles
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

    What comes out of the network is looked at once, at the end, so that a device is not waited for block by block. If
    something was wrong with it, all is computed again with care: then a block's parameters may fall to autodiff.

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
    room = None if memory_budget is None else memory_budget - size
    # A layer's share alone needs the gradients of its own parameters alone.
    wanted = frozenset(place for place in range(len(lin.names)) if any(row[place] > 0.0 for row in variances))

    def planned() -> list[list[tuple[int, ...]]]:
        found = lin.findings(x1)
        groups = partition(found, wanted, budget(lin.device) if room is None else room)
        require(
            found.passing + 2 * max(sum(found.held[places] for places in group) for group in groups),
            lin.device,
            f"the gradients of two examples, {found.n_outputs} outputs each, beside {size / 2**30:.2f} GiB of kernels,",
            "use fewer outputs at once, or fewer parameters (parameters=).",
            room,
        )
        return groups

    def compute(flags: list[Tensor] | None) -> list[list[Tensor]]:
        groups = planned()
        kernels = [[torch.zeros(shape, dtype=dtype, device=lin.device) for _ in range(parts)] for _ in variances]

        def visit(one: Placed, other: Placed) -> None:
            (i, first), (j, second) = one, other
            rows, columns = slice(c * i, c * (i + first.n)), slice(c * j, c * (j + second.n))
            left = view.parts(first)
            pairs = list(zip(left, left if second is first else view.parts(second), strict=True))
            for of_group, of_kernel in zip(kernels, variances, strict=True):
                for kernel, (ours, theirs) in zip(of_group, pairs, strict=True):
                    ours.accumulate(kernel[rows, columns], theirs, of_kernel, symmetric=x2 is None and i == j)

        for group in groups:
            places = wanted.intersection(place for some in group for place in some)

            def of(examples: Examples, places: frozenset[int] = places) -> Features:
                return lin.features(examples, dtype, places=places, flags=flags)

            tiles(of, visit, x1, x2, Room.of(lin, x1, group, room), progress=progress)
        if x2 is None:
            for of_group in kernels:
                for kernel in of_group:
                    _mirror(kernel)
        return kernels

    if lin.trusts(x1):
        flags: list[Tensor] = []
        kernels = compute(flags)
        if bool(torch.stack(flags).all()):
            return kernels
        del kernels
        lin.doubt(x1)
    return compute(None)


def _mirror(square: Float[Tensor, "nc nc"]) -> None:
    """Copy the lower half to the upper: only that was computed, and a product is symmetric only to rounding."""
    for start, stop in strips(len(square)):
        square[:start, start:stop] = square[start:stop, :start].T
        corner = square[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
