"""The Gram: K = Σ_θ s_θ² J_θ J'_θᵀ in float64, tile by tile, from the features of blocks of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm import tqdm

from jacana.linearization.features import Features
from jacana.linearization.linearization import Linearization
from jacana.linearization.memory import budget, require
from jacana.linearization.prior import Prior
from jacana.networks import Examples, layer_of

__all__ = ["diagonal_blocks", "gram", "layer_grams", "pull", "push"]


def gram(
    lin: Linearization,
    x1: Examples,
    x2: Examples | None,
    prior: Prior,
    *,
    dtype: torch.dtype = torch.float64,
    progress: bool = False,
) -> Float[Tensor, "nc mc"]:
    """K = J₁ S J₂ᵀ, symmetric in one half where ``x2`` is None."""
    return _grams(lin, x1, x2, prior.variances, [0] * len(lin.names), dtype, progress)[0]


def layer_grams(
    lin: Linearization, x: Examples, prior: Prior, *, progress: bool = False
) -> dict[str, Float64[Tensor, "nc nc"]]:
    """The shares K_l by layer, each with its prior, so that K = Σ_l K_l, from one pass over the network."""
    layers = list(lin.layers)
    owner = [layers.index(layer_of(name)) for name in lin.names]
    return dict(zip(layers, _grams(lin, x, None, prior.variances, owner, torch.float64, progress), strict=True))


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


def _grams(
    lin: Linearization,
    x1: Examples,
    x2: Examples | None,
    variances: list[float],
    owner: Sequence[int],
    dtype: torch.dtype,
    progress: bool,
) -> list[Tensor]:
    """One kernel a group of parameters: ``owner`` gives the group of each."""
    c = lin.findings(x1).n_outputs
    other = x1 if x2 is None else x2
    n_groups = max(owner) + 1
    shape = (len(x1) * c, len(other) * c)
    itemsize = torch.finfo(dtype).bits // 8
    require(
        n_groups * shape[0] * shape[1] * itemsize,
        lin.device,
        f"a kernel of {shape[0]:,} by {shape[1]:,}" + (f" for each of {n_groups} layers" if n_groups > 1 else ""),
        "use fewer examples, one prior scale for all layers, or WeightSpace() where the parameters are fewer.",
    )
    kernels = [torch.zeros(shape, dtype=dtype, device=lin.device) for _ in range(n_groups)]
    left, right = lin.bounds(x1), lin.bounds(other)
    total = len(left) * (len(left) + 1) // 2 if x2 is None else len(left) * len(right)
    with tqdm(total=total, desc="kernel", unit="tile", delay=1.0, leave=False, disable=not progress) as bar:
        for rows, columns in _tiles(lin, x1, None if x2 is None else x2, left, right, dtype):
            (i, first), (j, second) = rows, columns
            tiles = [kernel[c * i : c * i + first.n_rows, c * j : c * j + second.n_rows] for kernel in kernels]
            first.accumulate({place: tiles[group] for place, group in enumerate(owner)}, second, variances)
            for kernel, tile in zip(kernels, tiles, strict=True) if x2 is None else ():
                if i == j:  # a matrix product is symmetric only to rounding
                    tile.copy_(tile.tril() + tile.tril(-1).T)
                else:
                    kernel[c * j : c * j + second.n_rows, c * i : c * i + first.n_rows] = tile.T
            bar.update()
    return kernels


def _tiles(
    lin: Linearization,
    x1: Examples,
    x2: Examples | None,
    left: list[tuple[int, int]],
    right: list[tuple[int, int]],
    dtype: torch.dtype,
) -> Iterator[tuple[tuple[int, Features], tuple[int, Features]]]:
    """Pairs of blocks with where they start; as many as the budget holds are kept, the others computed again.

    With x2 None, each unordered pair comes once.
    """
    allowed = budget(lin.device)
    place = 0
    while place < len(left):
        held: list[tuple[int, Features]] = []
        while place < len(left) and (not held or sum(f.nbytes for _, f in held) + held[0][1].nbytes <= allowed):
            start, stop = left[place]
            held.append((start, lin.features(x1[start:stop], dtype)))
            place += 1
        if x2 is None:
            for a, block in enumerate(held):
                for other in held[a:]:
                    yield block, other
            rest = ((start, lin.features(x1[start:stop], dtype)) for start, stop in left[place:])
        else:
            rest = ((start, lin.features(x2[start:stop], dtype)) for start, stop in right)
        for other in rest:
            for block in held:
                yield block, other
