"""Tangent: what the GPyTorch operators of one kernel have in common, and what is kept for the last few sets of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jacana.linearization import Linearization, Products
from jacana.operators import NTK, Covariance
from jacana.solvers import CG
from jacana.solvers.preconditioners import Prepared

__all__ = ["System", "Tangent"]

_KEPT = 3


class Tangent:
    """What the operators of one kernel have in common: the network, and what is kept for the last few sets of data.

    Args:
        lin: the network.
        inputs: examples from GPyTorch's (n, d).
        members: for each prior scale, one where a parameter has it and zero elsewhere.
        solver: for systems with noise.
    """

    def __init__(
        self, lin: Linearization, inputs: Callable[[Tensor], Any], members: Sequence[Sequence[float]], solver: CG
    ) -> None:
        self.lin, self.inputs, self.members, self.solver = lin, inputs, members, solver
        self._products: list[tuple[Tensor, Products]] = []
        self._systems: list[System] = []
        self.generator = torch.Generator().manual_seed(0)  # goes on: what an optimiser sees averages out

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_products": [], "_systems": [], "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        drawn = torch.Generator()
        drawn.set_state(state["generator"])
        vars(self).update(state, generator=drawn)

    def products(self, x: Tensor) -> Products:
        """Those with the Jacobian at x."""
        for seen, products in self._products:
            if seen.shape == x.shape and torch.equal(seen, x):
                return products
        made = Products(self.lin, self.inputs(x))
        self._products = [*self._products[1 - _KEPT :], (x.detach().clone(), made)]
        return made

    def scale(self, stds: Tensor) -> dict[str, float]:
        """The prior standard deviation of every parameter."""
        of = torch.tensor(self.members, dtype=torch.float64).T @ stds.detach().double().cpu()
        return dict(zip(self.lin.names, of.tolist(), strict=True))

    def system(self, x: Tensor, stds: Tensor, noise: Tensor) -> System:
        """K + Σ at x with its preconditioner."""
        products = self.products(x)
        stds, noise = stds.detach().double().clone(), noise.detach().double().to(self.lin.device).clone()
        for system in self._systems:
            if system.products is products and torch.equal(system.stds, stds) and torch.equal(system.noise, noise):
                return system
        covariance = Covariance(NTK(self.lin, products, prior_std=self.scale(stds)), noise)
        system = System(products, stds, noise, covariance, self.solver.prepare(covariance))
        self._systems = [system]
        return system


@dataclass(frozen=True, eq=False)
class System:
    """K + Σ at some data, prior scales and noise, with its preconditioner."""

    products: Products
    stds: Tensor
    noise: Tensor
    covariance: Covariance
    prepared: Prepared | None
