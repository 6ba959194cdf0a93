"""Places: where each example lies along one direction, by which examples have an order of their own."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from jacana.networks.examples import Examples
from jacana.networks.source import Source

__all__ = ["places"]

_TOGETHER = 256


def places(x: Examples | Source) -> Float64[Tensor, " n"]:
    """xᵢᵀ r of each example, for one fixed random direction r over all its entries.

    What picks examples by their rank among these picks the same ones in whatever order they come, and after a change of
    their last digits; and as good as at random, for no direction of interest is like r.
    """
    found = [_of(batch) for batch in x.batches(_TOGETHER)]
    return torch.cat(found)


def _of(x: Examples) -> Float64[Tensor, " m"]:
    parts = [torch.view_as_real(part) if part.is_complex() else part for part in x.tensors]
    rows = torch.cat([part.detach().reshape(len(x), -1).to("cpu", torch.float64) for part in parts], dim=1)
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows * direction).sum(1)
